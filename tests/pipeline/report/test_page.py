"""Reports: figures against counting by hand, and the page in a real browser."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from support import tiny
from support.texts import topics, write_jsonl
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from model import NGramEntropyModel, Patcher
from model.blt_config import BLT_SIZES
from model.flops import flops_per_byte, transformer_flops
from model.tokenizer import encode_documents
from pipeline.errors import ConfigError, PipelineError
from pipeline.report.bpe import evenly_spaced, load_tokenizer, tokenizer_figures
from pipeline.report.compare import compare_sets
from pipeline.report.figures import EntropyFigures, FlopsFigures, SetFigures
from pipeline.report.page import Report
from pipeline.report.plots import PLOTS, Plot, coloured, draw_entropies, label, png, svg
from pipeline.report.set_counts import Provenance, SetCounts, merge_sets, read_counts
from pipeline.report.set_figures import set_figures
from pipeline.report.wording import explanation
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import ENTROPY_BIN
from pipeline.statistics.threshold_curve import ThresholdCurve
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory

HOSTILE = "<script>document.title='run'</script><img src=x onerror=document.title='run'>$x$ {{7*7}}"
TARGETS = (2.0, 4.5)


def figures_of(counts: SetCounts) -> SetFigures:
    return set_figures(counts, targets=TARGETS, context_bytes=8192)


def shard_set(directory: Path, model: NGramEntropyModel, rule: Patcher, parts: list) -> ShardSet:
    """Several input files, so several shards; with a metadata column."""
    for i, part in enumerate(parts):
        path = write_jsonl(directory / "in" / f"{i}.jsonl", part)
        lines = [json.loads(line) for line in path.read_text().splitlines() if line]
        tagged = [{**line, "language": ("en", None)[j % 2]} for j, line in enumerate(lines)]
        bad = ['{"id": "x"}', "{broken 17"] if i == 0 else []
        path.write_text("\n".join([*map(json.dumps, tagged), *bad]) + "\n")
    settings = {"id_column": "id", "keep_columns": ("language",)}
    return tiny.make_shards(directory / "set", directory / "in", model, rule, **settings)


@pytest.fixture(scope="module")
def parts() -> list[list[tuple[str, str]]]:
    texts = [(name, text[:3000]) for name, text in topics()[:20]]
    other = [("рус", "Привет, мир! " * 40), (HOSTILE, HOSTILE * 3), ("none", ""), ("é", "é" * 99)]
    return [texts[:8], texts[8:12] + other, texts[12:]]


@pytest.fixture(scope="module")
def model(parts) -> NGramEntropyModel:
    return NGramEntropyModel.fit([encode_documents([t.encode() for p in parts for _, t in p])])


@pytest.fixture(scope="module")
def shards(parts, model, tmp_path_factory) -> ShardSet:
    return shard_set(tmp_path_factory.mktemp("report"), model, Patcher(1.0), parts)


@pytest.fixture(scope="module")
def figures(shards) -> SetFigures:
    return figures_of(read_counts("set", shards))


@pytest.mark.parametrize(
    "rule",
    [
        Patcher(1.0),
        Patcher(0.4, rule="monotonic"),
        Patcher(0.5, rule="combined", threshold_add=0.1),
    ],
)
def test_the_curve_is_that_of_patching_everything_again(parts, model, rule, tmp_path):
    shards = shard_set(tmp_path, model, rule, parts[:2])
    found = figures_of(read_counts("set", shards))
    documents = list(shards)
    h = torch.from_numpy(np.concatenate([document.entropies for document in documents]))
    lengths = torch.tensor([len(document.entropies) for document in documents])
    size = sum(len(document.text.encode()) for document in documents)

    def mean(threshold: float) -> float:
        cut = replace(rule, threshold=threshold)
        return size / len(cut.patch_lengths_flat(h, lengths)[0])

    curve = found.curve
    assert len(curve.thresholds) > 100
    assert curve.mean_patch_bytes == list(map(mean, curve.thresholds))
    assert found.mean_patch_bytes == pytest.approx(mean(rule.threshold))
    for suggested in found.suggested:
        assert suggested.mean_patch_bytes == mean(suggested.threshold)


def test_figures_are_those_of_a_loop_over_the_documents(shards, figures, parts):
    documents = list(shards)
    lengths = np.concatenate([document.patch_lengths for document in documents])
    assert figures.documents == len(documents) == sum(map(len, parts))
    assert figures.patches == len(lengths)
    counts = dict(zip(*map(np.ndarray.tolist, np.unique(lengths, return_counts=True)), strict=True))
    assert figures.patch_lengths.counts == counts
    median = np.sort(lengths)[(len(lengths) - 1) // 2]
    assert figures.patch_lengths.percentiles[50] == median
    exact = np.concatenate([document.entropies for document in documents]).astype(float).mean()
    assert figures.mean_entropy == pytest.approx(exact, abs=0.01)
    scripts = {row.name: row.documents for row in figures.scripts}
    assert scripts == {"Latin": len(documents) - 2, "Cyrillic": 1, "(no letters)": 1}
    language = {row.name: row.documents for row in figures.columns["language"]}
    assert language == {"en": 12, "(none)": 12}
    sources = {row.name: row.bytes for row in figures.sources}
    sizes = [sum(len(text.encode()) for _, text in part) for part in parts]
    assert sources == {f"{i}.jsonl": size for i, size in enumerate(sizes)}
    assert len(figures.drift) == figures.shards == 3
    assert figures.rejects.count == 2
    assert sorted(figures.rejects.reasons.values()) == [1, 1]
    assert figures.longest[0].measure == max(
        len(patch) for document in documents for patch in document.patches()
    )


def test_merged_sets_are_the_set_of_all_their_documents(shards, figures, parts, model, tmp_path):
    apart = [shard_set(tmp_path / str(i), model, Patcher(1.0), [p]) for i, p in enumerate(parts)]
    merged = figures_of(merge_sets(read_counts(str(i), one) for i, one in enumerate(apart)))
    differ = ("name", "url", "sources", "drift", "rejects", "shard_bytes")
    assert replace(merged, **{key: getattr(figures, key) for key in differ}) == figures
    assert sorted(row.name for row in merged.sources) == ["0", "1", "2"]
    assert merged.rejects.count == 6 and merged.name == "3 sets"


def made_by_another(counts: SetCounts) -> Provenance:
    return replace(counts.provenance, entropy_model={"fingerprint": "f" * 64})


def test_sets_of_different_rules_are_not_merged(shards, parts, model, tmp_path):
    other = shard_set(tmp_path, model, Patcher(rule="space"), parts[:1])
    with pytest.raises(ConfigError, match=r"the rule of .* is global .* is space; without --me"):
        merge_sets([read_counts("a", shards), read_counts("b", other)])
    one = read_counts("a", shards)
    by_another = replace(one, provenance=made_by_another(one))
    with pytest.raises(ConfigError, match=r"the entropy model of .* is tiny .* is fingerprint ff"):
        merge_sets([one, by_another])
    # Where entropies place no boundary, it is the same whose they are.
    spaces = read_counts("b", other)
    other_model = replace(spaces, name="c", provenance=made_by_another(spaces))
    assert merge_sets([spaces, other_model]).name == "2 sets"


def test_merged_sets_with_different_thresholds_are_named_as_such(shards, parts, model, tmp_path):
    other = shard_set(tmp_path / "other", model, Patcher(1.6), parts[:1])
    merged = figures_of(merge_sets([read_counts("a", shards), read_counts("b", other)]))
    page = Report([merged], 8192, recomputed=False).page()
    assert "The merged sets have different thresholds." in page and "different ones" in page
    assert "has no threshold" not in page and "those of the global rule" not in page


def test_the_advice_on_thresholds_is_that_of_the_curve(shards, parts, model, tmp_path):
    (found,) = [figures_of(read_counts("set", shards))]
    best = found.suggested[0]
    size = f"{best.mean_patch_bytes:.2f} bytes on average"
    advice = f"of {size}, use a threshold of {best.threshold!r} nats."
    assert abs(found.mean_patch_bytes - 2) > 0.2 and advice in explanation(found)
    # Where patches are split, thresholds do other things than the curve tells.
    cut = shard_set(tmp_path, model, Patcher(1.0, max_patch_length=3), parts[:1])
    figures = figures_of(read_counts("cut", cut))
    assert "or the patch before has 3 tokens" in explanation(figures)
    assert "use a threshold" not in explanation(figures)
    page = Report([figures], 8192, recomputed=False).page()
    assert page.count("Splits at max_patch_length are left out") == 1
    assert "A new patch follows each token" not in page


def test_a_threshold_that_comes_no_nearer_is_no_advice(shards):
    found = figures_of(read_counts("set", shards))
    same = replace(found.suggested[0], mean_patch_bytes=found.mean_patch_bytes)
    assert "use a threshold" in explanation(found)
    stuck = replace(found, suggested=[same, *found.suggested[1:]])
    assert "use a threshold" not in explanation(stuck)


def test_a_set_without_documents_changes_nothing_of_what_it_is_merged_with(shards, model, tmp_path):
    nothing = shard_set(tmp_path, model, Patcher(1.0), [[]])
    curve = ThresholdCurve(10, np.float32([1, 2]), np.array([5, 2]))
    one = replace(read_counts("set", shards), curve=curve)
    none = read_counts("none", nothing)
    for both in ([one, none], [none, one]):
        assert merge_sets(both).curve == curve


def test_groups_have_no_mean_entropy_where_some_entropies_are_not_stored(shards):
    one = read_counts("set", shards)
    half = replace(one.statistics, entropies=one.statistics.entropies // 2)
    found = figures_of(replace(one, statistics=half))
    assert found.scripts[0].mean_entropy is None and found.mean_entropy > 0
    assert "Only text whose entropies are stored" in Report([found], 8192, recomputed=True).page()


def test_figures_of_columns_with_many_values_are_called_lower_bounds(shards, model, tmp_path):
    """More values than a shard counts separately; each occurs twice, so that it is a group."""
    texts = [(f"{i % 300}", "a word ") for i in range(600)]
    write_jsonl(tmp_path / "in" / "a.jsonl", texts)
    settings = {"id_column": "id", "keep_columns": ("id",)}
    many = tiny.make_shards(tmp_path / "set", tmp_path / "in", model, Patcher(1.0), **settings)
    found = figures_of(read_counts("many", many))
    assert found.columns_in_part == ["id"]
    assert "a shard counts the 256 repeated values" in Report([found], 1, False).page()
    few = figures_of(read_counts("set", shards))
    assert few.columns_in_part == [] and "lower bounds" not in Report([few], 1, False).page()


def test_flops_are_those_of_the_papers_formulas(shards, figures):
    size = figures.mean_patch_bytes
    for row in figures.flops:
        expected = flops_per_byte(BLT_SIZES[row.size], patch_size=size, context=8192)
        assert row.inference == pytest.approx(expected)  # an n-gram model costs nothing
        assert row.training == pytest.approx(3 * expected)


def test_an_entropy_model_that_nobody_named_costs_nobody_knows_what(shards):
    counts = read_counts("set", shards)

    def rows(**known: float) -> tuple[list[FlopsFigures], str]:
        provenance = replace(counts.provenance, entropy_model={"column": "h", **known})
        found = figures_of(replace(counts, provenance=provenance))
        return found.flops, Report([found], 8192, recomputed=False).page()

    (unknown, page), (named, other) = rows(), rows(flops_per_byte=5e6)
    assert unknown[0].entropy_model is None and named[0].entropy_model == 5e6
    assert unknown[0].inference == pytest.approx(named[0].inference - 5e6)
    assert "its cost is not known, and is left out." in page and "not known" not in other


def test_report_json_keeps_its_keys(figures):
    values = figures.to_json()
    assert list(values) == [
        *("name", "url", "documents", "bytes", "tokens", "scored_tokens", "patches", "shards"),
        *("shard_bytes", "mean_patch_bytes", "mean_entropy", "rule", "threshold"),
        *("thresholds_differ", "max_patch_length", "made", "patch_lengths", "entropies", "curve"),
        *("curve_has_cuts", "suggested", "scripts", "columns", "columns_in_part", "sources"),
        *("drift", "longest", "shortest", "rejects", "problems", "runs", "tokenizer", "flops"),
        *("so_far", "held_out"),
    ]
    assert list(values["made"]) == ["patcher", "entropy_model", "configuration"]
    assert list(values["patch_lengths"]["percentiles"]) == ["1", "10", "50", "90", "99"]
    row = ["name", "documents", "bytes", "patches", "mean_patch_bytes", "mean_entropy"]
    assert list(values["scripts"][0]) == row
    assert list(values["drift"][0]) == ["shard", "bytes", "mean_patch_bytes"]
    # Without a tokenizer there is nothing of one.
    assert list(values["flops"][0]) == ["size", "parts", "entropy_model", "inference", "training"]
    assert json.loads(to_json(values)) == values


@pytest.fixture(scope="module")
def tokenizer(parts, tmp_path_factory) -> Path:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([text for part in parts for _, text in part], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bpe.save(str(path))
    return path


def test_a_bpe_tokenizer_is_run_on_the_same_text(shards, tokenizer, tmp_path):
    # What it was saved with, and would do to a batch: it is text that counts.
    saved = Tokenizer.from_file(str(tokenizer))
    saved.enable_truncation(20)
    saved.enable_padding(length=500)
    saved.save(str(tmp_path / "tokenizer.json"))
    found, problems = tokenizer_figures("bpe", load_tokenizer(str(tmp_path)), [shards])
    assert found is not None and not problems
    bpe = Tokenizer.from_file(str(tokenizer))
    texts = [document.text for document in shards]
    tokens = sum(len(bpe.encode(text, add_special_tokens=False).ids) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert (found.vocabulary, found.sample_bytes) == (600, size)
    assert found.bytes_per_token == size / tokens
    counted = read_counts("set", shards)
    row = set_figures(counted, targets=TARGETS, context_bytes=8192, tokenizer=found).flops[1]
    shape = BLT_SIZES[row.size]
    context = 8192 * tokens / size
    token = transformer_flops(shape.n_layers_global, shape.dim_global, context, 600)
    assert row.bpe.inference == pytest.approx(token * tokens / size)


def test_a_tokenizers_sample_is_from_everywhere(shards, parts, tokenizer, model, tmp_path):
    bpe = load_tokenizer(str(tokenizer))
    other = shard_set(tmp_path, model, Patcher(1.0), [[("z", "ж" * 999)], parts[0]])
    one, _ = tokenizer_figures("bpe", bpe, [shards])
    two, _ = tokenizer_figures("bpe", bpe, [shards, other])
    assert two.sample_bytes == one.sample_bytes + other.statistics.bytes
    for count in (1, 15, 16, 17, 31, 32, 47, 1000):
        places = evenly_spaced(range(count), 16)
        assert len(places) == min(count, 16) and places[0] == 0
        assert count - places[-1] <= -(-count // 16)
    gone = next((tmp_path / "set" / "shards").iterdir())
    gone.unlink()
    left, (problem,) = tokenizer_figures("bpe", bpe, [other])
    assert left is not None and f"{gone}: cannot be read" in problem
    assert tokenizer_figures("bpe", bpe, []) == (None, [])


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_tokenizer_that_cannot_be_read_is_named(shards, tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"--tokenizer {tmp_path}"):
        load_tokenizer(str(tmp_path))


def test_for_a_set_of_an_earlier_release_the_error_names_recompute(shards, tmp_path):
    manifest = {k: v for k, v in shards.manifest.items() if k != "summary"}
    OutputDirectory(str(tmp_path)).write("manifest.json", to_json(manifest))
    with pytest.raises(PipelineError, match="--recompute"):
        read_counts("old", ShardSet(str(tmp_path)))


@pytest.fixture(scope="module")
def pages(shards, parts, model, tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Reports of one set, of two, and of one with nothing in it; all with hostile names."""
    directory = tmp_path_factory.mktemp("pages")
    other = shard_set(directory / "other", model, Patcher(1.6), parts[:2])
    empty = shard_set(directory / "empty", model, Patcher(1.6), [[]])
    bpe, _ = tokenizer_figures(HOSTILE, load_tokenizer(str(tokenizer)), [shards])
    found = {}
    for name, sets in {"one": [shards], "two": [shards, other], "empty": [empty]}.items():
        all_figures = []
        for number, of_set in enumerate(sets):
            counted = replace(read_counts(f"{HOSTILE} {number}", of_set), problems=[HOSTILE])
            with_bpe = set_figures(counted, targets=TARGETS, context_bytes=8192, tokenizer=bpe)
            all_figures.append(with_bpe)
        report = Report(all_figures, 8192, recomputed=False)
        report.write(OutputDirectory(str(directory / name)))
        found[name] = directory / name / "index.html"
    return found


