"""Boundary rules as the published code states them: in the arguments of a model, and in those of
the patcher of its data, which call some things otherwise.
"""

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from model.checkpoints.files import JsonObject
from model.patcher import Patcher

ANY_PATCH_SIZE = 4.5
"""Stands where the published code wants a number and the rule has none; nothing is computed of
it."""
THEIR_PATCHER_MODES = ("entropy", "space", "bpe")
"""Modes of ours that the published code can patch data in."""
PLAIN_MODES = ("space", "byte", "bpe")
"""Published patching modes that are rules of ours by the same name, without settings."""


@dataclass(frozen=True)
class PublishedPatching:
    """How the published code says that data is patched."""

    mode: str | None
    threshold: float | None
    threshold_add: float | None
    monotonicity: bool
    patch_size: float | None
    max_patch_length: int | None

    @classmethod
    def of_data(cls, args: JsonObject) -> "PublishedPatching":
        """From the arguments of the data's patcher.

        Raises:
            ValueError: a switch is neither true nor false.
        """
        rising = args.get("monotonicity") or False
        if not isinstance(rising, bool):
            raise ValueError(f"argument monotonicity={rising!r:.80} is neither true nor false")
        return cls(
            args.get("patching_mode"),
            args.get("threshold"),
            args.get("threshold_add"),
            rising,
            args.get("patch_size"),
            args.get("max_patch_length"),
        )

    @classmethod
    def of_model(cls, args: JsonObject) -> "PublishedPatching":
        """From the arguments of a model, which call the thresholds something else."""
        named = {"threshold": "patching_threshold", "threshold_add": "patching_threshold_add"}
        return cls.of_data({**args, **{ours: args.get(theirs) for ours, theirs in named.items()}})

    def patcher(self) -> Patcher | None:
        """The rule; None where there is none, or one that is not ours."""
        limit = self.max_patch_length
        if self.mode in PLAIN_MODES:
            return Patcher(rule=self.mode, max_patch_length=limit)
        if self.mode == "static" and self.patch_size:
            return Patcher(rule="static", patch_size=self.patch_size, max_patch_length=limit)
        if self.mode != "entropy" or self.threshold is None:
            return None
        if self.monotonicity:
            return Patcher(self.threshold, "monotonic", max_patch_length=limit, published=True)
        if (rise := self.threshold_add) is not None:
            return Patcher(self.threshold, "combined", rise, max_patch_length=limit, published=True)
        return Patcher(self.threshold, max_patch_length=limit)


class PatchingArgs(TypedDict):
    """The arguments of a published model that describe its boundary rule."""

    patching_mode: str
    patching_threshold: float | None
    patching_threshold_add: float | None
    monotonicity: bool
    patch_size: float
    max_patch_length: int | None


class PatcherArgs(TypedDict):
    """The arguments of the published data's patcher."""

    patching_mode: str
    threshold: NotRequired[float]
    threshold_add: float | None
    monotonicity: bool
    max_patch_length: int | None


def published_patcher_args(patcher: Patcher | None) -> PatcherArgs | None:
    """The arguments with which the published data's patcher follows a rule; None if the rule is not
    known, or the published code lacks it."""
    mode = _mode(patcher)
    if patcher is None or mode not in THEIR_PATCHER_MODES:
        return None
    args: PatcherArgs = {
        "patching_mode": mode,
        "threshold_add": patcher.threshold_add,
        "monotonicity": patcher.compares == "rise",
        "max_patch_length": patcher.max_patch_length,
    }
    if patcher.threshold is not None:
        args["threshold"] = patcher.threshold
    return args


def _mode(patcher: Patcher | None) -> str:
    return "entropy" if patcher is None or patcher.has_threshold else patcher.rule


def published_patching_args(patcher: Patcher | None) -> PatchingArgs:
    """The arguments that come nearest to a rule: where they would be read as another one, the
    caller refuses the model. Without a rule they say entropies without a threshold, which is read
    as no rule."""
    rule = Patcher(rule="byte") if patcher is None else patcher
    return {
        "patching_mode": _mode(patcher),
        "patching_threshold": rule.threshold,
        "patching_threshold_add": rule.threshold_add,
        "monotonicity": rule.compares == "rise",
        "patch_size": rule.patch_size or ANY_PATCH_SIZE,
        "max_patch_length": rule.max_patch_length,
    }
