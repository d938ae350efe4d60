"""Figures → index.html, report.json and PNG plots."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from model.rules import Compared, find_rule
from pipeline.drawing.patches_html import PATCHES_CSS, patches_html
from pipeline.report.figures import MOST_SHOWN
from pipeline.report.plots import PAPER, PLOTS, png, svg
from pipeline.statistics.counts import LONGEST
from pipeline.statistics.excerpts import Excerpt
from pipeline.statistics.groups import MOST_GROUPS, OTHERS
from pipeline.storage.output import OutputDirectory, to_json

PAGE, DATA = "index.html", "report.json"
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")
BAR_PIXELS = 90
"""Of the largest group of a table."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """Figures of one set, or of several that are compared."""

    sets: Sequence[Figures]
    """As :func:`pipeline.report.figures.set_figures` gives them."""
    context_bytes: int
    """Of a sequence, for the FLOPs of attention."""
    recomputed: bool
    """Whether the shards were read, or their manifests only."""

    def to_json(self) -> Figures:
        """What report.json holds."""
        return dict(vars(self))

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
        output.write(PAGE, whole_text(self.page()).encode())

    def page(self) -> str:
        """One file with everything in it. Whatever text the figures hold shows as text."""
        sets = self.sets
        with_flops: list[Figures] = next((f["flops"] for f in sets if f["flops"]), [])
        template = _environment().get_template("page.html.j2")
        return template.render(
            sets=sets,
            overview=self.overview(),
            titles={name: title for name, (title, _) in PLOTS.items()},
            plots={name: Markup(svg(name, sets)) for name in PLOTS},
            targets=[suggested["target"] for suggested in sets[0]["suggested"]],
            curve_note=_curve_note(sets),
            entropies_note=_entropies_note(sets),
            groups=_group_tables(sets),
            sizes=[row["size"] for row in with_flops],
            tokenizers=[figures for figures in sets if figures["tokenizer"]],
            context_bytes=self.context_bytes,
            recomputed=self.recomputed,
            patches_css=Markup(PATCHES_CSS),
            colours=PAPER.sets,
        )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": "{:,}".format,
        "size": size,
        "flops": flops,
        "nats": nats,
        "why": why,
        "patches": _patches,
        "tojson_pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    }
    return environment


def _patches(excerpt: Figures, longest: bool = False) -> Markup:
    """The text of an excerpt; outlined, its longest patch."""
    sizes = excerpt["patch_bytes"]
    outlined = sizes.index(max(sizes)) if longest and sizes else None
    return Markup(patches_html(Excerpt(**excerpt).patches(), outlined=outlined))


size = EngFormatter(unit="B", places=2, sep=" ")
"""Bytes with a prefix: 1.50 MB."""
flops = EngFormatter(places=2, sep=" ")
"""A number with a prefix: 1.50 G."""


def whole_text(text: str) -> str:
    """Without control characters, and what stands for bytes that are no UTF-8: names of files may
    hold both, ids the former, and pages and terminals neither."""
    return _CONTROLS.sub("\ufffd", text).encode(errors="replace").decode()


def why(figures: Figures) -> str:
    """A sentence on why patches are as long as they are, and one on how they would be longer."""
    if not figures["patches"]:
        return "There is no text in it."
    if figures["thresholds_differ"]:
        return "Its sets were cut at different thresholds."
    rule, threshold, longest = (figures[k] for k in ("rule", "threshold", "max_patch_length"))
    if threshold is None:
        return f"The {rule} rule has no threshold."
    starts = 100 * figures["patches"] / figures["tokens"]
    rise = figures["made"]["patcher"].get("threshold_add")
    places: dict[Compared | None, str] = {
        "entropy": f"the entropy exceeds the threshold, {threshold!r} nats",
        "rise": f"the entropy rises by more than the threshold, {threshold!r} nats",
        "both": f"the entropy exceeds {threshold!r} nats and rises by more than {rise!r}",
    }
    place = places[find_rule(rule).compares]
    cuts = f", or a patch has {longest} tokens" if longest else ""
    said = f"A patch starts after {starts:.1f} % of tokens: where {place}{cuts}."
    if figures["mean_entropy"] is not None:
        said += f" The mean entropy is {figures['mean_entropy']:.2f} nats."
    return said + _advice(figures)


def _advice(figures: Figures) -> str:
    nearest = figures["suggested"][0]
    target, reached = nearest["target"], figures["mean_patch_bytes"]
    near = abs(reached - target) <= 0.1 * target
    if nearest["threshold"] is None or near or _before_cuts(figures):
        return ""
    longer = "longer" if reached < target else "shorter"
    return (
        f" For {longer} patches, {nearest['mean_patch_bytes']:.2f} bytes each, take "
        f"{nearest['threshold']!r}."
    )


def _before_cuts(figures: Figures) -> bool:
    """Whether the curve, and what is suggested, leaves out what max_patch_length cuts."""
    return bool(figures["max_patch_length"]) and not figures["curve_has_cuts"]


def _overview(sets: Sequence[Figures]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: a label, and a cell for each set."""

    def row(label: str, cell: Any) -> tuple[str, list[str]]:
        return label, [whole_text(cell(figures)) for figures in sets]

    def lengths(figures: Figures) -> str:
        found = figures["patch_lengths"]["percentiles"]
        shown = ((p, f"{found[p]}{'+' * (found[p] == LONGEST)}") for p in ("10", "50", "90", "99"))
        return ", ".join(f"{length} ({p} %)" for p, length in shown)

    return [
        row("rule", _rule),
        row("threshold (nats)", _threshold),
        row("entropy model", lambda f: str(f["made"]["entropy_model"].get("source", "unknown"))),
        row("mean bytes a patch", lambda f: f"{f['mean_patch_bytes']:.3f}"),
        row("patch lengths (tokens)", lengths),
        row("mean entropy (nats)", lambda f: nats(f["mean_entropy"])),
        row("documents", lambda f: f"{f['documents']:,}"),
        row("mean bytes a document", lambda f: f"{f['bytes'] / max(f['documents'], 1):,.0f}"),
        row("rejected documents", lambda f: f"{f['rejects']['count']:,}"),
        row("shards", lambda f: f"{f['shards']:,}, {size(f['shard_bytes'])}"),
        row("patching", _throughput),
        row("where", lambda f: f["url"]),
    ]


