"""The viewer as a person uses it: the running job, driven in a real browser."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import numpy as np
import pytest
import torch
from support import tiny
from support.bpe import byte_level
from support.browser import PHONE, Watched
from support.jobs import ROOT, environment, hear_ctrl_c
from support.texts import topics

from model import ByteTokenizer, Patcher, load_entropy_model, save_entropy_model
from pipeline.bpe.token_pieces import TokenPieces
from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.space import write_space

JOB = ROOT / "jobs" / "patch_viewer.py"
HOSTILE = "<script>document.title='run'</script><img src=x onerror=document.title='run'>${7*6}{{7}}"
RULE = Patcher(1.0)


@pytest.fixture(scope="module")
def there(tmp_path_factory, ngram_model) -> Path:
    directory = tmp_path_factory.mktemp("viewer")
    save_entropy_model(ngram_model, directory / "ngram")
    texts = [(name, text[:900]) for name, text in topics()[:5]]
    texts[1:1] = [(HOSTILE, HOSTILE + " 日本語 \u202e" * 3)]
    rows = [{"id": name, "text": text} for name, text in texts]
    (directory / "in").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "in" / "a.jsonl").write_text(lines)
    settings = {"id_column": "id", "shard_bytes": 1500}
    tiny.make_shards(directory / "set", directory / "in", ngram_model, RULE, **settings)
    return directory


@pytest.fixture(scope="module")
def url(there) -> Iterator[str]:
    command = [str(JOB), "--port", "0", "--shards", str(there / "set")]
    command += ["--entropy-model", "entropy-1m", str(there / "ngram")]
    # As on a cluster, where the way out leads over a proxy; this one is not there.
    with served(command, http_proxy="http://127.0.0.1:9") as address:
        yield address


@contextmanager
def served(command: list[str], **env: str) -> Iterator[str]:
    """The address of a page that a script serves until the block ends."""
    job = subprocess.Popen(
        [sys.executable, *command],
        env=environment(**env),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    said = job.stdout.readline()
    yield re.search(r"http://\S+", said)[0]
    job.send_signal(signal.SIGINT)
    assert job.wait(20) in (0, 130, -signal.SIGINT)


@pytest.fixture
def watched(browser, url) -> Iterator[Watched]:
    watched = open_page(browser, url)
    yield watched
    assert watched.problems == []
    assert watched.hosts == {url.split("/")[2]}
    assert watched.page.title() == "Entropy patches"
    watched.page.close()


def open_page(browser, url: str, **settings) -> Watched:
    watched = Watched(browser, **settings)
    watched.page.goto(url)
    watched.page.wait_for_selector("#patches .patch")
    return watched


def wait_for_patches(watched: Watched, expected: list[bytes], prefix: str = "") -> None:
    """Until these patches are on the page, each whole character as itself."""
    sizes = [len(patch) for patch in expected]
    watched.page.wait_for_function(
        """([id, sizes]) => {
            const found = [...document.querySelectorAll(`#${id} .patch`)].map(
                patch => parseInt(patch.title.match(/: (\\d+) byte/)[1]));
            return JSON.stringify(found) == JSON.stringify(sizes);
        }""",
        arg=[f"{prefix}patches", sizes],
        timeout=15_000,
    )
    shown = watched.page.locator(f"#{prefix}patches .patch").all_inner_texts()
    whole = [(text, patch) for text, patch in zip(shown, expected, strict=True) if patch.isalnum()]
    assert all(text == patch.decode() for text, patch in whole)


def patches_of(text: str, rule: Patcher, model: str = "entropy-1m") -> list[bytes]:
    """By the library's public parts alone."""
    tokens = torch.tensor([ByteTokenizer().encode(text)])
    h = load_entropy_model(model, device="cpu").entropies(tokens).to(torch.float16)
    lengths = rule.patch_lengths(h, tokens)[0].numpy()
    data = text.encode()
    edges = np.clip(np.concatenate([[0], lengths.cumsum()]) - 1, 0, len(data))
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def put(watched: Watched, selector: str, value: object) -> None:
    field = watched.page.locator(f"{selector} input[type=number]").first
    field.fill(str(value))
    field.press("Tab")


def choose(watched: Watched, selector: str, value: str) -> None:
    watched.page.locator(f"{selector} input").first.click()
    watched.page.get_by_role("option", name=value, exact=True).click()


