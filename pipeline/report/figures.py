"""Shard sets → the figures of a report, as plain values: what report.json holds.

Reads the manifests only.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from operator import mul
from typing import Any

import numpy as np

from model.flops import flops_by_size
from model.rules import find_rule
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.run import LOG
from pipeline.shards.shard_set import ShardEntry, ShardSet
from pipeline.statistics.counts import ENTROPY_BIN, PatchStatistics
from pipeline.statistics.excerpts import Excerpt
from pipeline.statistics.groups import ENTROPY_UNIT, OTHERS, GroupCounts, Groups
from pipeline.statistics.summary import Summary
from pipeline.statistics.threshold_curve import ThresholdCurve

CURVE_POINTS = 400
PERCENTILES = (1, 10, 50, 90, 99)
MOST_SHOWN = 50
"""Groups that a report tells of."""
EMPTY = "(empty)"
"""Documents in which the column is an empty string."""
MADE = ("patcher", "entropy_model", "configuration")
"""What manifests say of how a set was made."""


@dataclass(frozen=True)
class TokenizerFigures:
    """A BPE tokenizer on a sample of text."""

    name: str
    vocabulary: int
    bytes_per_token: float
    sample_bytes: int


@dataclass(frozen=True)
class Counted:
    """What a report tells of: a shard set, or several as one."""

    name: str
    url: str
    made: dict[str, Any]
    """How it was made: ``patcher``, ``entropy_model``, ``configuration``, as manifests say it."""
    statistics: PatchStatistics
    summary: Summary
    entries: Sequence[ShardEntry]
    runs: Sequence[dict[str, Any]]
    """How long runs took, see :func:`pipeline.patch.run.log_run`."""
    sources: Groups
    """By input file, or by set."""
    curve: ThresholdCurve | None = None
    """Where it is more than the summary's: with the cuts of ``max_patch_length``."""
    problems: Sequence[str] = ()
    """Damaged shards, which are left out."""


def counted_before(name: str, shards: ShardSet) -> Counted:
    """What the manifest says.

    Raises:
        PipelineError: an earlier release wrote it.
    """
    summary = shards.summary
    if summary is None:
        raise PipelineError(
            f"{shards.output.url}: its manifest has no summary, because an earlier release patched "
            "it; --recompute reads the shards themselves"
        )
    return described(name, shards, shards.statistics, summary, shards.entries)


def described(
    name: str,
    shards: ShardSet,
    statistics: PatchStatistics,
    summary: Summary,
    entries: Sequence[ShardEntry],
) -> Counted:
    """Counts with what else is told of a set."""
    made = {key: shards.manifest.get(key, {}) for key in MADE}
    runs: list[dict[str, Any]] = []
    with contextlib.suppress(PipelineError):  # without them only the speed is not known
        runs = list(shards.output.read_all_json(LOG).values())
    url = shards.output.url
    return Counted(name, url, made, statistics, summary, entries, runs, _by_file(entries))


def merge(sets: Iterable[Counted]) -> Counted:
    """Several sets as one; its sources are the sets. Holds one of them at a time.

    Raises:
        ConfigError: they are not alike, see :func:`check_alike`.
    """
    return merge_parts([part(sets)])


def part(sets: Iterable[Counted]) -> Counted:
    """Some of the sets that are merged, for :func:`merge_parts`.

    Raises:
        ConfigError: they are not alike.
    """
    return _sum(map(_as_source, sets))


def merge_parts(parts: Iterable[Counted]) -> Counted:
    """Sets that were added up in parts as one.

    Raises:
        ConfigError: they are not alike.
    """
    total = _sum(parts)
    return replace(total, name=f"{len(total.sources):,} sets", url=f"{total.url}, …")


def _as_source(counted: Counted) -> Counted:
    """A set as the one source of itself, without what nobody asks of its shards any more."""
    sources = {counted.name: sum(counted.sources.values(), GroupCounts())}
    entries = [
        replace(entry, statistics={name: entry.statistics[name] for name in ("bytes", "patches")})
        if entry.sha256 is not None
        else entry
        for entry in counted.entries
    ]
    return replace(counted, sources=sources, entries=entries)


