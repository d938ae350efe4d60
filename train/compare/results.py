"""The results of an experiment: what ``results.json`` holds, and figures that follow from it.

An arm is compared with the first one seed by seed: runs of one seed read the same text in the same
order, so that the difference of a pair varies less than the losses do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from pipeline.errors import PipelineError

EQUAL = 0.01
"""The FLOPs per byte of arms are equal if they differ by no larger share."""
T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """One figure of the runs of an arm, by seed."""

    by_seed: Mapping[int, float]

    @property
    def mean(self) -> float:
        # Rounded, the mean of equal values could lie outside of them.
        mean = math.fsum(self.by_seed.values()) / len(self.by_seed)
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
    bits_per_byte: Mapping[str, float]
    """By the name of the held-out text."""


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
    parameters: int
    table_parameters: int
    """Those of hash tables, which take part in no matrix product."""
    patch_size: float | None
    """Mean bytes per patch, or per token of a tokenizer; None for a transformer of bytes."""
    flops_per_byte: Mapping[str, float]
    """Forward and backward, by part of the model."""
    inference_flops_per_byte: float
    """The forward pass of the model alone."""
    entropy_model_flops_per_byte: float
    """The forward pass of the entropy model that patches need at inference; 0 without one."""
    runs: Sequence[RunResult]

    @property
    def training_flops(self) -> float:
        """FLOPs per byte of all parts."""
        return math.fsum(self.flops_per_byte.values())

    @property
    def whole_inference_flops(self) -> float:
        """FLOPs per byte at inference, with the entropy model."""
        return self.inference_flops_per_byte + self.entropy_model_flops_per_byte

    @property
    def finished(self) -> list[RunResult]:
        return [run for run in self.runs if run.finished and run.points]

    def losses(self, text: str | None) -> Spread:
        """Bits per byte of this held-out text at the end of the runs that finished. A run whose
        loss is no number has none."""
        ends = {run.seed: run.points[-1].bits_per_byte.get(text or "") for run in self.finished}
        return Spread({s: bits for s, bits in ends.items() if bits is not None and is_finite(bits)})

    def diverged(self, text: str) -> list[int]:
        """Seeds of runs that finished with a loss of this text that is no number."""
        ends = ((run.seed, run.points[-1].bits_per_byte.get(text)) for run in self.finished)
        return [seed for seed, bits in ends if bits is not None and not is_finite(bits)]


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
    """Those that each arm is to be trained with."""
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
        results = _read(cls, values, "results")
        held_out = _mapping(results.held_out, "held_out")
        texts = {
            name: _read(HeldOut, text, f"held_out {name!r}") for name, text in held_out.items()
        }
        arms = [_read_arm(arm, number) for number, arm in enumerate(_list(results.arms, "arms"))]
        names = [arm.name for arm in arms]
        if not arms or len(set(names)) < len(names):
            raise PipelineError(f"results: needs arms with different names, got {names}")
        return Results(**{**vars(results), "held_out": texts, "arms": arms})

    @property
    def clean(self) -> str | None:
        """The name of the held-out text that curves show; None before any is known."""
        return next(iter(self.held_out), None)

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

    def differences(self, arm: ArmResult, text: str | None) -> Spread:
        """Bits per byte above those of the first arm, by seed: below zero, this arm is better."""
        return arm.losses(text) - self.arms[0].losses(text)

    def rise(self, arm: ArmResult, text: str) -> Spread:
        """Bits per byte of a text above those of the clean one, by seed."""
        return arm.losses(text) - arm.losses(self.clean)

    @property
    def largest_cost_difference(self) -> float:
        """By which share the most expensive arm's FLOPs per byte of training exceed the least."""
        costs = [arm.training_flops for arm in self.arms]
        return max(costs) / min(costs) - 1 if min(costs) > 0 else math.inf


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _read(kind: type[T], values: Any, where: str) -> T:
    """A dataclass from the values of its fields."""
    values = _mapping(values, where)
    expected = [f.name for f in fields(kind) if f.default is MISSING]  # type: ignore[arg-type]
    lacking = [name for name in expected if name not in values]
    if lacking:
        raise PipelineError(f"{where}: lacks {', '.join(lacking)}; the comparison writes it anew")
    return kind(**{name: values[name] for name in expected})


def _read_arm(values: Any, number: int) -> ArmResult:
    arm = _read(ArmResult, values, f"arm {number}")
    where = f"arm {arm.name!r}"
    runs = []
    for each in _list(arm.runs, f"{where}: runs"):
        run = _read(RunResult, each, f"{where}: a run")
        points = _list(run.points, f"{where}, seed {run.seed}: points")
        read = [_read(PointResult, p, f"{where}, seed {run.seed}: a point") for p in points]
        runs.append(RunResult(**{**vars(run), "points": sorted(read, key=lambda p: p.step)}))
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise PipelineError(f"{where}: has several runs of one seed, {seeds}")
    return ArmResult(**{**vars(arm), "runs": runs})


def _mapping(values: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise PipelineError(f"{where}: must be a JSON object, got {type(values).__name__}")
    return values


def _list(values: Any, where: str) -> Sequence[Any]:
    if not isinstance(values, list | tuple):
        raise PipelineError(f"{where}: must be a list, got {type(values).__name__}")
    return values