def test_typing_and_thresholds_give_the_librarys_patches(watched):
    text = "Bytes are 日本語, emoji 👩‍🚀 and the end."
    watched.page.locator("#text textarea").fill(text)
    wait_for_patches(watched, patches_of(text, Patcher(2.0)))
    put(watched, "#threshold", 1.2)
    wait_for_patches(watched, patches_of(text, Patcher(1.2)))
    put(watched, "#longest", 3)
    wait_for_patches(watched, patches_of(text, Patcher(1.2, max_patch_length=3)))
    # What is typed beyond the slider's end is its end, as the slider shows it.
    put(watched, "#threshold", 99)
    wait_for_patches(watched, patches_of(text, Patcher(6.0, max_patch_length=3)))
    put(watched, "#threshold", 1.2)
    wait_for_patches(watched, patches_of(text, Patcher(1.2, max_patch_length=3)))
    counts = watched.page.inner_text("#counts")
    assert f"{len(text.encode())} bytes" in counts and f"{len(text)} characters" in counts
    # By keyboard, one sees where one is.
    for control in ("#threshold input[type=range]", "#reset input[type=checkbox]"):
        watched.page.locator(control).focus()
        outline = watched.page.locator(control).evaluate("e => getComputedStyle(e).outline")
        assert "solid 2px" in outline
    bars = watched.page.locator("#curve .bar")
    assert bars.count() == len(text.encode())
    assert watched.page.locator("#curve .threshold").count() == 1
    # A character that is cut shows its bytes.
    chips = watched.page.locator("#patches .chip").all_inner_texts()
    assert "9F" in chips or "F0" in chips


def test_rules_show_what_they_use(watched):
    text = watched.page.locator("#text textarea").input_value()
    for rule, shown in (
        (Patcher(rule="space"), set()),
        (Patcher(2.0, rule="monotonic"), {"#threshold"}),
        (Patcher(2.0, rule="combined", threshold_add=0.5), {"#threshold", "#rise"}),
        (Patcher(rule="static", patch_size=4.5), {"#size"}),
    ):
        choose(watched, "#rule", rule.rule)
        wait_for_patches(watched, patches_of(text, rule))
        for control in ("#threshold", "#rise", "#size"):
            state = "visible" if control in shown else "hidden"
            watched.page.locator(control).wait_for(state=state)


def test_another_model(watched, there):
    text = watched.page.locator("#text textarea").input_value()
    choose(watched, "#model", str(there / "ngram"))
    wait_for_patches(watched, patches_of(text, Patcher(2.0), str(there / "ngram")))


def test_text_full_of_markup_shows_as_text(watched):
    watched.page.locator("#text textarea").fill(HOSTILE)
    wait_for_patches(watched, patches_of(HOSTILE, Patcher(2.0)))
    shown = "".join(watched.page.locator("#patches .patch").all_inner_texts())
    assert shown == HOSTILE
    assert watched.page.locator("#patches script, #patches img").count() == 0


def test_documents_of_a_shard_set(watched, there):
    documents = list(ShardSet(str(there / "set")))
    page = watched.page
    page.get_by_role("tab", name="Browse").click()
    wait_for_patches(watched, [p for p in documents[0].patches() if p], "browse-")
    page.get_by_role("button", name="next").click()
    wait_for_patches(watched, [p for p in documents[1].patches() if p], "browse-")
    assert HOSTILE in page.inner_text("#browse-where")
    assert "\u202e" not in page.inner_text("#browse-patches")
    assert page.locator("#browse-where script, #browse-where img, #browse-patches img").count() == 0
    page.locator("#sample-id textarea, #sample-id input").first.fill(documents[4].sample_id)
    page.locator("#sample-id textarea, #sample-id input").first.press("Enter")
    wait_for_patches(watched, [p for p in documents[4].patches() if p], "browse-")
    page.locator("#repatch input").check()
    put(watched, "#browse-threshold", 0.4)
    lengths = Patcher(0.4).patch_lengths(torch.from_numpy(documents[4].entropies)[None])[0]
    anew = documents[4]._replace(patch_lengths=lengths.numpy())
    wait_for_patches(watched, [p for p in anew.patches() if p], "browse-")
    assert "patched by: global (threshold 0.4)" in page.inner_text("#browse-where")
    put(watched, "#number", 99)
    page.wait_for_selector("#browse-where .error")
    assert "no document 99: there are 6" in page.inner_text("#browse-where")


@pytest.mark.parametrize("kind", ["phone", "dark"])
def test_on_a_phone_and_in_the_dark(browser, url, kind):
    settings = {"viewport": PHONE} if kind == "phone" else {"color_scheme": "dark"}
    watched = open_page(browser, url, **settings)
    assert watched.overflow() == 0 and watched.problems == []
    script = "e => getComputedStyle(e).{0}.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    patch = watched.page.locator("#patches .patch").first
    text, ground = (patch.evaluate(script.format(of)) for of in ("color", "backgroundColor"))
    assert min(abs(a - b) for a, b in zip(text, ground, strict=True)) > 90
    assert (max(ground) < 150) == (kind == "dark")
    watched.page.close()


