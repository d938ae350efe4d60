"""The page of a comparison: its figures against counting by hand, and the page in a browser."""

import itertools
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from rich.console import Console
from support import comparisons
from support.comparisons import BUDGET, CLEAN, arm, results, run

from jobs.compare import print_results
from pipeline.drawing.plots import NARROW
from pipeline.errors import PipelineError
from train.compare.figures import Results, Spread
from train.compare.page import comparison_page, write_page
from train.compare.plots import (
    MARKERS,
    PLOTS,
    draw_costs,
    draw_losses,
    draw_patch_sizes,
    draw_robustness,
)
from train.compare.wording import answer, chance_note, problems, verdict

HOSTILE = "<script>document.title='run'</script><img src=x onerror=document.title='run'>$x$ {{7*7}}"
WIDTHS = (360, 768, 1440)
ENTROPY = [2.30, 2.32, 2.31]


@pytest.fixture
def without_plots(monkeypatch) -> None:
    """The page without its plots, which take most of the time."""
    monkeypatch.setattr("train.compare.page.PLOTS", {})


def pair(ends: list[float], **changes) -> Results:
    """An experiment of two arms, the first of which ends at ENTROPY."""
    first = arm("entropy", [run(seed, end) for seed, end in enumerate(ENTROPY)])
    second = arm("other", [run(seed, end) for seed, end in enumerate(ends)])
    return Results.from_json(results([first, second], **changes))


@pytest.mark.parametrize(
    ("ends", "word", "sentence"),
    [
        (
            [2.29, 2.31, 2.28],
            "lower in all 3 seeds",
            r"0\.0167 bits fewer .*0\.0100 to 0\.0300, in",
        ),
        (
            [2.31, 2.34, 2.32],
            "higher in all 3 seeds",
            r"0\.0133 bits more .*0\.0100 to 0\.0200, in",
        ),
        ([2.29, 2.33, 2.28], "not told apart by these seeds", r"do not .* −0\.0300 to \+0\.0100 "),
        ([2.20, 2.20, 2.31], "not told apart by these seeds", r"do not .* −0\.1200 to \+0\.0000 "),
        ([2.10], "one seed: no range", r"0\.2000 bits fewer .* tells nothing apart"),
        ([], "–", "No seed has finished for both"),
    ],
)
def test_an_arm_wins_only_where_every_seed_says_so(without_plots, ends, word, sentence):
    found = pair(ends)
    differences = found.differences(found.arms[1], CLEAN)
    assert verdict(differences) == word
    (told,) = answer(found)
    assert re.search(sentence, told), told
    expected = {seed: end - ENTROPY[seed] for seed, end in enumerate(ends)}
    assert differences.by_seed == pytest.approx(expected)
    # Nothing else on the page says that an arm is better.
    page = comparison_page(found)
    claims = re.findall(r"(?:lower|higher) in all|bits (?:fewer|more)", page)
    assert len(claims) == (2 if "in all" in word else len(ends) == 1)


def test_a_run_that_diverged_has_finished(without_plots):
    first = [run(seed, 2.3) for seed in range(2)]
    diverged = [run(seed, math.nan) for seed in range(2)]

    def answers(*of_arms: list) -> list[str]:
        arms = [arm(f"arm{i}", runs) for i, runs in enumerate(of_arms)]
        found = Results.from_json(results(arms))
        assert not any(arm.losses(CLEAN) for arm in found.arms[1:]) and comparison_page(found)
        return answer(found)

    (sentence,) = answers(first, diverged)
    assert sentence.endswith("with a loss that is a number: there is nothing to compare.")
    for all_diverged in ([diverged], [diverged, diverged]):
        assert answers(*all_diverged) == [
            "No run has finished with a loss that is a number, so there is no answer."
        ]
    (sentence,) = answers(first[:1], diverged[1:])
    assert "a number" not in sentence and "nothing to compare" in sentence


def test_pairs_are_of_one_seed():
    """Seeds that one arm lacks are compared with nothing."""
    arms = [arm("a", [run(0, 2.0), run(2, 2.5)]), arm("b", [run(2, 2.4), run(1, 1.0)])]
    found = Results.from_json(results(arms))
    assert found.differences(found.arms[1], CLEAN).by_seed == pytest.approx({2: -0.1})
    assert found.missing(found.arms[0]) == [1] and found.missing(found.arms[1]) == [0]