def _sum(parts: Iterable[Counted]) -> Counted:
    total: Counted | None = None
    sources: Groups = {}
    entries: list[ShardEntry] = []
    for counted in parts:
        sources |= counted.sources
        entries += counted.entries
        total = counted if total is None else _joined(total, counted)
    assert total is not None
    return replace(total, sources=sources, entries=entries)


def check_alike(a: tuple[str, dict[str, Any]], b: tuple[str, dict[str, Any]]) -> None:
    """
    Args:
        a: the URL of a set and how it was made, see MADE.

    Raises:
        ConfigError: two sets can only be compared: their boundary rules differ in more than the
            threshold, or use entropies, and those are of different models.
    """
    rules = [{**made["patcher"], "threshold": None} for _, made in (a, b)]
    models = [made.get("entropy_model", {}).get("fingerprint") for _, made in (a, b)]
    differ = None
    if rules[0] != rules[1]:
        differ = "cut by different rules"
    elif models[0] != models[1] and find_rule(rules[0].get("rule", "global")).reads_entropies:
        differ = "scored by different entropy models"
    if differ:
        raise ConfigError(f"--merge: {a[0]} and {b[0]} were {differ}; without it they are compared")


def _joined(a: Counted, b: Counted) -> Counted:
    """Two sets as one, but for name, sources and entries."""
    check_alike((a.url, a.made), (b.url, b.made))
    return replace(
        a,
        made={key: _same(a.made[key], b.made[key]) for key in MADE},
        statistics=a.statistics + b.statistics,
        summary=a.summary + b.summary,
        runs=[*a.runs, *b.runs],
        curve=_joined_curve(a, b),
        problems=[*a.problems, *b.problems],
    )


def _joined_curve(a: Counted, b: Counted) -> ThresholdCurve | None:
    for one, other in ((a, b), (b, a)):
        if not one.statistics.documents:
            return other.curve
    return None if a.curve is None or b.curve is None else a.curve + b.curve


