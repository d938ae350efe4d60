"""The figures of a report: what the page, the plots and report.json say of the counts of a set."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from model.flops import flops_by_size
from model.rules import find_rule
from pipeline.report.held_out import HeldOut
from pipeline.report.set_counts import Provenance, RunTime, SetCounts, SoFar
from pipeline.shards.entries import Shard
from pipeline.statistics.counts import ENTROPY_BIN
from pipeline.statistics.excerpts import Excerpt
from pipeline.statistics.groups import OTHERS, GroupCounts, Groups
from pipeline.statistics.threshold_curve import ThresholdCurve

CURVE_POINTS = 400
PERCENTILES = (1, 10, 50, 90, 99)
MOST_SHOWN = 50
"""Groups that a table of a report names; all others are one row."""
EMPTY = "(empty)"
"""The group of documents in which the column is an empty string."""
JSON_KEYS = {"provenance": "made"}
"""Fields of :class:`SetFigures` that report.json calls something else."""


@dataclass(frozen=True)
class TokenizerFigures:
    """A BPE tokenizer on a sample of text."""

    name: str
    vocabulary: int
    bytes_per_token: float
    sample_bytes: int


@dataclass(frozen=True)
class LengthFigures:
    """Lengths of patches, in tokens."""

    counts: dict[int, int]
    """Patches by length, shortest first."""
    percentiles: dict[int, int]
    """The length that so many per cent of the patches do not exceed."""

    def to_json(self) -> dict[str, dict[str, int]]:
        """Plain values; keys are strings, as in all JSON."""
        return {
            name: {str(key): value for key, value in values.items()}
            for name, values in vars(self).items()
        }


@dataclass(frozen=True)
class EntropyFigures:
    """A histogram of entropies."""

    bin: float
    """Nats: the width of a bin; the first bin begins at 0."""
    counts: list[int]
    """Tokens in each bin."""


@dataclass(frozen=True)
class CurveFigures:
    """The patches that rising thresholds give."""

    thresholds: list[float]
    """Nats."""
    mean_patch_bytes: list[float]


@dataclass(frozen=True)
class Suggestion:
    """The threshold that comes closest to a mean patch size; None if there is no curve."""

    target: float
    """Bytes per patch that were asked for."""
    threshold: float | None
    """Nats."""
    mean_patch_bytes: float | None
    """Bytes per patch that the threshold gives."""


@dataclass(frozen=True)
class GroupFigures:
    """A group of documents."""

    name: str
    documents: int
    bytes: int
    patches: int
    mean_patch_bytes: float
    mean_entropy: float | None
    """Nats per token; None if the entropies of some tokens are not known."""


@dataclass(frozen=True)
class ShardFigures:
    """One shard, for the plot over all shards."""

    shard: str
    bytes: int
    mean_patch_bytes: float


@dataclass(frozen=True)
class RejectFigures:
    """Documents that could not be used."""

    count: int
    reasons: dict[str, int]
    failures: list[str]
    """One message for each file that could not be read to its end."""


@dataclass(frozen=True)
class BpeFlops:
    """FLOPs per byte of a transformer on BPE tokens."""

    inference: float
    training: float


@dataclass(frozen=True)
class FlopsFigures:
    """FLOPs per byte of one size of BLT, see :func:`model.flops.flops_by_size`."""

    size: str
    parts: dict[str, float]
    """A forward pass by part of the model, without the entropy model."""
    entropy_model: float | None
    """Its forward pass; 0 if the rule reads no entropies, None if nobody named the model that gave
    them."""
    inference: float
    """A forward pass, with the entropy model's as far as it is known."""
    training: float
    """Without the entropy model: training takes patches as given."""
    bpe: BpeFlops | None = None
    """None, and not in report.json, if there is no tokenizer to compare with."""

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        if self.bpe is None:
            del values["bpe"]
        return values