def nats(value: float | None) -> str:
    """An entropy; shards that are counted anew may hold none."""
    return "none stored" if value is None else f"{value:.2f}"


def _rule(figures: Figures) -> str:
    """With all that it was given but the threshold, which has a row of its own."""
    given = {k: v for k, v in figures["made"]["patcher"].items() if v is not False}
    more = (f"{name} {value}" for name, value in given.items() if name not in ("rule", "threshold"))
    return ", ".join([figures["rule"], *more])


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
    devices, kind = (gpus, "GPU") if gpus else (cpus, "CPU")
    times = f", {len(runs)} runs" if len(runs) > 1 else ""
    on = f"{devices:g} {kind}{'s' * (devices != 1)}"
    return f"{size(done / max(seconds, 1e-9))}/s on {on} ({seconds:,.1f} s{times})"


def _curve_note(sets: Sequence[Figures]) -> str:
    notes = []
    if not any(figures["scored_tokens"] for figures in sets):
        notes.append(" No entropies are stored: there is nothing to count.")
    elif any(0 < figures["scored_tokens"] < figures["tokens"] for figures in sets):
        notes.append(" Of the text whose entropies are stored.")
    if any(f["threshold"] is None and not f["thresholds_differ"] for f in sets):
        notes.append(" Where a rule has no threshold: what the global rule would give.")
    if any(map(_before_cuts, sets)):
        notes.append(" Before cuts at max_patch_length; with them after --recompute.")
    return "".join(notes)


def _entropies_note(sets: Sequence[Figures]) -> str:
    compared = {
        find_rule(figures["rule"]).compares for figures in sets if figures["threshold"] is not None
    }
    notes = []
    if compared & {"entropy", "both"}:
        notes.append("Dashed: the threshold.")
    if compared == {"entropy"} and not any(figures["max_patch_length"] for figures in sets):
        notes.append("The share of tokens to its right is the share that a new patch follows.")
    if "both" in compared:
        notes.append("The combined rule also asks how much the entropy rises.")
    if "rise" in compared:
        notes.append("The monotonic rule compares how much the entropy rises, which is not shown.")
    return " ".join(notes)


def _group_tables(sets: Sequence[Figures]) -> list[tuple[str, str, list[Figures]]]:
    """Title, caption and rows of each table of groups."""
    columns = list(dict.fromkeys(name for figures in sets for name in figures["columns"]))
    in_part = {name for figures in sets for name in figures["columns_in_part"]}
    least = (
        f"At least: a shard tells the {MOST_GROUPS} values with the most text apart, of those that "
        f"repeat, and counts all else as {OTHERS}."
    )
    tables = [("By script", "Of most letters at the beginning of a document.", "scripts", None)]
    tables += [(f"By {name}", least * (name in in_part), "columns", name) for name in columns]
    sources = "Input files, or shard sets; their entropies to within 0.01 nats."
    tables.append(("By source", sources, "sources", None))
    found = []
    for title, caption, kind, name in tables:
        of_sets = [f[kind] if name is None else f[kind].get(name, []) for f in sets]
        if any(len(rows) > MOST_SHOWN for rows in of_sets):
            caption += f" Shown: the {MOST_SHOWN} with the most text."
        found.append((title, caption.strip(), _group_rows(of_sets)))
    return found


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