def test_a_dark_page_on_a_light_system(browser, url):
    watched = open_page(browser, f"{url}?__theme=dark", color_scheme="light")
    patch = watched.page.locator("#patches .patch").first
    ground = patch.evaluate("e => getComputedStyle(e).backgroundColor.match(/[0-9]+/g).map(Number)")
    assert max(ground) < 150
    watched.page.close()


@pytest.fixture(scope="module")
def space(there) -> Iterator[str]:
    """The page as a Space, with a tokenizer and two models; the code is the Space's own."""
    content = byte_level([text.encode() for _, text in topics()[:5]], 600)
    (there / "small.json").write_bytes(content)
    config = PatchViewerConfig(
        entropy_model=("entropy-1m", str(there / "ngram")), tokenizers=(str(there / "small.json"),)
    )
    write_space(config, str(there / "space"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": ""}
    with served([str(there / "space" / "app.py")], **env):
        assert list((there / "space" / "pipeline" / "viewer").rglob("page.*.pyc"))
        yield f"http://127.0.0.1:{port}/"


COMPARED = "Bytes are 日本語, emoji 👩‍🚀\n\nand tokens <b>are not</b>."
LINK = {"text": COMPARED, "threshold": 1.2, "other": 1, "other-model": "models/ngram"}
LINK |= {"other-rule": "monotonic", "other-threshold": 0.5, "tokenizers": "small"}
UNITS = """row => {
    const titles = [...document.querySelectorAll('.aligned .column')].flatMap(
        column => [...column.children[row].children].map(part => part.title));
    return [...new Set(titles)].map(title => parseInt(title.match(/: (\\d+) byte/)[1]));
}"""


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_a_comparison_from_a_link(browser, space, there, width):
    """Aligned, at any width, as the library and the tokenizer cut the text."""
    viewport, theme = {"width": width, "height": 900}, "light" if width == 768 else "dark"
    watched = Watched(browser, viewport=viewport, color_scheme=theme)
    page = watched.page
    page.goto(f"{space}?{urlencode(LINK)}")
    page.wait_for_selector("#link a[href*=other-model]")
    page.wait_for_selector(".aligned .column .cell:nth-child(3)")
    cuts = [
        patches_of(COMPARED, Patcher(1.2)),
        patches_of(COMPARED, Patcher(0.5, rule="monotonic"), str(there / "ngram")),
        TokenPieces("", (there / "small.json").read_bytes(), "").cut(COMPARED)[1],
    ]
    for row, units in enumerate(cuts):
        assert page.evaluate(UNITS, row) == [len(unit) for unit in units]
        figures = page.locator(f".compared tr:nth-child({row + 2})").inner_text().split("\t")
        kind = "tokens" if row == 2 else "patches"
        mean = f"{len(COMPARED.encode()) / len(units):.3f}"
        assert figures[2:] == [f"{len(units)} {kind}", mean, str(max(map(len, units)))]
    # The same bytes stand under each other, and within the window.
    boxes = page.evaluate("""() => [...document.querySelectorAll('.aligned .column')].map(
        column => [...column.children].map(
            cell => (({left, right}) => [left, right])(cell.getBoundingClientRect())))""")
    assert all(box == column[0] for column in boxes for box in column)
    assert max(column[0][1] for column in boxes) <= width and watched.overflow() == 0
    # A word is divided between lines only if it is longer than one.
    divided = page.evaluate("""() => [...document.querySelectorAll('.aligned .word')].filter(
        word => new Set([...word.children].map(c => c.getBoundingClientRect().top)).size > 1
    ).map(word => word.getBoundingClientRect().width / word.parentElement.clientWidth)""")
    assert all(share > 0.5 for share in divided) and len(divided) < 4
    assert page.locator("#curve svg").count() == 2 and page.locator("#notice").is_hidden()
    # Where curves and the table of figures scroll, a shade says so.
    scrolls = "e => [getComputedStyle(e).background, e.scrollWidth - e.clientWidth]"
    curve, table = (page.locator(each).first.evaluate(scrolls) for each in (".curve", ".compared"))
    assert all("local" in background for background, _ in (curve, table))
    assert (curve[1] > 0) == (width < 1440) and table[1] < 50
    # Each line has its letters beside it.
    letters, lines = page.evaluate("""() => ['.keys > div', '.column'].map(each => [...new Set(
        [...document.querySelectorAll(`.aligned ${each}`)].map(
            e => Math.round(e.getBoundingClientRect().top)))].sort((a, b) => a - b))""")
    assert 3 <= len(lines) <= len(letters)
    assert np.abs(np.subtract(letters[: len(lines)], lines)).max() <= 1
    link = page.locator("#link a").get_attribute("href")
    assert dict(parse_qsl(link[1:])).items() >= {k: str(v) for k, v in LINK.items()}.items()
    assert watched.problems == [] and watched.hosts == {space.split("/")[2]}
    page.close()


def test_a_link_holds_what_was_chosen_and_nothing_that_is_not_there(browser, space):
    bad = {"model": "/etc", "threshold": "99", "text": COMPARED}
    watched = Watched(browser)
    watched.page.goto(f"{space}?{urlencode(bad)}")
    watched.page.wait_for_selector("#notice .error")
    told = watched.page.inner_text("#notice")
    assert "model is '/etc', and has to be one of entropy-1m, models/ngram" in told
    assert "threshold is '99', and has to be a number from -2 to 6" in told
    put(watched, "#threshold", 1.5)
    watched.page.locator("#tokenizers input").first.uncheck()
    wait_for_patches(watched, patches_of(COMPARED, Patcher(1.5)))
    link = watched.page.locator("#link a").get_attribute("href")
    again = open_page(browser, f"{space}{link}")
    wait_for_patches(again, patches_of(COMPARED, Patcher(1.5)))
    assert again.page.locator(".aligned").count() == 0 and again.problems == []
    again.page.locator("#text textarea").fill("日" * 3000)
    again.page.wait_for_function("document.querySelector('#link').innerText.includes('no link')")
    for each in (watched, again):
        each.page.close()


def test_a_document_beside_itself_from_a_link(browser, url, there):
    parameters = {"tab": "browse", "set": str(there / "set"), "document": 4, "repatch": 1}
    parameters |= {"browse-threshold": 0.4, "beside": 1}
    watched = Watched(browser)
    # Questions about settings that the link has changed only in part arrive last, if the browser
    # asks any: that depends on how fast the page is built.
    late = []

    def delay(route) -> None:
        data = json.loads(route.request.post_data)["data"]
        partial = data[:1] == [str(there / "set")] and len(data) > 5 and not all(data[1:3])
        late.append(route) if partial else route.continue_()

    watched.page.route("**/queue/join*", delay)
    watched.page.goto(f"{url}?{urlencode(parameters)}")
    aligned = "#browse-patches .aligned .column .cell:nth-child(2)"
    from playwright.sync_api import TimeoutError as NotYet

    with suppress(NotYet):  # a slow browser may ask nothing else
        watched.page.wait_for_selector(aligned, timeout=15_000)
    for route in late:
        with watched.page.expect_response(lambda response: "queue/join" in response.url):
            route.continue_()
    watched.page.wait_for_selector(aligned)
    watched.page.wait_for_timeout(2000)  # in which they would be answered
    assert watched.page.locator(aligned).count() > 0
    document = list(ShardSet(str(there / "set")))[4]
    lengths = Patcher(0.4).patch_lengths(torch.tensor(document.entropies)[None])[0]
    anew = document._replace(patch_lengths=lengths.numpy())
    for row, patches in enumerate((anew.patches(), document.patches())):
        assert watched.page.evaluate(UNITS, row) == [len(patch) for patch in patches if patch]
    assert watched.page.locator("#browse-curve svg").is_visible() and watched.problems == []
    watched.page.close()


def test_an_address_in_use_is_told():
    from pipeline.viewer.page import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot listen"):
            serve(PatchViewerConfig(port=port), report_url=pytest.fail)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"shards": ("nowhere",)}, "--shards nowhere"),
        ({"entropy_model": ("entropy-1m", "./nowhere")}, "--entropy-model: ./nowhere"),
        ({"shards": ("s3://key:topsecret@bucket/x",)}, "--shards: no credentials in URLs"),
        ({"threshold": 99}, "--threshold: from -2 to 6 nats, got 99"),
    ],
)
def test_wrong_flags_are_told_before_anything_is_served(wrong, said):
    from pipeline.viewer.page import serve

    with pytest.raises(ConfigError, match=said) as raised:
        serve(PatchViewerConfig(port=0, **wrong), report_url=pytest.fail)
    assert "topsecret" not in str(raised.value)


def test_without_gradio_it_says_how_to_get_it(tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('no gradio', name='gradio')")
    env = environment(PYTHONPATH=str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(JOB)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "pip install 'blt-titan[viewer]'" in done.stderr