@dataclass(frozen=True)
class SetFigures:
    """The figures of a set in a report. The order of the fields is that of ``--json``."""

    name: str
    url: str
    documents: int
    bytes: int
    """UTF-8 bytes of text."""
    tokens: int
    """Bytes, and BOS and EOS of each document."""
    scored_tokens: int
    """Tokens whose entropies are known."""
    patches: int
    shards: int
    shard_bytes: int
    """Size of the Arrow files."""
    mean_patch_bytes: float
    mean_entropy: float | None
    """Nats per token, over the tokens whose entropies are known; None if there are none."""
    rule: str
    threshold: float | None
    """Nats; None if the rule has none, or if merged sets have different ones."""
    thresholds_differ: bool
    """True if merged sets have different thresholds."""
    max_patch_length: int | None
    """Tokens."""
    provenance: Provenance
    patch_lengths: LengthFigures
    entropies: EntropyFigures
    curve: CurveFigures
    curve_has_cuts: bool
    """True if the curve counts the splits at ``max_patch_length``."""
    suggested: list[Suggestion]
    scripts: list[GroupFigures]
    columns: dict[str, list[GroupFigures]]
    """Groups by metadata column, by value."""
    columns_in_part: list[str]
    """Columns with more values than shards count separately."""
    sources: list[GroupFigures]
    """Groups by input file or, where files share shards, by directory; of merged sets, by set."""
    drift: list[ShardFigures]
    """All shards, in their order."""
    longest: list[Excerpt]
    shortest: list[Excerpt]
    rejects: RejectFigures
    problems: list[str]
    """One message for each damaged shard."""
    runs: list[RunTime]
    tokenizer: TokenizerFigures | None
    flops: list[FlopsFigures]
    """One for each size; empty if there are no patches."""
    so_far: SoFar | None
    """How much of the input is done; None for a set that is finished."""
    held_out: HeldOut | None
    """The validation set; None if there is none."""

    def to_json(self) -> dict[str, Any]:
        """The set as report.json holds it."""
        values = asdict(self)
        values["patch_lengths"] = self.patch_lengths.to_json()
        values["flops"] = [row.to_json() for row in self.flops]
        return {JSON_KEYS.get(name, name): value for name, value in values.items()}


def set_figures(
    counts: SetCounts,
    *,
    targets: Sequence[float],
    context_bytes: int,
    tokenizer: TokenizerFigures | None = None,
) -> SetFigures:
    """Everything that a report says of a set.

    Args:
        targets: mean bytes per patch to suggest thresholds for.
        context_bytes: bytes of a sequence, for the FLOPs of attention.
    """
    statistics, summary, entries = counts.statistics, counts.summary, counts.entries
    patcher, rule = counts.provenance.patcher, counts.provenance.rule
    curve = counts.curve or summary.thresholds.curve()
    # Entropies of some tokens are unknown if shards without entropies were counted again.
    scored = int(statistics.entropies.sum())
    known = scored == statistics.tokens
    return SetFigures(
        name=counts.name,
        url=counts.url,
        documents=statistics.documents,
        bytes=statistics.bytes,
        tokens=statistics.tokens,
        scored_tokens=scored,
        patches=statistics.patches,
        shards=sum(entry.sha256 is not None for entry in entries),
        shard_bytes=sum(entry.shard_bytes for entry in entries),
        mean_patch_bytes=statistics.mean_patch_bytes,
        mean_entropy=_mean_entropy(counts, known),
        rule=rule,
        threshold=patcher.get("threshold"),
        # A rule that has a threshold lacks one where merged sets disagree on it.
        thresholds_differ=patcher.get("threshold") is None
        and "rule" in patcher
        and find_rule(rule).compares is not None,
        max_patch_length=patcher.get("max_patch_length"),
        provenance=counts.provenance,
        patch_lengths=_lengths(counts),
        entropies=EntropyFigures(ENTROPY_BIN, statistics.entropies.tolist()),
        curve=_curve(curve),
        curve_has_cuts=counts.curve is not None,
        suggested=[_suggestion(curve, target) for target in targets],
        scripts=_groups(summary.scripts, known),
        columns={column: _groups(groups, known) for column, groups in summary.columns.items()},
        columns_in_part=[name for name, groups in summary.columns.items() if OTHERS in groups],
        sources=_groups(counts.sources, known),
        drift=[_drift(entry) for entry in entries if entry.sha256 is not None],
        longest=summary.longest,
        shortest=summary.shortest,
        rejects=RejectFigures(
            count=sum(entry.rejects for entry in entries),
            reasons=dict(summary.reasons),
            failures=[f"{entry.source}: {entry.error}" for entry in entries if entry.error],
        ),
        problems=list(counts.problems),
        so_far=counts.so_far,
        held_out=counts.held_out,
        runs=list(counts.runs),
        tokenizer=tokenizer,
        flops=_flops(counts, context_bytes, tokenizer),
    )