def _same(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What both agree on."""
    return {key: value for key, value in a.items() if b.get(key) == value}


def set_figures(
    counted: Counted,
    *,
    targets: Sequence[float],
    context_bytes: int,
    tokenizer: TokenizerFigures | None = None,
) -> dict[str, Any]:
    """Everything that is told of a set.

    Args:
        targets: mean bytes a patch to suggest thresholds for.
        context_bytes: of a sequence, for the FLOPs of attention.
    """
    statistics, summary, entries = counted.statistics, counted.summary, counted.entries
    patcher, model = counted.made["patcher"], counted.made["entropy_model"]
    rule = patcher.get("rule", "global")
    facts = find_rule(rule)
    curve = counted.curve or summary.thresholds.curve()
    # Shards can be counted anew without entropies in them, and merged with others that hold some.
    scored = int(statistics.entropies.sum())
    known = scored == statistics.tokens
    entropy_flops = float(model.get("flops_per_byte", 0.0)) if facts.reads_entropies else 0.0
    cost = flops_by_size(
        patch_size=statistics.mean_patch_bytes,
        context=context_bytes,
        entropy_model=entropy_flops,
        bpe=None if tokenizer is None else (tokenizer.bytes_per_token, tokenizer.vocabulary),
    )
    return {
        "name": counted.name,
        "url": counted.url,
        "documents": statistics.documents,
        "bytes": statistics.bytes,
        "tokens": statistics.tokens,
        "scored_tokens": scored,
        "patches": statistics.patches,
        "shards": sum(entry.sha256 is not None for entry in entries),
        "shard_bytes": sum(entry.shard_bytes for entry in entries),
        "mean_patch_bytes": statistics.mean_patch_bytes,
        "mean_entropy": _mean_entropy(counted, known),
        "rule": rule,
        "threshold": patcher.get("threshold"),
        # A rule that has a threshold lacks one where merged sets disagree on it.
        "thresholds_differ": patcher.get("threshold") is None
        and "rule" in patcher
        and facts.compares is not None,
        "max_patch_length": patcher.get("max_patch_length"),
        "made": counted.made,
        "patch_lengths": {
            "counts": statistics.to_json()["patch_lengths"],
            "percentiles": {str(p): statistics.patch_length_percentile(p) for p in PERCENTILES},
        },
        "entropies": {"bin": ENTROPY_BIN, "counts": statistics.entropies.tolist()},
        "curve": _curve(curve),
        "curve_has_cuts": counted.curve is not None,
        "suggested": [_suggestion(curve, target) for target in targets],
        "scripts": _rows(summary.scripts, known),
        "columns": {column: _rows(groups, known) for column, groups in summary.columns.items()},
        "columns_in_part": [name for name, groups in summary.columns.items() if OTHERS in groups],
        "sources": _rows(counted.sources, known),
        "drift": [_drift(entry) for entry in entries if entry.sha256 is not None],
        "longest": _excerpts(summary.longest),
        "shortest": _excerpts(summary.shortest),
        "rejects": {
            "count": sum(entry.rejects for entry in entries),
            "reasons": dict(summary.reasons),
            "failures": [f"{entry.source}: {entry.error}" for entry in entries if entry.error],
        },
        "problems": list(counted.problems),
        "runs": list(counted.runs),
        "tokenizer": None if tokenizer is None else vars(tokenizer),
        "flops": list(cost),
    }


def _curve(curve: ThresholdCurve) -> dict[str, list[float]]:
    thinned = curve.thinned(CURVE_POINTS)
    return {
        "thresholds": thinned.thresholds_K.tolist(),
        "mean_patch_bytes": thinned.mean_patch_bytes.tolist(),
    }


def _suggestion(curve: ThresholdCurve, target: float) -> dict[str, float | None]:
    threshold, reached = curve.closest(target) or (None, None)
    return {"target": target, "threshold": threshold, "mean_patch_bytes": reached}


def _mean_entropy(counted: Counted, known: bool) -> float | None:
    """Nats, over all tokens; where not all are known, over those that are, from the histogram."""
    if known:
        return sum(counted.summary.scripts.values(), GroupCounts()).mean_entropy
    counts = counted.statistics.entropies
    middles = (np.arange(len(counts)) + 0.5) * ENTROPY_BIN
    return float(counts @ middles / counts.sum()) if counts.any() else None


def _rows(groups: Groups, known: bool) -> list[dict[str, Any]]:
    """Groups as they are shown: those with the most text first, what is left of others last."""
    named = {name: counts for name, counts in groups.items() if name != OTHERS}
    shown = dict(sorted(named.items(), key=lambda item: -item[1].bytes)[:MOST_SHOWN])
    others = [counts for name, counts in groups.items() if name not in shown]
    if others:
        shown[OTHERS] = sum(others, GroupCounts())
    return [
        {
            "name": name or EMPTY,
            "documents": counts.documents,
            "bytes": counts.bytes,
            "patches": counts.patches,
            "mean_patch_bytes": counts.mean_patch_bytes,
            "mean_entropy": counts.mean_entropy if known else None,
        }
        for name, counts in shown.items()
    ]


def _by_file(entries: Sequence[ShardEntry]) -> Groups:
    """By input file."""
    groups: Groups = {}
    for entry in entries:
        counts = groups.get(entry.source, GroupCounts())
        groups[entry.source] = counts + _entry_counts(entry)
    return groups


def _drift(entry: ShardEntry) -> dict[str, Any]:
    size, patches = entry.statistics["bytes"], entry.statistics["patches"]
    return {"shard": entry.name, "bytes": size, "mean_patch_bytes": size / max(patches, 1)}


def _entry_counts(entry: ShardEntry) -> GroupCounts:
    """Counts of a shard; its entropies at the middles of their bins."""
    statistics = entry.statistics
    counts = statistics["entropies"]
    whole = sum(map(mul, map(int, counts), counts.values()))
    units = round((whole + sum(counts.values()) / 2) * ENTROPY_BIN / ENTROPY_UNIT)
    return GroupCounts(statistics["documents"], statistics["bytes"], statistics["patches"], units)


def _excerpts(excerpts: Sequence[Excerpt]) -> list[dict[str, Any]]:
    return [excerpt.to_json() for excerpt in excerpts]
