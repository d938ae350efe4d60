"""The patches that a BLT is given, compared with those that it was trained on."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from model.blt_config import BLTConfig
from model.patcher import Patcher
from model.provenance import (
    EntropyModelIdentity,
    PatchDifferences,
    PatchProvenance,
    closest,
    kinds_of,
    listed,
)
from model.rules import find_rule
from pipeline.cli.flags import flag_name
from pipeline.errors import ConfigError

ALLOW = "--allow-other-entropies"
Say = Callable[[str], None]
"""Prints a line."""


def compare_with_training(
    config: BLTConfig, given: PatchProvenance, what: str, *, flag: str, allowed: bool, say: Say
) -> None:
    """Compare the patches of a run with those that a checkpoint records.

    Another rule, or another threshold, is said; entropies of another model are refused.

    Args:
        what: the owner of ``given``, to complete "the rule of".
        flag: the flag that errors name.
        allowed: the entropies may be of another model.

    Raises:
        ConfigError: they are, and it is not allowed; says how to go on.
    """
    record = config.known_patches
    if record:
        _report(closest(record, given, ("the checkpoint", what)), flag, allowed=allowed, say=say)
    elif given.patcher.reads_entropies:
        say(f"note: the checkpoint does not record its patches: those of {what} are not compared")
    kinds = kinds_of(record)
    if len(kinds) > 1:
        say(
            f"note: the model was trained on {len(kinds)} kinds of patches: {listed(kinds)}; the "
            f"patches of {what}: {given}"
        )


def compare_entropy_model(
    config: BLTConfig, model: EntropyModelIdentity, *, allowed: bool, say: Say
) -> None:
    """Compare an entropy model alone with those that a checkpoint records; see
    :func:`compare_with_training`."""
    names = ("the checkpoint", "--entropy-model")
    compared = [
        closest([each], PatchProvenance(each.patcher, model), names)
        for each in config.known_patches
        if each.patcher.reads_entropies
    ]
    if compared:
        _report(min(compared, key=PatchDifferences.weight), names[1], allowed=allowed, say=say)


def _report(differ: PatchDifferences, flag: str, *, allowed: bool, say: Say) -> None:
    if differ.entropies and not allowed:
        raise ConfigError(
            f"{flag}: {differ.entropies}; take those that the model was trained with, or go on all "
            f"the same ({ALLOW})"
        )
    for note in filter(None, differ):
        say(f"note: {note}")


def choose_patcher(config: BLTConfig, rule: str | None, threshold: float | None) -> Patcher:
    """The rule that cuts text for a BLT.

    Args:
        rule: the name of one of the checkpoint's rules, or of another; by default the checkpoint's.
        threshold: nats, instead of the rule's own.

    Raises:
        ConfigError: the checkpoint has no rule or several, or the rule and the threshold do not
            fit; names the flags to give.
    """
    candidates = [config.patcher] if config.patcher else []
    if rule is not None or not candidates:
        known = [*candidates, *(each.patcher for each in config.patch_provenance)]
        candidates = [each for each in known if rule in (None, each.rule)]
    if threshold is not None:
        exact = [each for each in candidates if each.threshold == threshold]
        several = [each for each in candidates if each.has_threshold] or candidates
        candidates = exact or [with_threshold(each, threshold) for each in several]
    candidates = list(dict.fromkeys(candidates))
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ConfigError(
            "--rule, --threshold: the model was trained on sets with different patches: "
            f"{listed(config.patch_provenance)}; name the rule and the threshold of one, and give "
            "its --entropy-model"
        )
    if rule is None and threshold is None:
        raise ConfigError(
            "--threshold: the checkpoint does not say which rule its patches follow; give the "
            "threshold (nats) that it was trained with"
        )
    return _new_patcher(rule or Patcher.rule, threshold)


def _new_patcher(rule: str, threshold: float | None) -> Patcher:
    """
    Raises:
        ConfigError: there is no such rule, or it has other settings than a threshold.
    """
    try:
        needed = find_rule(rule).settings
        if missing := [name for name in needed if name != "threshold"]:
            raise ConfigError(
                f"--rule: the {rule} rule also has {missing[0]}, which only a checkpoint that was "
                "trained with this rule records"
            )
        return Patcher(threshold, rule)
    except ValueError as error:
        name, _, rest = str(error).partition(":")
        raise ConfigError(f"{flag_name(name)}:{rest}") from error


def with_threshold(patcher: Patcher, threshold: float | None) -> Patcher:
    """
    Args:
        threshold: nats, to replace the rule's own; None to leave it.

    Raises:
        ConfigError: the rule has no threshold.
    """
    if threshold is None:
        return patcher
    if not patcher.has_threshold:
        raise ConfigError(f"--threshold: the {patcher.rule} rule has none; leave it out")
    return replace(patcher, threshold=threshold)


def recorded_reset(record: Iterable[PatchProvenance], fingerprint: str | None) -> bool:
    """True if the training's entropies of this model start again after each newline, in all sets
    that record it."""
    models = [each.entropy_model for each in record]
    resets = [m.reset_at_newline for m in models if m and m.fingerprint == fingerprint]
    return bool(resets) and all(resets)