def test_a_page_on_the_agreement_of_sets_without_text(model, tmp_path):
    sets = [shard_set(tmp_path / name, model, Patcher(1.0), [[("a", "")]]) for name in "ab"]
    agreement = compare_sets(list(zip("ab", sets, strict=True)), None, 9, Console(quiet=True))
    all_figures = [figures_of(read_counts("set", one)) for one in sets]
    page = Report(all_figures, 8192, False, agreement).page()
    assert "1 are in both" in page and "nan" not in page.lower().split()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_agreement_in_a_browser(browser, shards, parts, tmp_path, scheme):
    from support.browser import Watched, check_layout

    # Of another model, or equal sizes would be equal patches.
    texts = [text.encode() for _, text in parts[0]]
    another = NGramEntropyModel.fit([encode_documents(texts)], order=3)
    other = shard_set(tmp_path, another, Patcher(1.6), parts[1:])
    names = [f"{HOSTILE} {i}" for i in range(2)]
    named = list(zip(names, (shards, other), strict=True))
    agreement = compare_sets(named, None, 300, Console(quiet=True))
    sets = [figures_of(read_counts(*each)) for each in named]
    Report(sets, 8192, False, agreement).write(OutputDirectory(str(tmp_path / "out")))
    for width in (360, 768, 1440):
        viewport = {"width": width, "height": 900}
        watched = Watched(browser, viewport=viewport, color_scheme=scheme)
        page = watched.page
        page.goto((tmp_path / "out" / "index.html").as_uri())
        assert watched.problems == [] and watched.hosts == {""} and watched.overflow() == 0
        check_layout(watched)
        assert page.title() != "run" and page.locator("script, img, iframe").count() == 0
        section = page.locator("section", has=page.locator("h2", has_text="Agreement of")).first
        (found,) = agreement
        examples = section.locator(".excerpt").all()
        assert len(examples) == len(found.typical) + len(found.unlike) > 3
        # One above the other, the same text, and marks where one alone starts a patch.
        same = 0
        for example in examples:
            above, below = example.locator(".patches").all()
            assert above.bounding_box()["y"] < below.bounding_box()["y"]
            same += above.inner_text() == below.inner_text()
        assert same > 1  # in others, a patch starts within a character
        marked = section.locator(".patch.marked")
        assert marked.count() > 0
        shadow = marked.first.evaluate("e => getComputedStyle(e).boxShadow")
        assert ("179, 38, 30" in shadow) == (scheme == "light")
        assert f"{found.equal_size.total.f1:.3f}" in section.inner_text()
        page.close()


