"""The words of a report that depend on its figures: the overview, and whole sentences.

All other words of the page are in ``page.html.j2``.
"""

from collections.abc import Callable, Sequence

from matplotlib.ticker import EngFormatter

from model.patcher import SHOWN_DIGITS
from model.rules import Compared, find_rule
from pipeline.cli.commands import command_line
from pipeline.drawing.page import printable
from pipeline.report.figures import SetFigures
from pipeline.statistics.counts import LONGEST

format_bytes = EngFormatter(unit="B", places=2, sep=" ")
"""Bytes with a prefix: 1.50 MB."""


def explanation(figures: SetFigures) -> str:
    """Why the patches of a set are as long as they are, and which threshold makes them longer or
    shorter."""
    if not figures.patches:
        return "The set holds no text."
    if figures.thresholds_differ:
        return "The merged sets have different thresholds."
    rule, threshold, longest = figures.rule, figures.threshold, figures.max_patch_length
    if threshold is None:
        return f"The {rule} rule has no threshold."
    starts = 100 * figures.patches / figures.tokens
    rise = figures.provenance.patcher.get("threshold_add")
    places: dict[Compared | None, str] = {
        "entropy": f"the entropy exceeds the threshold, {threshold!r} nats",
        "rise": f"the entropy rises by more than the threshold, {threshold!r} nats",
        "both": f"the entropy exceeds {threshold!r} nats and rises by more than {rise!r}",
    }
    place = places[find_rule(rule).compares]
    splits = f", or the patch before has {longest} tokens" if longest else ""
    sentences = f"A patch starts after {starts:.1f} % of tokens: where {place}{splits}."
    if figures.mean_entropy is not None:
        sentences += f" The mean entropy is {figures.mean_entropy:.2f} nats."
    return sentences + _advice(figures)


def _advice(figures: SetFigures) -> str:
    """The threshold to use instead, unless patches are near the first target already."""
    nearest = figures.suggested[0]
    target, reached, best = nearest.target, figures.mean_patch_bytes, nearest.mean_patch_bytes
    if nearest.threshold is None or best is None or _leaves_out_splits(figures):
        return ""
    near, nearer = abs(reached - target), abs(best - target)
    if near <= 0.1 * target or near <= nearer:
        return ""
    longer = "longer" if reached < target else "shorter"
    return (
        f" For {longer} patches, of {best:.2f} bytes on average, use a "
        f"threshold of {nearest.threshold!r} nats."
    )


def _leaves_out_splits(figures: SetFigures) -> bool:
    """True if the curve, and with it the suggestions, leaves out splits at max_patch_length."""
    return bool(figures.max_patch_length) and not figures.curve_has_cuts


def overview(sets: Sequence[SetFigures]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: a label, and a cell for each set."""

    def row(label: str, cell: Callable[[SetFigures], str]) -> tuple[str, list[str]]:
        return label, [printable(cell(figures)) for figures in sets]

    def lengths(figures: SetFigures) -> str:
        percentiles = figures.patch_lengths.percentiles
        shown = ((p, percentiles[p]) for p in (10, 50, 90, 99))
        return ", ".join(f"{length}{'+' * (length == LONGEST)} ({p} %)" for p, length in shown)

    unfinished = [row("unfinished", _so_far)] if any(figures.so_far for figures in sets) else []
    held_out = [row("validation set", _held_out)] if any(f.held_out for f in sets) else []
    return [
        *unfinished,
        row("rule", _rule),
        row("threshold (nats)", _threshold),
        row("entropy model", _entropy_model),
        row("mean bytes per patch", lambda f: f"{f.mean_patch_bytes:.3f}"),
        row("patch lengths (tokens)", lengths),
        row("mean entropy (nats)", lambda f: format_nats(f.mean_entropy)),
        row("documents", lambda f: f"{f.documents:,}"),
        row("mean bytes per document", lambda f: f"{f.bytes / max(f.documents, 1):,.0f}"),
        row("rejected documents", lambda f: f"{f.rejects.count:,}"),
        *held_out,
        row("shards", lambda f: f"{f.shards:,}, {format_bytes(f.shard_bytes)}"),
        row("patching", _throughput),
        row("where", lambda f: f.url),
    ]


def _so_far(figures: SetFigures) -> str:
    """How much of the input is done, of a set whose job has not ended."""
    if figures.so_far is None:
        return "no"
    done, all_of_it = figures.so_far.input_bytes_done, figures.so_far.input_bytes
    share = f"{figures.so_far.share:.1%} of the input so far"
    return f"{share}: {format_bytes(done)} of about {format_bytes(all_of_it)}"


def _held_out(figures: SetFigures) -> str:
    """The figures of the validation set, and the command that reports on it."""
    held_out = figures.held_out
    if held_out is None:
        return "none"
    if held_out.problem is not None:
        return held_out.problem
    return (
        f"{held_out.documents:,} documents, {format_bytes(held_out.bytes)}, "
        f"{held_out.mean_patch_bytes:.3f} bytes per patch; reported on by "
        f"{command_line('patch_report')} --shards {held_out.url}"
    )


def format_nats(value: float | None) -> str:
    """An entropy, or that the shards hold none."""
    return "none stored" if value is None else f"{value:.2f}"


def _entropy_model(figures: SetFigures) -> str:
    """The source of the model, and that its entropies were adopted, if they were."""
    model = figures.provenance.entropy_model
    source = str(model.get("source", "unknown"))
    return f"{source}; adopted from the column {model['column']!r}" if "column" in model else source


def _rule(figures: SetFigures) -> str:
    """The rule with its settings, all but the threshold, which has a row of its own."""
    given = {k: v for k, v in figures.provenance.patcher.items() if v is not False}
    if "tokenizer" in given:
        given["tokenizer"] = given["tokenizer"][:SHOWN_DIGITS]
    more = (f"{name} {value}" for name, value in given.items() if name not in ("rule", "threshold"))
    return ", ".join([figures.rule, *more])


def _threshold(figures: SetFigures) -> str:
    if figures.thresholds_differ:
        return "different ones"
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
    return f"{format_bytes(done / max(seconds, 1e-9))}/s on {on} ({seconds:,.1f} s{times})"


def curve_note(sets: Sequence[SetFigures]) -> str:
    """A note to readers of these sets' curve and suggestions; empty if there is nothing to know."""
    notes = []
    if not any(figures.scored_tokens for figures in sets):
        notes.append(" The shards hold no entropies, so there is nothing to count.")
    elif any(0 < figures.scored_tokens < figures.tokens for figures in sets):
        notes.append(" Only text whose entropies are stored is counted.")
    if any(f.threshold is None and not f.thresholds_differ for f in sets):
        notes.append(" For a rule without a threshold, the figures are those of the global rule.")
    if any(map(_leaves_out_splits, sets)):
        notes.append(" Splits at max_patch_length are left out; --recompute counts them.")
    return "".join(notes)


def entropies_note(sets: Sequence[SetFigures]) -> str:
    """How to read the plot of entropies of these sets."""
    compared = {
        find_rule(figures.rule).compares for figures in sets if figures.threshold is not None
    }
    notes = []
    if compared & {"entropy", "both"}:
        several = "An upright dashed line is the threshold of the set in its colour."
        notes.append("The dashed line is the threshold." if len(sets) == 1 else several)
    if compared == {"entropy"} and not any(figures.max_patch_length for figures in sets):
        notes.append("A new patch follows each token to its right.")
    if "both" in compared:
        notes.append("The combined rule also asks how much the entropy rises.")
    if "rise" in compared:
        notes.append("The monotonic rule compares how much the entropy rises, which is not shown.")
    return " ".join(notes)