def test_a_range_does_not_depend_on_rounding():
    equal = Spread(dict.fromkeys(range(3), 2.1))
    assert equal.low == equal.mean == equal.high == 2.1
    assert (equal - equal).sign == 0


@pytest.mark.parametrize("seeds", range(1, 6))
def test_how_often_chance_alone_decides(seeds):
    """Two of all ways in which equal arms may come out have all seeds agree."""
    ends = [2.0] * seeds
    runs = [run(seed, end) for seed, end in enumerate(ends)]
    note = chance_note(Results.from_json(results([arm("a", runs), arm("b", runs)])))
    ways = list(itertools.product((-1, 1), repeat=seeds))
    alike = sum(abs(sum(way)) == seeds for way in ways)
    expected = f"in all {seeds} seeds by chance once in {len(ways) // alike} comparisons"
    assert (expected in note) if seeds > 1 else note == ""


def test_what_is_missing_is_named(without_plots):
    arms = [
        arm("whole", [run(seed, 2.3) for seed in range(3)]),
        arm("half", [run(0, 2.3), run(1, 2.2, finished=False)]),
        arm("none", []),
        arm("diverged", [run(0, math.nan), run(1, 2.4), run(2, math.inf)]),
        arm("dear", [run(seed, 2.0) for seed in range(3)], flops_per_byte={"latent": 6.8e5}),
    ]
    arms[4]["runs"][1] |= {"flops": 0.9 * BUDGET}
    found = Results.from_json(results(arms))
    told = problems(found)
    assert told[:3] == [
        "Only 1 of 3 seeds of half patches has finished; missing: 1, 2.",
        "None of the 3 seeds of none patches has finished; missing: 0, 1, 2.",
        "The loss of diverged patches on held out is no number, and is left out of all figures, "
        "with the seeds 0, 2.",
    ]
    assert told[3].startswith("The FLOPs per byte of the arms differ by 3.0 %: whole")
    assert told[4] == "dear patches, seed 1: finished at 3.60 T FLOPs instead of 4.00 T."
    assert len(told) == 5
    page = comparison_page(found)
    assert all(sentence in page for sentence in told) and page.count(">not finished<") == 1
    assert (
        "nan" not in re.sub("<svg.*?</svg>", "", page, flags=re.DOTALL)
        and page.count("<td>no number</td>") == 2
    )
    # An unfinished run is in no figure of the answer.
    assert found.arms[1].losses(CLEAN).by_seed == {0: 2.3}
    assert found.arms[3].losses(CLEAN).by_seed == {1: 2.4}


def test_the_terminal_shows_what_the_page_shows():
    ends = [[2.31, math.nan, 2.33], [math.nan, 2.5, 2.4]]  # which decide about min() and max()
    arms = [
        arm("first", [run(seed, 2.3) for seed in range(3)]),
        *(arm(f"[/{n}]", [run(seed, end) for seed, end in enumerate(ends[n])]) for n in (0, 1)),
    ]
    values, out = results(arms), StringIO()
    print_results(values, Path("compared"), Console(file=out, width=120))
    text = out.getvalue()
    for row in (
        "first patches 2.3000 2.3000 to 2.3000 3 of 3 4.51 660,000",
        "[/0] patches 2.3200 2.3100 to 2.3300 3 of 3 4.51 660,000",
        "[/1] patches 2.4500 2.4000 to 2.5000 3 of 3 4.51 660,000",
    ):
        assert row in [" ".join(line.split()) for line in text.splitlines()]
    told = problems(Results.from_json(values))
    assert len(told) == 2 and all(sentence in text for sentence in told)


def test_the_cost_of_an_entropy_model_may_be_unknown(without_plots):
    unknown = {"entropy_model": "x", "entropy_model_flops_per_byte": None}
    found = Results.from_json(results([arm("a", [run(0, 2.3)], **unknown)]))
    assert found.arms[0].whole_inference_flops is None
    assert "its cost" not in (page := comparison_page(found)) and "the entropies of x" in page
    with drawn(PLOTS["inference"].draw, found) as axes:
        assert sum(bar.get_width() for bar in axes.patches) == 2.2e5


