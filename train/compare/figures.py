"""The results of an experiment: what ``results.json`` holds, and figures that follow from it.

An arm is compared with the first one seed by seed: the seed of a run decides the order in which it
reads the text, so that the difference of a pair varies less than the losses do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import fsum, inf, isfinite
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.errors import PipelineError

EQUAL = 0.01
"""The FLOPs per byte of arms are equal if they differ by no larger share."""


@dataclass(frozen=True)
class Spread:
    """One figure of the runs of an arm, by seed."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        # Rounded, the mean of equal values could lie outside of them.
        mean = fsum(self.by_seed.values()) / len(self.by_seed)
        return min(max(mean, self.low), self.high)

    @property
    def low(self) -> float:
        return min(self.by_seed.values())

    @property
    def high(self) -> float:
        return max(self.by_seed.values())

    @property
    def sign(self) -> int:
        """1 or -1 if all of two or more seeds are above or below zero, else 0: the figure is not
        told apart from zero by these seeds."""
        if len(self.by_seed) < 2:
            return 0
        return (self.low > 0) - (self.high < 0)

    def __bool__(self) -> bool:
        return bool(self.by_seed)

    def __sub__(self, other: "Spread") -> "Spread":
        """The differences of pairs, for the seeds that both have."""
        common = [seed for seed in self.by_seed if seed in other.by_seed]
        return Spread({seed: self.by_seed[seed] - other.by_seed[seed] for seed in common})


@dataclass(frozen=True)
class HeldOut:
    """A text that arms are measured on."""

    bytes: int
    hash: str
    """The hash that a validation prints; see :mod:`train.validator`."""
    documents: int


@dataclass(frozen=True)
class PointResult:
    """A validation in the course of a run."""

    step: int
    bytes: int
    """Bytes of text that the run had read."""
    flops: float
    bits_per_byte: Mapping[str, float | None]
    """By the name of the held-out text; None or NaN for a loss that is no number."""


@dataclass(frozen=True)
class RunResult:
    """One training."""

    seed: int
    finished: bool
    seconds: float
    bytes: int
    flops: float
    points: Sequence[PointResult]
    """In the order of steps."""


@dataclass(frozen=True)
class ArmResult:
    """The runs of one configuration, with what it costs."""

    name: str
    label: str
    config: str
    flags: Sequence[str]
    model: str
    """The model in words."""
    fitted: Mapping[str, int]
    """Widths that were fitted, by the name of their flag, so that arms cost the same."""
    parameters: int
    table_parameters: int
    """The parameters of hash tables, which take part in no matrix product."""
    patch_size: float | None
    """Mean bytes per patch, or per token of a tokenizer; None for a transformer of bytes."""
    flops_per_byte: Mapping[str, float]
    """Forward and backward, by part of the model."""
    inference_flops_per_byte: float
    """The forward pass of the model alone."""
    entropy_model: str | None
    """The entropy model that patches need at inference; None without one."""
    entropy_model_flops_per_byte: float | None
    """Its forward pass; 0 without one, None if it is not known."""
    runs: Sequence[RunResult]

    @property
    def training_flops(self) -> float:
        """FLOPs per byte of all parts."""
        return fsum(self.flops_per_byte.values())

    @property
    def whole_inference_flops(self) -> float | None:
        """FLOPs per byte at inference, with the entropy model; None if that is not known."""
        entropies = self.entropy_model_flops_per_byte
        return None if entropies is None else self.inference_flops_per_byte + entropies

    @property
    def finished(self) -> list[RunResult]:
        return [run for run in self.runs if run.finished and run.points]

    def losses(self, text: str) -> Spread:
        """Bits per byte of this held-out text at the end of the runs that finished. A run whose
        loss is no number has none."""
        ends = self._ends(text)
        return Spread({s: bits for s, bits in ends.items() if bits is not None and isfinite(bits)})

    def diverged(self, text: str) -> list[int]:
        """Seeds of runs that finished with a loss of this text that is no number."""
        return [seed for seed in self._ends(text) if seed not in self.losses(text).by_seed]

    def _ends(self, text: str) -> dict[int, float | None]:
        last = ((run.seed, run.points[-1].bits_per_byte) for run in self.finished)
        return {seed: bits[text] for seed, bits in last if text in bits}


