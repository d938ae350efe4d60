"""The outcome of an experiment as plain values, from what its runs wrote.

``results.json`` holds these values, and :mod:`train.compare.page` draws them.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from model.flops import TRAINING
from model.rules import find_rule
from pipeline.errors import PipelineError
from pipeline.shards.shard_set import open_shards
from train.compare.arms import PlannedArm
from train.compare.data import Data
from train.compare.experiment import CLEAN, Experiment, Form
from train.compare.runs import Run, read_points, read_record
from train.plan import count_parameters


def gather(
    experiment: Experiment,
    form: Form,
    data: Data,
    planned: Sequence[PlannedArm],
    runs: Mapping[str, Sequence[Run]],
    command: str,
) -> dict[str, Any]:
    """The values of ``results.json``.

    Args:
        runs: of each arm, by its name.

    Raises:
        PipelineError: runs were not measured on the same held-out bytes.
    """
    arms = [_arm(each, runs[each.arm.name], data) for each in planned]
    return {
        "name": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "notes": list(experiment.notes),
        "command": command,
        "version": _version(),
        "hardware": hardware(),
        "seeds": [run.seed for run in runs[planned[0].arm.name]],
        "budget_flops": form.budget_flops,
        "held_out": _held_out(planned, runs, data),
        "arms": arms,
    }


def _held_out(
    planned: Sequence[PlannedArm], runs: Mapping[str, Sequence[Run]], data: Data
) -> dict[str, dict[str, Any]]:
    """Bytes, hash and documents of each held-out text."""
    found: dict[str, dict[str, Any]] = {}
    for each in planned:
        for run in runs[each.arm.name]:
            for name, measured in _measured(run).items():
                read = {key: measured[key] for key in ("bytes", "hash")}
                if found.setdefault(name, read) != read:
                    raise PipelineError(
                        f"{run.folder}: was measured on other bytes of {name!r} than the runs "
                        "before it; remove the directory, and the run is done again"
                    )
    entropy_model = planned[0].arm.entropy_model
    for name, read in found.items():
        shards = open_shards(str(data.shards(entropy_model, name)))
        found[name] = {**read, "documents": shards.statistics.documents}
    return found


def _arm(planned: PlannedArm, runs: Sequence[Run], data: Data) -> dict[str, Any]:
    arm, count = planned.arm, count_parameters(planned.shape, shard=1, ranks=1)
    return {
        "name": arm.name,
        "label": arm.label,
        "config": planned.arguments[1],
        "flags": list(planned.arguments[2:]),
        "model": _in_words(planned),
        "fitted": dict(planned.changes),
        "parameters": count.dense + count.tables,
        "table_parameters": count.tables,
        "patch_size": None if arm.model == "bytes" else planned.rows.patch_size,
        "flops_per_byte": dict(planned.flops_per_byte),
        "inference_flops_per_byte": planned.cost / TRAINING,
        "entropy_model": arm.entropy_model if _reads_entropies(planned) else None,
        "entropy_model_flops_per_byte": _entropy_model_flops(planned, data),
        "runs": [_run(planned, run) for run in runs],
    }


def _in_words(planned: PlannedArm) -> str:
    """The transformer that an arm's patches, tokens or bytes go through."""
    end = "_global" if planned.arm.model == "blt" else ""
    names = ("n_layers", "dim", "n_heads", "hidden_dim")
    layers, dim, heads, hidden = (getattr(planned.shape, name + end) for name in names)
    return f"{layers} layers, {dim} wide, {heads} heads, {hidden} in feed-forward layers"


def _run(planned: PlannedArm, run: Run) -> dict[str, Any]:
    record, points, held_out = read_record(run.folder), read_points(run.folder), _measured(run)
    finished = CLEAN in held_out
    if finished:
        points[run.steps] = held_out[CLEAN]["bits_per_byte"]
    last = max(points, default=0)
    per_step = planned.step_bytes
    return {
        "seed": run.seed,
        "folder": run.folder,
        "finished": finished,
        "seconds": record.get("seconds", 0.0),
        "bytes": round(last * per_step),
        "flops": last * per_step * planned.cost,
        "points": [
            {
                "step": step,
                "bytes": round(step * per_step),
                "flops": step * per_step * planned.cost,
                "bits_per_byte": {
                    CLEAN: points[step],
                    **(_bits(held_out) if finished and step == run.steps else {}),
                },
            }
            for step in sorted(points)
        ],
    }


def _measured(run: Run) -> dict[str, Any]:
    """The measurements on the held-out texts of a run; another experiment may have made more."""
    found = read_record(run.folder).get("held_out", {})
    return {name: found[name] for name, _ in run.held_out if name in found}


def _bits(held_out: dict[str, Any]) -> dict[str, float]:
    return {name: measured["bits_per_byte"] for name, measured in held_out.items()}


def _reads_entropies(planned: PlannedArm) -> bool:
    arm = planned.arm
    return arm.model == "blt" and find_rule(arm.rule).reads_entropies


def _entropy_model_flops(planned: PlannedArm, data: Data) -> float | None:
    """Forward FLOPs per byte of the entropy model that an arm's patches need; those of a model
    that multiplies no matrices are 0. None if the shards do not say them."""
    if not _reads_entropies(planned):
        return 0.0
    shards = open_shards(str(data.shards(planned.arm.entropy_model, "train")))
    described: Mapping[str, Any] = shards.manifest.get("entropy_model", {})
    flops: float | None = described.get("flops_per_byte")
    return flops


def _version() -> str:
    try:
        return f"blt-titan {version('blt-titan')}"
    except PackageNotFoundError:
        return "blt-titan, from a checkout that is not installed"


def hardware() -> str:
    """The machine in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), torch {torch.__version__}"