def test_a_whole_experiment_has_no_problems():
    assert problems(Results.from_json(comparisons.whole())) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("seeds"), r"^results: lacks seeds"),
        (lambda r: r.update(arms=[]), "arms must have different names"),
        (lambda r: r.update(arms={}), "arms must be a list, got {}"),
        (lambda r: r["arms"].append(r["arms"][0]), "arms must have different names"),
        (lambda r: r["arms"][0].pop("runs"), "arms 0: lacks runs"),
        (
            lambda r: r["arms"][0]["runs"].append(3),
            "runs 1 must be an object, got 3",
        ),
        (lambda r: r["arms"][0]["runs"].append(run(0, 2.2)), "a has several runs of one seed"),
        (lambda r: r["arms"][0]["runs"][0]["points"][0].pop("step"), "points 0: lacks step"),
        (lambda r: r["held_out"][CLEAN].pop("hash"), "held_out: held out: lacks hash"),
        (
            lambda r: r["arms"][0].update(parameters="many"),
            "parameters must be an integer, got 'many'",
        ),
        (lambda r: r["arms"][0].update(patch_size=True), "patch_size must be a number, got True"),
        (
            lambda r: r["arms"][0]["flops_per_byte"].update(latent=None),
            "byte: latent must be a num",
        ),
        (
            lambda r: r["arms"][0]["runs"][0].update(seconds=None),
            "runs 0: seconds must be a number",
        ),
    ],
)
def test_results_that_are_not_whole_are_named(tmp_path, change, message):
    values = results([arm("a", [run(0, 2.3)])])
    change(values)
    with pytest.raises(PipelineError, match=message):
        write_page(values, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@contextmanager
def drawn(draw, values: Results, **settings) -> Iterator[Axes]:
    figure, axes = plt.subplots(**settings)
    draw(values, axes)
    yield axes
    plt.close(figure)


def test_curves_are_means_with_ranges_of_finished_runs():
    runs = [run(0, 2.3), run(1, 2.5), run(2, 1.0, finished=False)]
    runs[1]["points"].pop(3)  # a validation that only the other run has
    found = Results.from_json(results([arm("a", runs)]))
    with drawn(draw_losses, found) as axes:
        mean, dotted = axes.lines
        both = [[p for p in r["points"] if p["step"] != 400] for r in runs[:2]]
        bits = np.array([[p["bits_per_byte"][CLEAN] for p in points] for points in both])
        assert mean.get_xdata() == pytest.approx([p["flops"] for p in both[0]])
        assert mean.get_ydata() == pytest.approx(bits.mean(0))
        band = axes.collections[0].get_datalim(axes.transData)
        assert band.y0 == pytest.approx(bits.min()) and band.y1 == pytest.approx(bits.max())
        assert dotted.get_linestyle() == ":" and len(dotted.get_xdata()) == 4
        # The end of every run can be seen.
        low, high = axes.get_ylim()
        assert low < dotted.get_ydata()[-1] < high and low < bits[:, -1].min()
    # A run that diverged is in no figure: it neither moves the mean nor cuts it off.
    runs[1]["points"][-1]["bits_per_byte"][CLEAN] = math.nan
    with drawn(draw_losses, Results.from_json(results([arm("a", runs)]))) as axes:
        assert [line.get_linestyle() for line in axes.lines] == ["-", ":", ":"]
        points = [(p["flops"], p["bits_per_byte"][CLEAN]) for p in runs[0]["points"]]
        assert axes.lines[0].get_xydata() == pytest.approx(np.array(points))
        assert len(axes.lines[1].get_xdata()) == 6 and not axes.collections


def test_parts_are_stacked_up_to_all_training_flops():
    found = Results.from_json(comparisons.whole())
    with drawn(draw_costs, found) as axes:
        ends = [0.0] * len(found.arms)
        for bar in axes.patches:
            row = round(bar.get_y() + bar.get_height() / 2)
            assert bar.get_x() == pytest.approx(ends[row])
            ends[row] += bar.get_width()
        assert ends == pytest.approx([each.training_flops for each in found.arms])
        # The transformer of an arm that has no other part is as dark as a latent one.
        first = {bar.get_y(): bar.get_alpha() for bar in reversed(axes.patches)}
        assert set(first.values()) == {1.0}


def test_rises_are_drawn_above_the_clean_text():
    found = Results.from_json(comparisons.whole())
    with drawn(draw_robustness, found) as axes:
        heights = [bar.get_height() for bar in axes.patches]
    factors = (1.0, 1.1, 1.05, 1.6, 1.0)
    expected = [factor * rise for factor in factors for rise in comparisons.NOISE.values()]
    assert heights == pytest.approx(expected)


def test_patch_sizes_have_the_places_that_were_measured():
    found = Results.from_json(comparisons.whole())
    with drawn(draw_patch_sizes, found) as axes:
        points = [line for line in axes.lines if line.get_marker() in MARKERS]
        sizes = [float(point.get_xdata()[0]) for point in points]
        (level,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert sizes == [4.51, 4.5, 5.92, 3.4]
    assert level.get_ydata()[0] == pytest.approx(2.51)


def test_more_arms_than_colours_have_other_lines():
    found = Results.from_json(results([arm(str(i), [run(0, 2.3)]) for i in range(10)]))
    with drawn(draw_losses, found) as axes:
        looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 10


def test_labels_of_many_arms_have_room():
    label = "an arm whose name is rather long for a plot"
    arms = [arm(str(i), [run(0, 2.3)], label=f"{label} {i}") for i in range(10)]
    found = Results.from_json(results(arms))
    with drawn(PLOTS["inference"].draw, found, figsize=NARROW) as axes:
        axes.figure.tight_layout()
        axes.figure.canvas.draw()
        boxes = [each.get_window_extent() for each in axes.get_yticklabels()]
    assert len(boxes) == 10
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (results([arm("a", [run(0, 2.3)])], seeds=[0]), {"losses", "costs", "inference"}),
        (results([arm("a", []), arm("b", [])], held_out={}), {"costs", "inference"}),
    ],
    ids=["one run", "nothing yet"],
)
def test_there_are_plots_of_what_is_known(tmp_path, values, expected):
    write_page(values, tmp_path)
    assert {path.stem for path in tmp_path.glob("*.png")} == expected
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") == 2 * len(expected)  # broad and narrow
    assert "With “a patches”, a byte takes 2.3000 bits." in page or "no answer yet" in page
    assert not plt.get_fignums()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A page of everything, with hostile names."""
    values = comparisons.whole()
    for name in ("title", "question", "command", "version", "hardware"):
        values[name] += f" {HOSTILE}"
    values["notes"] = [HOSTILE]
    for each in values["arms"]:
        each |= {
            "label": f"{each['label']} {HOSTILE}",
            "model": HOSTILE,
            "flags": [HOSTILE],
            "fitted": {HOSTILE: 3},
        }
    folder = tmp_path_factory.mktemp("page")
    with matplotlib.rc_context():
        write_page(values, folder)
    return folder


def test_results_make_the_same_page_again(without_plots, tmp_path):
    values = results([arm("a", [run(0, 2.3), run(1, math.nan)])], "later", "before")
    write_page(values, tmp_path / "one")
    text = (tmp_path / "one" / "results.json").read_text()
    assert "NaN" not in text
    write_page(json.loads(text), tmp_path / "two")
    pages = [(tmp_path / name / "index.html").read_text() for name in ("one", "two")]
    assert pages[0] == pages[1] and "no number" in pages[0]


def test_pictures_for_other_documents(folder):
    for name in PLOTS:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(browser, folder, scheme):
    from support.browser import Watched, check_layout

    watched = Watched(browser, color_scheme=scheme)
    page = watched.page
    page.goto((folder / "index.html").as_uri())
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert watched.overflow() == 0
        check_layout(watched)
        boxes = [plot.bounding_box() for plot in page.locator("section svg:visible").all()]
        assert len(boxes) == len(PLOTS)
        assert all(250 < box["width"] < width and box["height"] > 150 for box in boxes)
    assert watched.problems == [] and watched.hosts == {""}
    assert page.title().endswith(HOSTILE) and page.locator("script, img, iframe").count() == 0
    # The answer comes first, with the figures of each arm in a row.
    rows = page.locator("section").first.locator("table tr").all_inner_texts()
    assert "2.3070" in rows[1] and "2.3010 to 2.3120" in rows[1]
    assert "+0.0657" in rows[2] and "higher in all 3 seeds" in rows[2]
    assert "−0.0030 to +0.0050" in rows[3] and "not told apart by these seeds" in rows[3]
    # Bars and lines take the colours of the page.
    fills = (
        page.locator("svg:visible")
        .nth(4)
        .evaluate("e => [...e.querySelectorAll('path')].map(p => getComputedStyle(p).fill)")
    )
    assert ("rgb(47, 111, 222)" in fills) == (scheme == "light")
    assert ("rgb(110, 160, 255)" in fills) == (scheme == "dark")
    page.close()
