"""The files of a report, made from its figures: index.html, report.json and plots as PNG.

Its words are in ``page.html.j2``, and in :mod:`pipeline.report.wording` if they depend on the
figures.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.ticker import EngFormatter

from pipeline.drawing.page import render_page
from pipeline.drawing.patches_html import PATCHES_CSS, patches_html
from pipeline.report.agreement import (
    BoundaryAgreement,
    Example,
    GroupScores,
    ScoreFigures,
    SetAgreement,
)
from pipeline.report.agreement_wording import (
    agreement_rows,
    entropy_rows,
    format_score,
    loss_notes,
    overlap_words,
)
from pipeline.report.figures import MOST_SHOWN, FlopsFigures, GroupFigures, SetFigures
from pipeline.report.plots import PLOTS, png, svg
from pipeline.report.wording import (
    curve_note,
    entropies_note,
    explanation,
    format_bytes,
    format_nats,
    overview,
)
from pipeline.statistics.excerpts import Excerpt
from pipeline.statistics.groups import MOST_GROUPS, OTHERS
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory

PAGE, DATA = "index.html", "report.json"
BAR_PIXELS = 90
"""Length of the longest bar of a table."""
_format_flops = EngFormatter(places=2, sep=" ")
"""A number with a prefix: 1.50 G."""


@dataclass(frozen=True)
class Report:
    """The figures of one set, or of several that are compared."""

    sets: Sequence[SetFigures]
    context_bytes: int
    """Bytes of a sequence, for the FLOPs of attention."""
    recomputed: bool
    """True if the shards were read, false if only their manifests."""
    agreement: Sequence[SetAgreement] = ()
    """How each set but the first agrees with the first one; empty if that was not asked for."""

    @property
    def problems(self) -> list[str]:
        """Messages about damaged shards, which are not counted, and about sets that cannot be
        compared."""
        damaged = (problem for figures in self.sets for problem in figures.problems)
        not_compared = (problem for each in self.agreement for problem in each.problems)
        return list(dict.fromkeys([*damaged, *not_compared]))

    def to_json(self) -> dict[str, Any]:
        """The content of report.json."""
        return {
            "sets": [figures.to_json() for figures in self.sets],
            "context_bytes": self.context_bytes,
            "recomputed": self.recomputed,
            "agreement": [agreement.to_json() for agreement in self.agreement],
        }

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
        """The page: one file with everything in it. Whatever the figures hold shows as text."""
        sets = self.sets
        with_flops: list[FlopsFigures] = next((f.flops for f in sets if f.flops), [])
        return render_page(
            Path(__file__).with_name("page.html.j2"),
            _FILTERS,
            sets=sets,
            overview=overview(sets),
            counted=any(figures.patches for figures in sets),
            plots=[
                (name, plot.title, Markup(svg(name, sets)))
                for name, plot in PLOTS.items()
                if plot.applies(sets)
            ],
            targets=[suggested.target for suggested in sets[0].suggested],
            curve_note=curve_note(sets),
            entropies_note=entropies_note(sets),
            groups=_group_tables(sets),
            agreement=self.agreement,
            agreement_rows=agreement_rows,
            entropy_rows=entropy_rows,
            loss_notes=loss_notes,
            overlap_words=overlap_words,
            score_tables=_score_tables,
            sizes=[row.size for row in with_flops],
            tokenizers=[figures for figures in sets if figures.tokenizer],
            context_bytes=self.context_bytes,
            recomputed=self.recomputed,
            patches_css=Markup(PATCHES_CSS),
        )


def _patches(excerpt: Excerpt, longest: bool = False) -> Markup:
    """The text of an excerpt; its longest patch is outlined if so asked."""
    sizes = excerpt.patch_bytes
    outlined = sizes.index(max(sizes)) if longest and sizes else None
    return Markup(patches_html(excerpt.patches(), outlined=outlined))


def _both_patches(example: Example) -> list[Markup]:
    """The text of an example in the patches of the reference, and in those of the other set; marked
    where one alone starts a patch."""
    data = example.text.encode()
    sizes = (example.reference_patch_bytes, example.other_patch_bytes)
    edges = [[0, *accumulate(some)] for some in sizes]
    return [
        Markup(
            patches_html(
                [data[a:b] for a, b in pairwise(own)],
                marked={i for i, edge in enumerate(own) if edge not in others},
            )
        )
        for own, others in (edges, edges[::-1])
    ]


_FILTERS = {
    "size": format_bytes,
    "flops": _format_flops,
    "nats": format_nats,
    "explanation": explanation,
    "patches": _patches,
    "both_patches": _both_patches,
    "score": format_score,
    "tojson_pretty": lambda value: json.dumps(asdict(value), indent=1, ensure_ascii=False),
}


class ScoreRow(NamedTuple):
    """A row of a table of agreement."""

    name: str
    documents: str
    scores: ScoreFigures
    width: float
    """Pixels of the bar of its F1."""


def _score_tables(agreement: BoundaryAgreement) -> list[tuple[str, str, list[ScoreRow]]]:
    """Titles, captions and rows: by kind of byte, and by script."""
    kinds = (
        "The byte that a patch may begin with. A letter is first where no letter precedes it; "
        "continuation bytes are all but the first of a character."
    )
    scripts = "The script of a document is that of most letters at its beginning."
    tables = (
        ("By kind of byte", kinds, agreement.kinds),
        ("By script", scripts, agreement.scripts),
    )

    def row(group: GroupScores) -> ScoreRow:
        documents = "" if group.documents is None else f"{group.documents:,}"
        return ScoreRow(group.name, documents, group.scores, BAR_PIXELS * (group.scores.f1 or 0))

    return [(title, caption, list(map(row, groups))) for title, caption, groups in tables]


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
        f"The figures are lower bounds: a shard counts the {MOST_GROUPS} repeated values with the "
        f"most text separately, and everything else as {OTHERS}."
    )
    scripts = "The script of a document is that of most letters at its beginning."
    sources = (
        "A source is an input file, or one of several merged sets; where small files share shards, "
        "it is the directory that all files of a shard are below, DIRECTORY/*. Mean entropies are "
        "exact to 0.01 nats."
    )
    by_column = (
        # A column may be called script or source, as other tables are.
        _group_table(
            f"By the column {name}",
            least * (name in in_part),
            [figures.columns.get(name, []) for figures in sets],
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
        caption = f"{caption} The table shows the {MOST_SHOWN} with the most text.".strip()
    names = list(dict.fromkeys(group.name for groups in of_sets for group in groups))
    by_name = [{group.name: group for group in groups} for groups in of_sets]
    most = max((group.mean_patch_bytes for groups in of_sets for group in groups), default=0) or 1

    def cell(group: GroupFigures | None) -> GroupCell | None:
        if group is None:
            return None
        return GroupCell(group, BAR_PIXELS * group.mean_patch_bytes / most)

    rows = [GroupRow(name, [cell(groups.get(name)) for groups in by_name]) for name in names]
    return GroupTable(title, caption, rows)
