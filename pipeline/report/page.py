"""Figures → index.html, report.json and PNG plots."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from pipeline.drawing.patches_html import PATCHES_CSS, patches_html
from pipeline.report.figures import MOST_SHOWN, FlopsFigures, GroupFigures, SetFigures
from pipeline.report.plots import PAPER, PLOTS, png, svg
from pipeline.statistics.counts import LONGEST
from pipeline.statistics.excerpts import Excerpt
from pipeline.statistics.groups import MOST_GROUPS, OTHERS
from pipeline.storage.output import OutputDirectory, to_json

PAGE, DATA = "index.html", "report.json"
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")
BAR_PIXELS = 90
"""Length of the longest bar of a table."""


@dataclass(frozen=True)
class Report:
    """Figures of one set, or of several that are compared."""

    sets: Sequence[SetFigures]
    context_bytes: int
    """Bytes of a sequence, for the FLOPs of attention."""
    recomputed: bool
    """Whether the shards were read, or only their manifests."""

    @property
    def problems(self) -> list[str]:
        """One message for each damaged shard; damaged shards are not counted."""
        return [problem for figures in self.sets for problem in figures.problems]

    def to_json(self) -> dict[str, Any]:
        """What report.json holds."""
        return {
            "sets": [figures.to_json() for figures in self.sets],
            "context_bytes": self.context_bytes,
            "recomputed": self.recomputed,
        }

    def overview(self) -> list[tuple[str, list[str]]]:
        """Rows of the first table: a label, and a cell for each set."""
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
        with_flops: list[FlopsFigures] = next((f.flops for f in sets if f.flops), [])
        template = _environment().get_template("page.html.j2")
        return template.render(
            sets=sets,
            overview=self.overview(),
            plots=[(name, plot.title, Markup(svg(name, sets))) for name, plot in PLOTS.items()],
            targets=[suggested.target for suggested in sets[0].suggested],
            curve_note=_curve_note(sets),
            entropies_note=_entropies_note(sets),
            groups=_group_tables(sets),
            sizes=[row.size for row in with_flops],
            tokenizers=[figures for figures in sets if figures.tokenizer],
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
        "tojson_pretty": lambda value: json.dumps(asdict(value), indent=1, ensure_ascii=False),
    }
    return environment


def _patches(excerpt: Excerpt, longest: bool = False) -> Markup:
    """The text of an excerpt; its longest patch is outlined if so asked."""
    sizes = excerpt.patch_bytes
    outlined = sizes.index(max(sizes)) if longest and sizes else None
    return Markup(patches_html(excerpt.patches(), outlined=outlined))


size = EngFormatter(unit="B", places=2, sep=" ")
"""Bytes with a prefix: 1.50 MB."""
flops = EngFormatter(places=2, sep=" ")
"""A number with a prefix: 1.50 G."""


def whole_text(text: str) -> str:
    """Without control characters, and what stands for bytes that are no UTF-8: names of files may
    hold both, ids the former, and pages and terminals neither."""
    return _CONTROLS.sub("\ufffd", text).encode(errors="replace").decode()


def why(figures: SetFigures) -> str:
    """A sentence on why patches are as long as they are, and one on how they would be longer."""
    if not figures.patches:
        return "There is no text in it."
    if figures.thresholds_differ:
        return "Its sets were cut at different thresholds."
    rule, threshold, longest = (figures.rule, figures.threshold, figures.max_patch_length)
    if threshold is None:
        return f"The {rule} rule has no threshold."
    starts = 100 * figures.patches / figures.tokens
    rise = figures.provenance.patcher.get("threshold_add")
    places = {
        "global": f"the entropy exceeds the threshold, {threshold!r} nats",
        "monotonic": f"the entropy rises by more than the threshold, {threshold!r} nats",
        "combined": f"the entropy exceeds {threshold!r} nats and rises by more than {rise!r}",
    }
    cuts = f", or a patch has {longest} tokens" if longest else ""
    said = f"A patch starts after {starts:.1f} % of tokens: where {places[rule]}{cuts}."
    if figures.mean_entropy is not None:
        said += f" The mean entropy is {figures.mean_entropy:.2f} nats."
    return said + _advice(figures)


def _advice(figures: SetFigures) -> str:
    nearest = figures.suggested[0]
    target, reached = nearest.target, figures.mean_patch_bytes
    near = abs(reached - target) <= 0.1 * target
    if nearest.threshold is None or near or _before_cuts(figures):
        return ""
    longer = "longer" if reached < target else "shorter"
    return (
        f" For {longer} patches, {nearest.mean_patch_bytes:.2f} bytes each, take "
        f"{nearest.threshold!r}."
    )


def _before_cuts(figures: SetFigures) -> bool:
    """Whether the curve, and what is suggested, leaves out what max_patch_length cuts."""
    return bool(figures.max_patch_length) and not figures.curve_has_cuts


def _overview(sets: Sequence[SetFigures]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: a label, and a cell for each set."""

    def row(label: str, cell: Callable[[SetFigures], str]) -> tuple[str, list[str]]:
        return label, [whole_text(cell(figures)) for figures in sets]

    def lengths(figures: SetFigures) -> str:
        found = figures.patch_lengths.percentiles
        shown = ((p, f"{found[p]}{'+' * (found[p] == LONGEST)}") for p in (10, 50, 90, 99))
        return ", ".join(f"{length} ({p} %)" for p, length in shown)

    return [
        row("rule", _rule),
        row("threshold (nats)", _threshold),
        row("entropy model", lambda f: str(f.provenance.entropy_model.get("source", "unknown"))),
        row("mean bytes a patch", lambda f: f"{f.mean_patch_bytes:.3f}"),
        row("patch lengths (tokens)", lengths),
        row("mean entropy (nats)", lambda f: nats(f.mean_entropy)),
        row("documents", lambda f: f"{f.documents:,}"),
        row("mean bytes a document", lambda f: f"{f.bytes / max(f.documents, 1):,.0f}"),
        row("rejected documents", lambda f: f"{f.rejects.count:,}"),
        row("shards", lambda f: f"{f.shards:,}, {size(f.shard_bytes)}"),
        row("patching", _throughput),
        row("where", lambda f: f.url),
    ]


