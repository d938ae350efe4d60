"""The page of a comparison: ``index.html``, its results as JSON, its plots as PNG files.

Its words are in ``page.html.j2``, and in :mod:`train.compare.wording` if they depend on results.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.drawing.page import render_page
from pipeline.drawing.plots import plot_png, plot_svg
from pipeline.storage.checked_json import strict_json
from pipeline.storage.output import OutputDirectory
from train.compare.figures import Results
from train.compare.plots import PLOTS
from train.compare.wording import (
    MISSING,
    answer,
    chance_note,
    difference_of,
    format_flops,
    in_words,
    last_loss,
    mean_words,
    patch_size,
    problems,
    range_words,
    verdict,
)

PAGE, DATA = "index.html", "results.json"


def write_page(results: Mapping[str, Any], folder: Path) -> None:
    """Write the results, the plots and, last, the page, which needs no other file.

    Args:
        results: the content of ``results.json``; see :class:`train.compare.figures.Results`. An
            experiment that has not finished gets a page that says what is missing.
        folder: it and those above it are made where they are not there.

    Raises:
        PipelineError: the results lack something, or a file cannot be written.
    """
    read = Results.from_json(results)
    output = OutputDirectory(str(folder))
    # The order of keys has a meaning: the first held-out text is the one that curves show.
    output.write(DATA, json.dumps(strict_json(results), indent=1, allow_nan=False).encode())
    for name, each in PLOTS.items():
        if each.applies(read):
            output.write(f"{name}.png", plot_png(each, read, legend=False))
    output.write(PAGE, comparison_page(read).encode())


def comparison_page(results: Results) -> str:
    """The page: one file with everything in it. Whatever the results hold shows as text."""
    plots = [
        (name, each.title, Markup(plot_svg(each, results, legend=False)))
        for name, each in PLOTS.items()
        if each.applies(results)
    ]
    filters = {
        "flops": format_flops,
        "mean": mean_words,
        "range": range_words,
        "verdict": verdict,
        "last_loss": last_loss,
        "difference_of": difference_of,
        "patch_size": patch_size,
        "in_words": in_words,
    }
    return render_page(
        Path(__file__).with_name("page.html.j2"),
        filters,
        results=results,
        answer=answer(results),
        chance_note=chance_note(results),
        problems=problems(results),
        plots=plots,
        missing=MISSING,
    )