@pytest.mark.parametrize("name", ["one", "two", "empty"])
@pytest.mark.parametrize("kind", ["desktop", "phone", "dark"])
def test_pages_in_a_browser(browser, pages, name, kind):
    from support.browser import PHONE, Watched, check_layout

    settings = {"phone": {"viewport": PHONE}, "dark": {"color_scheme": "dark"}}.get(kind, {})
    watched = Watched(browser, **settings)
    page = watched.page
    page.goto(pages[name].as_uri())
    assert watched.problems == [] and watched.hosts == {""}
    assert watched.overflow() == 0
    # Nothing of a document became part of the page.
    assert page.title() != "run" and page.locator("script, img, iframe").count() == 0
    assert HOSTILE in page.inner_text("body")
    boxes = [plot.bounding_box() for plot in page.locator("section svg:visible").all()]
    assert len(boxes) == (0 if name == "empty" else len(PLOTS))
    for table in ("By the column language", "By source"):
        assert page.get_by_role("heading", name=table).count() == (name != "empty")
    assert all(box["width"] > 250 and box["height"] > 150 for box in boxes)
    check_layout(watched)
    dark = [channel < 80 for channel in colour(page, "background-color")]
    assert all(dark) == (kind == "dark") and any(dark) == (kind == "dark")
    contrast = np.subtract(colour(page, "color"), colour(page, "background-color"))
    assert np.abs(contrast).min() > 150
    if kind == "dark" and name == "two":  # On paper it is light, and nothing hides behind an edge.
        page.emulate_media(media="print")
        assert min(colour(page, "color")) < 60 and max(colour(page, "color")) < 80
        clipped = "e => getComputedStyle(e).overflowX"
        assert {wide.evaluate(clipped) for wide in page.locator(".wide").all()} == {"visible"}
        printed = "e => getComputedStyle(e).printColorAdjust"
        assert page.locator(".patch").first.evaluate(printed) == "exact"
    page.close()


