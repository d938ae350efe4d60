"""The words of a comparison that depend on its results; all others are in ``page.html.j2``."""

import math
from collections.abc import Iterator, Sequence

from matplotlib.ticker import EngFormatter

from train.compare.figures import EQUAL, ArmResult, Results, RunResult, Spread

MISSING = "\u2013"
"""A dash, where there is no figure."""
BUDGET_MISSED = 0.02
"""The share of its budget that a finished run may be off, as the last step is a whole one."""
WITH_LOSS = " with a loss that is a number"
"""Said of runs that finished, where those that diverged do not count."""
PART_NAMES = {
    "latent": "latent transformer",
    "token_transformer": "transformer of tokens",
    "entropy_model": "transformer of bytes",
}
"""The parts of models that cost FLOPs, where their names in results say too little. What a
transformer of bytes costs has the name of an entropy model, which is one."""
_prefixed = EngFormatter(places=2, sep=" ")


def format_flops(value: float | None) -> str:
    """A number with a prefix: 1.50 G."""
    return MISSING if value is None else _prefixed(value)


def mean_words(spread: Spread, *, signed: bool = False) -> str:
    """The mean over seeds: 2.3104."""
    return _bits(spread.mean, signed) if spread else MISSING


def range_words(spread: Spread, *, signed: bool = False) -> str:
    """The range over seeds: 2.3051 to 2.3160; empty if there are not several."""
    if len(spread.by_seed) < 2:
        return ""
    return f"{_bits(spread.low, signed)} to {_bits(spread.high, signed)}"


def _bits(value: float, signed: bool = True) -> str:
    value = round(value, 4) + 0.0  # which has no negative zero
    text = f"{value:+.4f}" if signed else f"{value:.4f}"
    return text.replace("-", "\u2212")


def verdict(differences: Spread) -> str:
    """Say what these seeds tell about a difference from the first arm."""
    seeds = len(differences.by_seed)
    if not seeds:
        return MISSING
    if seeds == 1:
        return "one seed: no range"
    word = {1: "higher", -1: "lower"}.get(differences.sign)
    return f"{word} in all {seeds} seeds" if word else "not told apart by these seeds"


def answer(results: Results) -> list[str]:
    """One sentence for each arm about the text without noise, as far as it is known."""
    first, text = results.arms[0], results.clean
    if not any(arm.losses(text) for arm in results.arms):
        if any(arm.finished for arm in results.arms):
            return [f"No run has finished{WITH_LOSS}, so there is no answer."]
        return ["No run has finished, so there is no answer yet."]
    if len(results.arms) > 1:
        return [_compared(results, arm, text) for arm in results.arms[1:]]
    losses = first.losses(text)
    ends = f" ({range_words(losses)})" if len(losses.by_seed) > 1 else ""
    return [f"With {_quoted(first)}, a byte takes {losses.mean:.4f} bits{ends}."]


def _compared(results: Results, arm: ArmResult, text: str) -> str:
    differences, first = results.differences(arm, text), _quoted(results.arms[0])
    other, seeds = _quoted(arm), len(differences.by_seed)
    if not seeds:
        finished = ({run.seed for run in each.finished} for each in (arm, results.arms[0]))
        diverged = WITH_LOSS if set.intersection(*finished) else ""
        return (
            f"No seed has finished for both {other} and {first}{diverged}: there is nothing to "
            "compare."
        )
    amount, word = abs(differences.mean), "more" if differences.mean > 0 else "fewer"
    sentence = f"With {other}, a byte takes {amount:.4f} bits {word} than with {first}"
    if seeds == 1:
        return f"{sentence}, by one seed. One seed has no range, so it tells nothing apart."
    if differences.sign:
        near, far = sorted((abs(differences.low), abs(differences.high)))
        return f"{sentence} ({near:.4f} to {far:.4f}, in all {seeds} seeds)."
    return (
        f"These seeds do not tell {other} and {first} apart: the differences are "
        f"{range_words(differences, signed=True)} bits per byte."
    )


def _quoted(arm: ArmResult) -> str:
    """An arm's label in a sentence, as it may have commas of its own."""
    return f"\u201c{arm.label}\u201d"


def chance_note(results: Results) -> str:
    """How often a difference of one sign in all seeds means nothing; empty without a pair."""
    text = results.clean
    pairs = [results.differences(arm, text) for arm in results.arms[1:]]
    seeds = max((len(pair.by_seed) for pair in pairs), default=0)
    if seeds < 2:
        return ""
    return (
        "A range goes from the lowest to the highest seed; it is no confidence interval. Of two "
        f"arms that are equally good, one is better in all {seeds} seeds by chance once in "
        f"{2 ** (seeds - 1):,} comparisons."
    )


def problems(results: Results) -> list[str]:
    """One sentence for everything that makes the answer less than it ought to be."""
    return [*_unfinished(results), *_unequal(results)]


def _unfinished(results: Results) -> Iterator[str]:
    planned = len(results.seeds)
    for arm in results.arms:
        if missing := results.missing(arm):
            finished = planned - len(missing)
            share = f"Only {finished} of {planned}" if finished else f"None of the {planned}"
            yield (
                f"{share} seeds of {arm.label} {'have' if finished > 1 else 'has'} finished; "
                f"missing: {_numbers(missing)}."
            )
        for text in results.held_out:
            if seeds := arm.diverged(text):
                yield (
                    f"The loss of {arm.label} on {text} is no number, and is left out of all "
                    f"figures, with the seed{'s' * (len(seeds) > 1)} {_numbers(seeds)}."
                )


def _unequal(results: Results) -> Iterator[str]:
    if (share := results.largest_cost_difference) > EQUAL:
        costs = ", ".join(f"{arm.label} {format_flops(arm.training_flops)}" for arm in results.arms)
        yield f"The FLOPs per byte of the arms differ by {100 * share:.1f} %: {costs}."
    budget = results.budget_flops
    for arm in results.arms:
        for run in arm.finished:
            if abs(run.flops - budget) > BUDGET_MISSED * budget:
                yield (
                    f"{arm.label}, seed {run.seed}: finished at {format_flops(run.flops)} FLOPs "
                    f"instead of {format_flops(budget)}."
                )


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def in_words(name: str) -> str:
    """The name of a held-out text or a part of a model as words: ``random_case`` is random case."""
    return PART_NAMES.get(name, name.replace("_", " "))


def patch_size(arm: ArmResult) -> str:
    return MISSING if arm.patch_size is None else f"{arm.patch_size:.2f}"


def last_loss(run: RunResult, text: str) -> str:
    """Bits per byte of the last validation of a run, finished or not."""
    ends = run.points[-1].bits_per_byte if run.points else {}
    if text not in ends:
        return MISSING
    bits = ends[text]
    return "no number" if bits is None or not math.isfinite(bits) else _bits(bits, signed=False)


def difference_of(differences: Spread, seed: int) -> str:
    """One seed's difference from the first arm."""
    return _bits(differences.by_seed[seed]) if seed in differences.by_seed else MISSING
