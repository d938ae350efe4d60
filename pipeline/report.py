"""Figures → index.html, report.json and PNG plots."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from pipeline.excerpts import Excerpt
from pipeline.groups import MOST_GROUPS, OTHERS
from pipeline.patch_html import PATCHES_CSS, patches_html
from pipeline.report_data import TokenizerFigures
from pipeline.report_plots import PLOTS, png, svg
from pipeline.storage import OutputDirectory, to_json

PAGE, DATA = "index.html", "report.json"
BAR_PIXELS = 90
"""Of the largest group of a table."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Figures of one set, or of several that are compared."""

    sets: Sequence[Figures]
    """As :func:`pipeline.report_data.set_figures` gives them."""
    tokenizer: TokenizerFigures | None
    context_bytes: int
    """Of a sequence, for the FLOPs of attention."""
    recomputed: bool
    """Whether the shards were read, or their manifests only."""

    def to_json(self) -> Figures:
        """What report.json holds."""
        tokenizer = None if self.tokenizer is None else vars(self.tokenizer)
        return vars(self) | {"tokenizer": tokenizer}

    def overview(self) -> list[tuple[str, list[str]]]:
        """In brief: a label, and a cell for each set."""
        return _overview(self.sets)

    def write(self, output: OutputDirectory) -> None:
        """Write the plots, the figures as JSON, and, last, the page.

        Raises:
            PipelineError: a file cannot be written.
        """
        for name in PLOTS:
            output.write(f"{name}.png", png(name, self.sets))
        output.write(DATA, to_json(self.to_json()))
        output.write(PAGE, self.page().encode())

    def page(self) -> str:
        """One file with everything in it. Whatever text the figures hold shows as text."""
        sets = self.sets
        with_flops: list[Figures] = next((f["flops"] for f in sets if f["flops"]), [])
        template = _environment().get_template("report.html.j2")
        return template.render(
            sets=sets,
            overview=self.overview(),
            titles={name: title for name, (title, _) in PLOTS.items()},
            plots={name: Markup(svg(name, sets)) for name in PLOTS},
            targets=[suggested["target"] for suggested in sets[0]["suggested"]],
            curve_note=_curve_note(sets),
            groups=_group_tables(sets),
            sizes=[row["size"] for row in with_flops],
            bpe=[row.get("bpe") for row in with_flops],
            tokenizer=self.tokenizer,
            context_bytes=self.context_bytes,
            recomputed=self.recomputed,
            patches_css=Markup(PATCHES_CSS),
        )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "si": si,
        "nats": nats,
        "why": why,
        "patches": _patches,
        "tojson_pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    }
    return environment


def _patches(excerpt: Figures) -> Markup:
    return Markup(patches_html(Excerpt(**excerpt).patches()))


si = EngFormatter(places=2, sep=" ")
"""A number with a prefix: 1.50 M; the unit comes right behind."""


def why(figures: Figures) -> str:
    """A sentence on why patches are as long as they are."""
    if not figures["patches"]:
        return "There is no text in it."
    rule, threshold = figures["rule"], figures["threshold"]
    if figures["thresholds_differ"]:
        return "Its sets were cut at different thresholds."
    if threshold is None:
        return f"The {rule} rule has no threshold."
    tokens = figures["bytes"] + 2 * figures["documents"]
    starts = 100 * figures["patches"] / tokens
    compared = {"monotonic": "rises by more than", "combined": "exceeds (and rises enough)"}
    said = compared.get(rule, "exceeds")
    mean = figures["mean_entropy"]
    sentence = (
        f"A patch starts after {starts:.1f} % of tokens: where the entropy {said} the threshold, "
        f"{threshold:.4g} nats" + ("." if mean is None else f"; the mean entropy is {mean:.2f}.")
    )
    nearest = figures["suggested"][0]
    if nearest["threshold"] is not None:
        target, reached = nearest["target"], figures["mean_patch_bytes"]
        if abs(reached - target) > 0.1 * target:
            longer = "longer" if reached < target else "shorter"
            sentence += (
                f" For {longer} patches, {nearest['mean_patch_bytes']:.2f} bytes each, "
                f"take {nearest['threshold']:.4g}."
            )
    return sentence