@dataclass(frozen=True)
class Results:
    """An experiment: its question, its arms, and the text that they are measured on."""

    name: str
    title: str
    question: str
    notes: Sequence[str]
    command: str
    version: str
    hardware: str
    seeds: Sequence[int]
    """The seeds with which each arm is to be trained."""
    budget_flops: float
    """Training FLOPs of a run."""
    held_out: Mapping[str, HeldOut]
    """By name; the first is the text without noise, which the curves show."""
    arms: Sequence[ArmResult]
    """All others are compared with the first."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Results":
        """The results that a file holds; keys that are not known are left out.

        Raises:
            PipelineError: something is missing or of another kind; says where.
        """
        results: Results = _read(cls, values, "results")
        names = [arm.name for arm in results.arms]
        if not names or len(set(names)) < len(names):
            raise PipelineError(f"results: arms must have different names, got {names}")
        for arm in results.arms:
            seeds = [run.seed for run in arm.runs]
            if len(set(seeds)) < len(seeds):
                raise PipelineError(f"results: {arm.name} has several runs of one seed, {seeds}")
        return results

    @property
    def clean(self) -> str:
        """The name of the held-out text that curves show; empty before any is known."""
        return next(iter(self.held_out), "")

    @property
    def noised(self) -> list[str]:
        """The names of all other held-out texts."""
        return list(self.held_out)[1:]

    @property
    def parts(self) -> list[str]:
        """The parts of all models that cost FLOPs in training, in the order of the arms."""
        return list(dict.fromkeys(part for arm in self.arms for part in arm.flops_per_byte))

    def missing(self, arm: ArmResult) -> list[int]:
        """The seeds that an arm has no finished run of."""
        return [seed for seed in self.seeds if seed not in {run.seed for run in arm.finished}]

    def differences(self, arm: ArmResult, text: str) -> Spread:
        """Bits per byte above those of the first arm, by seed: below zero, this arm is better."""
        return arm.losses(text) - self.arms[0].losses(text)

    def rise(self, arm: ArmResult, text: str) -> Spread:
        """Bits per byte of a text above those of the clean one, by seed."""
        return arm.losses(text) - arm.losses(self.clean)

    @property
    def largest_cost_difference(self) -> float:
        """By which share the most expensive arm's FLOPs per byte of training exceed the least."""
        costs = [arm.training_flops for arm in self.arms]
        return max(costs) / min(costs) - 1 if min(costs) > 0 else inf


def _read(kind: Any, value: Any, where: str) -> Any:
    """A value of an annotated type, such as a dataclass, from what JSON has in its place."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # of a type and None
        return None if value is None else _read(inner[0], value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [f.name for f in fields(kind)]
        _check(value, Mapping, where, "an object")
        if lacking := [name for name in names if name not in value]:
            raise PipelineError(f"{where}: lacks {', '.join(lacking)}")
        return kind(**{n: _read(hints[n], value[n], f"{where}: {n}") for n in names})
    if origin is Mapping:
        _check(value, Mapping, where, "an object")
        return {key: _read(inner[1], each, f"{where}: {key}") for key, each in value.items()}
    if origin is Sequence:
        _check(value, (list, tuple), where, "a list")
        return [_read(inner[0], each, f"{where} {i}") for i, each in enumerate(value)]
    expected = (int, float) if kind is float else kind
    _check(value, expected, where, _KINDS[kind])
    return value


_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def _check(value: Any, kind: Any, where: str, words: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise PipelineError(f"{where} must be {words}, got {value!r:.60}")
