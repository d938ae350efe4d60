"""The viewer as a person uses it: the running job, driven in a real browser."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny
from support.browser import PHONE, Watched
from support.jobs import ROOT, environment, hear_ctrl_c
from support.texts import topics

from model import ByteTokenizer, Patcher, load_entropy_model, save_entropy_model
from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet
from pipeline.viewer.config import PatchViewerConfig
from pipeline.viewer.page import serve

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
    command = [sys.executable, str(JOB), "--port", "0", "--shards", str(there / "set")]
    command += ["--entropy-model", "entropy-1m", str(there / "ngram")]
    # As on a cluster, where the way out leads over a proxy; this one is not there.
    env = environment(http_proxy="http://127.0.0.1:9")
    job = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    said = job.stdout.readline()
    yield re.search(r"http://\S+", said)[0]
    job.send_signal(signal.SIGINT)
    assert job.wait(20) in (0, 130)


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


def test_what_cannot_be_served_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, str(JOB), "--port", str(port)]
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and f"--port {port}: cannot listen" in done.stderr


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