def _overview(sets: Sequence[Figures]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: a label, and a cell for each set."""

    def row(label: str, cell: Any) -> tuple[str, list[str]]:
        return label, [cell(figures) for figures in sets]

    def lengths(figures: Figures) -> str:
        found = figures["patch_lengths"]["percentiles"]
        return ", ".join(f"{found[p]} ({p} %)" for p in ("10", "50", "90", "99"))

    return [
        row("rule", lambda f: f["rule"]),
        row("threshold (nats)", _threshold),
        row("entropy model", lambda f: str(f["made"]["entropy_model"].get("source", "unknown"))),
        row("mean bytes a patch", lambda f: f"{f['mean_patch_bytes']:.3f}"),
        row("patch lengths (tokens)", lengths),
        row("mean entropy (nats)", lambda f: nats(f["mean_entropy"])),
        row("documents", lambda f: f"{f['documents']:,}"),
        row("mean bytes a document", lambda f: f"{f['bytes'] / max(f['documents'], 1):,.0f}"),
        row("rejected documents", lambda f: f"{f['rejects']['count']:,}"),
        row("shards", lambda f: f"{f['shards']:,}, {si(f['shard_bytes'])}B"),
        row("patching", _throughput),
        row("where", lambda f: f["url"]),
    ]


def nats(value: float | None) -> str:
    """An entropy; shards that are counted anew may hold none."""
    return "none stored" if value is None else f"{value:.3f}"


def _threshold(figures: Figures) -> str:
    if figures["thresholds_differ"]:
        return "they differ"
    return "none" if figures["threshold"] is None else repr(figures["threshold"])


def _throughput(figures: Figures) -> str:
    runs = figures["runs"]
    if not runs:
        return "time not recorded"
    done, seconds = (sum(run[name] for run in runs) for name in ("bytes", "seconds"))
    cpus, gpus = (max(run[name] for run in runs) for name in ("cpus", "gpus"))
    devices = f"{gpus:g} GPUs" if gpus else f"{cpus:g} CPUs"
    times = f", {len(runs)} runs" if len(runs) > 1 else ""
    return f"{si(done / max(seconds, 1e-9))}B/s on {devices} ({seconds:,.1f} s{times})"


def _curve_note(sets: Sequence[Figures]) -> str:
    notes = []
    if any(f["threshold"] is None and not f["thresholds_differ"] for f in sets):
        notes.append(" Where a rule has no threshold: what the global rule would give.")
    if any(f["max_patch_length"] and not f["curve_has_cuts"] for f in sets):
        notes.append(" Before cuts at max_patch_length; with them after --recompute.")
    return "".join(notes)


def _group_tables(sets: Sequence[Figures]) -> list[tuple[str, str, list[Figures]]]:
    """Title, caption and rows of each table of groups."""
    columns = list(dict.fromkeys(name for figures in sets for name in figures["columns"]))
    in_part = {name for figures in sets for name in figures["columns_in_part"]}
    least = (
        f"At least: a shard tells the {MOST_GROUPS} values with the most text apart (none, where "
        f"values hardly repeat), and counts all else as {OTHERS}."
    )
    script = "Of most letters at the beginning of a document."
    return [
        ("By script", script, _group_rows([figures["scripts"] for figures in sets])),
        *(
            (
                f"By {name}",
                least if name in in_part else "",
                _group_rows([figures["columns"].get(name, []) for figures in sets]),
            )
            for name in columns
        ),
        (
            "By source",
            "Input files, or shard sets.",
            _group_rows([f["sources"] for f in sets]),
        ),
    ]


def _group_rows(of_sets: Sequence[list[Figures]]) -> list[Figures]:
    """Rows by name, each with a cell for every set, None where it lacks the group."""
    names = list(dict.fromkeys(row["name"] for rows in of_sets for row in rows))
    by_name = [{row["name"]: row for row in rows} for rows in of_sets]
    most = max((row["mean_patch_bytes"] for rows in of_sets for row in rows), default=0) or 1
    return [
        {
            "name": name,
            "cells": [
                {**rows[name], "width": BAR_PIXELS * rows[name]["mean_patch_bytes"] / most}
                if name in rows
                else None
                for rows in by_name
            ],
        }
        for name in names
    ]