def colour(page, of: str) -> list[int]:
    script = "name => getComputedStyle(document.body).getPropertyValue(name).match(/\\d+/g)"
    return list(map(int, page.evaluate(script, of)[:3]))


def test_the_page_shows_patches_and_marks_thresholds(browser, pages, figures):
    from support.browser import Watched

    watched = Watched(browser)
    watched.page.goto(pages["one"].as_uri())
    excerpts = watched.page.locator(".patches").all()
    assert len(excerpts) == len(figures.longest) + len(figures.shortest)
    longest = excerpts[0].locator(".patch").all()
    assert len(longest) == len(figures.longest[0].patch_bytes)
    painted = {patch.evaluate("e => getComputedStyle(e).backgroundColor") for patch in longest}
    assert len(painted) == min(len(longest), 4)
    text = watched.page.inner_text("body")
    for suggested in figures.suggested:
        assert str(suggested.threshold) in text
    # Curves take the page's colours: there is one painted, and lines at both kinds of threshold.
    plot = watched.page.locator("svg:visible").first
    strokes = plot.evaluate(
        "e => [...e.querySelectorAll('path')].map(p => getComputedStyle(p).stroke)"
    )
    assert "rgb(47, 111, 222)" in strokes
    watched.page.close()


def test_plots_are_pictures(figures):
    for name in PLOTS:
        assert png(name, [figures])[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_bar_of_entropies_is_cut_off_where_there_is_a_lower_one(figures):
    def drawn(counts: list[int]) -> tuple[float, int]:
        axes = plt.figure().add_subplot()
        told = EntropyFigures(ENTROPY_BIN, counts)
        draw_entropies([replace(figures, entropies=told, threshold=None)], axes)
        plt.close("all")
        return axes.get_ylim()[1], len(axes.texts)

    assert drawn([0, 90, 10]) == (pytest.approx(11.5), 1)
    # Where all entropies are in one bin, nothing would be too low to see.
    for counts in ([7], [0, 0, 7]):
        assert drawn(counts) == (pytest.approx(115), 0)


def test_a_new_plot_is_one_entry_of_the_table(figures, monkeypatch, tmp_path):
    def draw_shard_bytes(sets: Sequence[SetFigures], axes: Axes) -> None:
        for of_set, colour in coloured(sets):
            axes.plot([shard.bytes for shard in of_set.drift], color=colour, label=label(of_set))

    monkeypatch.setitem(PLOTS, "shard-bytes", Plot("Text in each shard", draw_shard_bytes))
    report = Report([figures, replace(figures, name="other")], 8192, recomputed=False)
    report.write(OutputDirectory(str(tmp_path)))
    assert (tmp_path / "shard-bytes.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (tmp_path / "index.html").read_text()
    (plot,) = re.findall(
        "<h2>Text in each shard</h2><div class=.plot.>(<svg.*?</svg>)", page, re.DOTALL
    )
    assert "var(--series0)" in plot and "var(--series1)" in plot and "other" in plot


@pytest.mark.parametrize("name", ["_under", "a" * 300, "数据 <b> #010205", "\x1b[31m\n$x^"])
def test_names_of_sets_are_in_legends_and_break_nothing(figures, name, recwarn):
    pictures = [svg("drift", [replace(figures, name=text), figures]) for text in ("plain", name)]
    size = [re.search(r'viewBox="([^"]*)"', picture)[1] for picture in pictures]
    assert size[0] == size[1] and not recwarn.list
    assert escape(name.split()[0][:11], quote=False) in pictures[1]
    assert "#0102" not in pictures[1].replace(escape(name, quote=False), "")
    nothing = replace(figures, flops=[], name="nothing")
    assert "--series1" in svg("flops", [nothing, figures])


def test_a_page_holds_no_control_characters(figures):
    group = replace(figures.scripts[0], name="\0\x1b[31mred\udce9")
    told = replace(figures, scripts=[group])
    page = Report([told], 8192, recomputed=False).page()
    assert "��[31mred?" in page and not re.search("[\0-\x08\x0b-\x1f]", page)