def _mean_entropy(counts: SetCounts, known: bool) -> float | None:
    """Nats, over all tokens; if not all are known, over those that are, from the histogram."""
    if known:
        return sum(counts.summary.scripts.values(), GroupCounts()).mean_entropy
    histogram = counts.statistics.entropies
    middles = (np.arange(len(histogram)) + 0.5) * ENTROPY_BIN
    return float(histogram @ middles / histogram.sum()) if histogram.any() else None


def _lengths(counts: SetCounts) -> LengthFigures:
    statistics = counts.statistics
    lengths = np.flatnonzero(statistics.patch_lengths).tolist()
    return LengthFigures(
        {length: int(statistics.patch_lengths[length]) for length in lengths},
        {percent: statistics.patch_length_percentile(percent) for percent in PERCENTILES},
    )


def _curve(curve: ThresholdCurve) -> CurveFigures:
    thinned = curve.thinned(CURVE_POINTS)
    return CurveFigures(thinned.thresholds_K.tolist(), thinned.mean_patch_bytes.tolist())


def _suggestion(curve: ThresholdCurve, target: float) -> Suggestion:
    threshold, reached = curve.closest(target) or (None, None)
    return Suggestion(target, threshold, reached)


def _groups(groups: Groups, known: bool) -> list[GroupFigures]:
    """The groups with the most text, largest first, then one for all others."""
    named = {name: counts for name, counts in groups.items() if name != OTHERS}
    shown = dict(sorted(named.items(), key=lambda item: -item[1].bytes)[:MOST_SHOWN])
    others = [counts for name, counts in groups.items() if name not in shown]
    if others:
        shown[OTHERS] = sum(others, GroupCounts())
    return [
        GroupFigures(
            name or EMPTY,
            counts.documents,
            counts.bytes,
            counts.patches,
            counts.mean_patch_bytes,
            counts.mean_entropy if known else None,
        )
        for name, counts in shown.items()
    ]


def _drift(shard: Shard) -> ShardFigures:
    return ShardFigures(shard.name, shard.bytes, shard.bytes / max(shard.patches, 1))


def _flops(
    counts: SetCounts, context_bytes: int, tokenizer: TokenizerFigures | None
) -> list[FlopsFigures]:
    model = counts.provenance.entropy_model
    scores = find_rule(counts.provenance.rule).reads_entropies  # others need no entropy model
    # Entropies that were adopted may be of a model that nobody named.
    of_model = model.get("flops_per_byte") if scores else 0.0
    rows = flops_by_size(
        patch_size=counts.statistics.mean_patch_bytes,
        context=context_bytes,
        entropy_model=of_model or 0.0,
        bpe=None if tokenizer is None else (tokenizer.bytes_per_token, tokenizer.vocabulary),
    )
    return [
        FlopsFigures(
            row["size"],
            row["parts"],
            of_model,
            row["inference"],
            row["training"],
            BpeFlops(**row["bpe"]) if "bpe" in row else None,
        )
        for row in rows
    ]
