"""Comparisons of the shard sets of a run: were their patches made alike?

Sets that are trained on together, and validation sets, have to follow one boundary rule on the
entropies of one model; ``--dataloader.allow-mixed-patches`` lets them differ.
"""

from collections.abc import Sequence
from dataclasses import replace

from model.blt_config import BLTConfig
from model.provenance import PatchProvenance, closest, patch_differences
from pipeline.errors import ConfigError
from pipeline.shards.provenance import recorded

ALLOW = "--dataloader.allow-mixed-patches"


def compare_sets(sets: Sequence[PatchProvenance], *, allowed: bool) -> list[str]:
    """Compare the sets of one dataloader with its first.

    Args:
        sets: one set each, with the rule by which it is read.
        allowed: sets may differ.

    Returns:
        sentences about what differs, or cannot be compared, and is no error.

    Raises:
        ConfigError: two sets have patches of different rules or entropy models; names them.
    """
    first = sets[0]
    notes: list[str] = []
    for other in sets[1:]:
        differ = patch_differences(first, other, (first.sets[0], other.sets[0]))
        if differ.boundaries and not allowed:
            way_on = (
                "patch both with one entropy model"
                if differ.entropies
                else "re-patch them by one rule (--dataloader.threshold)"
            )
            raise ConfigError(
                f"dataloader.shards: the sets have different patches: {differ.boundaries}; "
                f"{way_on}, or mix them with {ALLOW}"
            )
        notes += filter(None, [differ.boundaries, differ.note])
    return list(dict.fromkeys(notes))


def compare_validation(
    validation: Sequence[PatchProvenance], training: Sequence[PatchProvenance], *, allowed: bool
) -> list[str]:
    """Compare validation sets with the training sets: each has to be patched like one of them.

    Arguments, result and error are those of :func:`compare_sets`. Bits per byte of other patches
    would be another figure than the training's, and say little about it.
    """
    notes: list[str] = []
    for each in validation:
        differ = closest(training, each, ("the training sets", each.sets[0]))
        if differ.boundaries and not allowed:
            raise ConfigError(
                "--validator.dataloader.shards: have other patches than the training sets: "
                f"{differ.boundaries}; patch them alike, or compare them all the same with {ALLOW}"
            )
        notes += filter(None, [differ.boundaries, differ.note])
    return list(dict.fromkeys(notes))


def with_patches(shape: BLTConfig, sets: Sequence[PatchProvenance]) -> BLTConfig:
    """The shape with what is known of the patches of its training sets; with a rule only if all
    sets share it."""
    rules = {each.patcher for each in sets}
    patcher = rules.pop() if len(rules) == 1 else None
    return replace(shape, patcher=patcher, patch_provenance=recorded(sets))
