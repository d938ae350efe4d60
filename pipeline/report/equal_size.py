"""A threshold that gives two sets patches of the same size, so that F1 tells of agreement alone.

A patcher that starts more patches than the reference finds more of the reference's starts, and
starts more that the reference lacks: its F1 says as much about sizes as about agreement.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from model.patcher import Patcher
from pipeline.patches import PatchedTokens, recut
from pipeline.report.common_documents import Block
from pipeline.statistics.threshold_curve import ThresholdCounts

Blocks = Callable[[], Iterator[Block]]
"""Gives the documents, as often as it is called."""


@dataclass(frozen=True)
class Rules:
    """The boundary rules by which the documents of both sets are patched."""

    reference: Patcher | None = None
    """None: the patches are those that the set holds."""
    other: Patcher | None = None

    def patches(self, block: Block) -> tuple[PatchedTokens, PatchedTokens]:
        """The documents of both sets, re-patched where there is a rule for it."""
        both = ((self.reference, block.reference), (self.other, block.other))
        return tuple(  # type: ignore[return-value]
            patched
            if rule is None
            else recut(rule, patched.entropies_T, patched.lengths_D, block.texts)
            for rule, patched in both
        )


def equal_size_rules(
    reference: Patcher | None, other: Patcher | None, blocks: Blocks
) -> Rules | None:
    """The rules that bring the patches of both sets closest to one size.

    The other set gets a new threshold; if it cannot have one, the reference gets it.

    Args:
        reference: the rule of the reference; None if no other threshold can be tried, because it
            has none or because the set holds no entropies.
        other: that of the other set.

    Returns:
        None if neither can have another threshold.
    """
    if other is not None:
        return Rules(other=_closest(other, blocks, lambda block: (block.other, block.reference)))
    if reference is not None:
        rule = _closest(reference, blocks, lambda block: (block.reference, block.other))
        return Rules(reference=rule)
    return None


def _closest(
    rule: Patcher,
    blocks: Blocks,
    moved_and_fixed: Callable[[Block], tuple[PatchedTokens, PatchedTokens]],
) -> Patcher:
    """The rule with the threshold that gives about as many patches as the fixed ones are."""
    counts, wanted = ThresholdCounts(), 0
    for block in blocks():
        moved, fixed = moved_and_fixed(block)
        counts += ThresholdCounts.of(rule, moved.entropies_T, moved.lengths_D)
        wanted += len(fixed.patch_lengths_P)
    curve = counts.curve()
    if not len(curve.thresholds_K):
        return rule

    def patches(place: int) -> int:
        if rule.max_patch_length is None:
            return int(curve.patches_K[place])
        total = 0
        for block in blocks():
            moved, _ = moved_and_fixed(block)
            again = recut(at(place), moved.entropies_T, moved.lengths_D, block.texts)
            total += len(again.patch_lengths_P)
        return total

    def at(place: int) -> Patcher:
        return replace(rule, threshold=float(curve.thresholds_K[place]))

    # Patches become fewer as the threshold rises, also those that max_patch_length cuts.
    low, high = 0, len(curve.thresholds_K) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if patches(middle) >= wanted else (low, middle)
    return at(min((low, high), key=lambda place: abs(patches(place) - wanted)))