def nats(value: float | None) -> str:
    """An entropy; shards that are counted anew may hold none."""
    return "none stored" if value is None else f"{value:.2f}"


def _rule(figures: SetFigures) -> str:
    """With all that it was given but the threshold, which has a row of its own."""
    given = {k: v for k, v in figures.provenance.patcher.items() if v is not False}
    more = (f"{name} {value}" for name, value in given.items() if name not in ("rule", "threshold"))
    return ", ".join([figures.rule, *more])


def _threshold(figures: SetFigures) -> str:
    if figures.thresholds_differ:
        return "they differ"
    return "none" if figures.threshold is None else repr(figures.threshold)


def _throughput(figures: SetFigures) -> str:
    runs = figures.runs
    if not runs:
        return "time not recorded"
    done, seconds = sum(run.bytes for run in runs), sum(run.seconds for run in runs)
    cpus, gpus = max(run.cpus for run in runs), max(run.gpus for run in runs)
    devices, kind = (gpus, "GPU") if gpus else (cpus, "CPU")
    times = f", {len(runs)} runs" if len(runs) > 1 else ""
    on = f"{devices:g} {kind}{'s' * (devices != 1)}"
    return f"{size(done / max(seconds, 1e-9))}/s on {on} ({seconds:,.1f} s{times})"


def _curve_note(sets: Sequence[SetFigures]) -> str:
    notes = []
    if not any(figures.scored_tokens for figures in sets):
        notes.append(" No entropies are stored: there is nothing to count.")
    elif any(0 < figures.scored_tokens < figures.tokens for figures in sets):
        notes.append(" Of the text whose entropies are stored.")
    if any(f.threshold is None and not f.thresholds_differ for f in sets):
        notes.append(" Where a rule has no threshold: what the global rule would give.")
    if any(map(_before_cuts, sets)):
        notes.append(" Before cuts at max_patch_length; with them after --recompute.")
    return "".join(notes)


def _entropies_note(sets: Sequence[SetFigures]) -> str:
    rules = {figures.rule for figures in sets if figures.threshold is not None}
    notes = []
    if rules & {"global", "combined"}:
        notes.append("Dashed: the threshold.")
    if rules == {"global"} and not any(figures.max_patch_length for figures in sets):
        notes.append("The share of tokens to its right is the share that a new patch follows.")
    if "combined" in rules:
        notes.append("The combined rule also asks how much the entropy rises.")
    if "monotonic" in rules:
        notes.append("The monotonic rule compares how much the entropy rises, which is not shown.")
    return " ".join(notes)


class GroupCell(NamedTuple):
    """A group of one set in a table."""

    group: GroupFigures
    width: float
    """Pixels of its bar."""


class GroupRow(NamedTuple):
    """The groups of one name in all sets."""

    name: str
    cells: list[GroupCell | None]
    """A cell for each set; None where the set lacks the group."""


class GroupTable(NamedTuple):
    title: str
    caption: str
    rows: list[GroupRow]


def _group_tables(sets: Sequence[SetFigures]) -> list[GroupTable]:
    """Tables of groups: by script, by value of each metadata column, by source."""
    columns = list(dict.fromkeys(name for figures in sets for name in figures.columns))
    in_part = {name for figures in sets for name in figures.columns_in_part}
    least = (
        f"At least: a shard tells the {MOST_GROUPS} values with the most text apart, of those that "
        f"repeat, and counts all else as {OTHERS}."
    )
    scripts = "Of most letters at the beginning of a document."
    sources = "Input files, or shard sets; their entropies to within 0.01 nats."
    by_column = (
        _group_table(
            f"By {name}", least * (name in in_part), [f.columns.get(name, []) for f in sets]
        )
        for name in columns
    )
    return [
        _group_table("By script", scripts, [figures.scripts for figures in sets]),
        *by_column,
        _group_table("By source", sources, [figures.sources for figures in sets]),
    ]


def _group_table(title: str, caption: str, of_sets: Sequence[Sequence[GroupFigures]]) -> GroupTable:
    """A table of the groups of each set."""
    if any(len(groups) > MOST_SHOWN for groups in of_sets):
        caption = f"{caption} Shown: the {MOST_SHOWN} with the most text.".strip()
    names = list(dict.fromkeys(group.name for groups in of_sets for group in groups))
    by_name = [{group.name: group for group in groups} for groups in of_sets]
    most = max((group.mean_patch_bytes for groups in of_sets for group in groups), default=0) or 1

    def cell(group: GroupFigures | None) -> GroupCell | None:
        if group is None:
            return None
        return GroupCell(group, BAR_PIXELS * group.mean_patch_bytes / most)

    rows = [GroupRow(name, [cell(groups.get(name)) for groups in by_name]) for name in names]
    return GroupTable(title, caption, rows)
