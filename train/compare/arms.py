"""Arms as trainings: their flags, shapes, rows, and the steps that use up the budget."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model.rules import find_rule
from model.widths import resized
from pipeline.shards.shard_set import open_shards
from train.checkpoints.kinds import Shape
from train.cluster.checks import parse_config
from train.compare.data import Data, threshold
from train.compare.experiment import Arm, Experiment, Form
from train.compare.fitting import Rows, count_rows, fitted
from train.compare.runs import Run, folder_of
from train.shape_flags import flag
from train.shim import prepare

TOKEN_MULTIPLE = 8
"""A token transformer has a multiple of so many tokens per row."""
CHECKPOINTS = 4
"""Checkpoints per run."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm with all that its runs need."""

    arm: Arm
    arguments: tuple[str, ...]
    """``--config NAME`` and the trainer's flags."""
    shape: Shape
    changes: Mapping[str, int]
    """The values of the shape that were fitted."""
    rows: Rows
    flops_per_byte: Mapping[str, float]
    """Training FLOPs per byte, by part of the model."""
    steps: int
    decides: Mapping[str, Any]
    """All that the weights depend on beside the seed."""

    @property
    def cost(self) -> float:
        """Training FLOPs per byte."""
        return sum(self.flops_per_byte.values())

    @property
    def step_bytes(self) -> float:
        """Bytes of text per step."""
        return self.rows.bytes_per_batch

    def run(self, seed: int, runs: Path, held_out: tuple[tuple[str, str], ...]) -> Run:
        """The run with a seed."""
        folder = folder_of(runs, self.arm.name, self.decides, seed)
        return Run(self.arm.name, seed, folder, self.arguments, self.steps, held_out)


def plan_arms(experiment: Experiment, form: Form, data: Data) -> list[PlannedArm]:
    """Plan all arms: the first one as it is, the others at its cost.

    Raises:
        ConfigError: a flag is wrong, or a width cannot be fitted; names the arm.
    """
    prepare()
    planned: list[PlannedArm] = []
    for arm in experiment.arms:
        planned.append(_planned(arm, form, data, planned[0].cost if planned else None))
    return planned


def _planned(arm: Arm, form: Form, data: Data, cost: float | None) -> PlannedArm:
    """
    Args:
        cost: training FLOPs per byte that the arm shall cost; None: as it is.
    """
    seq_len = form.row_bytes
    if arm.model == "bpe":  # as many tokens as a row of bytes holds
        guess = max(form.row_bytes // 4, TOKEN_MULTIPLE)
        size = count_rows(_parsed(arm, form, data, guess)).patch_size
        seq_len = TOKEN_MULTIPLE * max(1, round(form.row_bytes / size / TOKEN_MULTIPLE))
    config = _parsed(arm, form, data, seq_len)
    rows, shape = count_rows(config), config.model_spec.model.shape
    changes = {} if cost is None else fitted(shape, rows, cost)
    shape = resized(shape, changes)
    flops = rows.flops_per_byte(shape)
    steps = max(1, round(form.budget_flops / (sum(flops.values()) * rows.bytes_per_batch)))
    plain = [
        *_flags({"--training.steps": steps, "--validator.freq": -(-steps // form.points)}),
        *_flags({"--checkpoint.interval": -(-steps // CHECKPOINTS)}),
    ]
    return PlannedArm(
        arm=arm,
        arguments=(*_arguments(arm, form, data, seq_len, changes, plain),),
        shape=shape,
        changes=changes,
        rows=rows,
        flops_per_byte=flops,
        steps=steps,
        decides={
            "config": _arguments(arm, form, None, seq_len, changes, plain),
            "rows": rows.fingerprint,
        },
    )


def _parsed(arm: Arm, form: Form, data: Data, seq_len: int) -> Any:
    return parse_config(_arguments(arm, form, data, seq_len, {}))


def _arguments(
    arm: Arm,
    form: Form,
    data: Data | None,
    seq_len: int,
    changes: Mapping[str, int],
    more: list[str] | None = None,
) -> list[str]:
    """The trainer's arguments for an arm.

    Args:
        data: None leaves out what names files, and what is derived from them.
        changes: values of the shape that were fitted.
        more: further flags; they come before those of the file, which may end in a subcommand.
    """
    shape = {**form.shapes.get(arm.model, {}), **arm.shape, **changes}
    return [
        *("--config", f"{arm.model}_{form.size}"),
        *_flags({"--training.seq-len": seq_len, "--training.local-batch-size": form.rows}),
        *_flags({flag(name): value for name, value in shape.items()}),
        *_flags({} if data is None else _read(arm, form, data)),
        *(more or []),
        *form.flags,
        *arm.flags,
    ]


def _read(arm: Arm, form: Form, data: Data) -> dict[str, Any]:
    """The flags that name what an arm reads."""
    train = data.shards(arm.entropy_model, "train")
    read: dict[str, Any] = {"--dataloader.shards": train}
    if arm.model == "bpe":
        read["--tokenizer.source"] = data.tokenizer(form.vocab_size)
    if arm.model == "blt":
        shards = open_shards(str(train))
        for name, value in _rule(arm, shards).items():
            read[f"--dataloader.{name}"] = read[f"--validator.dataloader.{name}"] = value
    return read


def _rule(arm: Arm, shards: Any) -> dict[str, Any]:
    """The dataloader's settings of an arm's boundary rule."""
    rule = find_rule(arm.rule)
    settings: dict[str, Any] = {}
    if arm.rule != shards.patcher.rule:
        settings["rule"] = arm.rule
    if rule.compares is not None and arm.patch_size is not None:
        patcher = replace(shards.patcher, rule=arm.rule)
        settings["threshold"] = threshold(shards, patcher, arm.patch_size)
    elif arm.patch_size is not None:
        settings["patch-size"] = arm.patch_size
    return settings


def _flags(values: Mapping[str, Any]) -> list[str]:
    """Words of the command line; an empty list is the word none."""
    words: list[str] = []
    for name, value in values.items():
        listed = value if isinstance(value, (list, tuple)) else [value]
        words += [name, *(map(str, listed) if listed else ["none"])]
    return words
