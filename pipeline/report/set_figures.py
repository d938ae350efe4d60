"""The figures of a set, made of its counts."""

from collections.abc import Sequence

import numpy as np

from model.flops import flops_by_size
from model.rules import find_rule
from pipeline.report.figures import (
    MOST_SHOWN,
    BpeFlops,
    CurveFigures,
    EntropyFigures,
    FlopsFigures,
    GroupFigures,
    LengthFigures,
    RejectFigures,
    SetFigures,
    ShardFigures,
    Suggestion,
    TokenizerFigures,
)
from pipeline.report.set_counts import SetCounts
from pipeline.shards.entries import Shard
from pipeline.statistics.counts import ENTROPY_BIN
from pipeline.statistics.groups import OTHERS, GroupCounts, Groups
from pipeline.statistics.threshold_curve import ThresholdCurve

CURVE_POINTS = 400
PERCENTILES = (1, 10, 50, 90, 99)
EMPTY = "(empty)"
"""The group of documents in which the column is an empty string."""


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
