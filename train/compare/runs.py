"""One run: an arm with a seed, trained to the budget, and measured on the held-out text.

A run has a directory, whose name says all that decides its weights, so that experiments which share
an arm share its runs: ``runs/ARM-HASH/seed-0`` holds ``run.json``, torchtitan's checkpoints,
and ``metrics.jsonl``. A run that was stopped continues with its last checkpoint. What is measured
later on another held-out text is added to ``run.json``.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import distributed

from pipeline.errors import PipelineError
from pipeline.storage.lease import held
from pipeline.storage.output import OutputDirectory
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically
from train.compare.experiment import CLEAN
from train.metrics import latest

METRICS, RECORD = "metrics.jsonl", "run.json"
BITS = "validation_metrics/bits_per_byte"


@dataclass(frozen=True)
class Run:
    """A run, as it can be sent to another machine."""

    arm: str
    seed: int
    folder: str
    arguments: tuple[str, ...]
    """``--config NAME`` and torchtitan's flags, without those that name seed and directory."""
    steps: int
    held_out: tuple[tuple[str, str], ...]
    """Name and shard set of each held-out text, the clean one first."""
    threads: int | None = None
    """Threads of the CPU; None: as many as torch takes."""


@dataclass(frozen=True)
class Measured:
    """Bits per byte on one held-out text, and what was read."""

    bits_per_byte: float
    bytes: int
    hash: str


def folder_of(runs: Path, arm: str, decides: Mapping[str, Any], seed: int) -> str:
    """The directory of a run.

    Args:
        decides: everything that its weights depend on.
    """
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:10]
    return str(runs / f"{arm}-{digest}" / f"seed-{seed}")


def read_record(folder: str) -> dict[str, Any]:
    """The content of ``run.json``; empty if the run has not begun."""
    try:
        record: dict[str, Any] = json.loads(Path(folder, RECORD).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise PipelineError(
            f"{folder}/{RECORD}: is damaged: {error}; remove the directory, and the run is done "
            "again"
        ) from error
    return record


def read_points(folder: str) -> dict[int, float]:
    """Bits per byte of the held-out text, by step."""
    path = Path(folder, METRICS)
    if not path.exists():
        return {}
    points = {}
    for line in path.read_text().splitlines():
        try:
            metrics = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed; its step is done again
        if BITS in metrics:
            points[metrics["step"]] = metrics[BITS]
    return points


def is_finished(run: Run) -> bool:
    """True if the run is trained, and measured on each of its held-out texts."""
    record = read_record(run.folder)
    return {name for name, _ in run.held_out} <= set(record.get("held_out", {}))


def train_run(run: Run) -> None:
    """Train a run to its last step, and measure it, as far as it is not done.

    Raises:
        ConfigError: a flag of the arm is wrong.
        PipelineError: training failed, or another process is at this run.
    """
    with held(OutputDirectory(run.folder), "--output", Console(stderr=True)):
        if not is_finished(run):
            _train_run(run)


def _train_run(run: Run) -> None:
    from train.__main__ import checkpoint_errors_told, set_single_process_environment
    from train.cluster.checks import parse_config
    from train.shim import prepare

    prepare()
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    set_single_process_environment()
    began = time.monotonic()
    config: Any = parse_config([*run.arguments[:2], *_flags(run), *run.arguments[2:]])
    with checkpoint_errors_told():
        trainer = config.build()
    try:
        with checkpoint_errors_told():  # the other runs go on
            _train(trainer, run, began)
    finally:
        trainer.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _flags(run: Run) -> list[str]:
    flags = {
        "--debug.seed": run.seed,
        "--dataloader.seed": run.seed,
        "--dump-folder": run.folder,
        "--validator.dataloader.shards": ",".join(path for _, path in run.held_out),
        "--validator.names": ",".join(name for name, _ in run.held_out),
        "--checkpoint.keep-latest-k": 2,
    }
    return [*(str(part) for flag in flags.items() for part in flag), "--validator.enable"]


def _train(trainer: Any, run: Run, began: float) -> None:
    record = read_record(run.folder) or {"arm": run.arm, "seed": run.seed, "seconds": 0.0}
    record["arguments"] = list(run.arguments)
    _also_log(trainer.metrics_processor, Path(run.folder, METRICS))
    sets = trainer.validator.sets
    # While it trains the clean text is measured alone.
    trainer.validator.sets = {CLEAN: sets[CLEAN]}
    try:
        trainer.train()
        missing = [name for name in sets if name not in record.get("held_out", {})]
        measured = {name: _measure(trainer, {name: sets[name]}, run.steps) for name in missing}
    finally:
        record["seconds"] = round(record["seconds"] + time.monotonic() - began, 1)
        _write_record(run.folder, record)
    held_out = {name: vars(each) for name, each in measured.items()}
    record["held_out"] = {**record.get("held_out", {}), **held_out}
    _write_record(run.folder, record)


def _also_log(metrics: Any, path: Path) -> None:
    """Let torchtitan's metrics also go to a file."""
    from torchtitan.components.metrics import LoggerContainer  # only after prepare()

    loggers = LoggerContainer()
    loggers.add_logger(metrics.logger)
    loggers.add_logger(JsonLines(path))
    metrics.logger = loggers


def _measure(trainer: Any, sets: dict[str, Any], step: int) -> Measured:
    """Measure one held-out text; the clean one is measured again after the last step."""
    trainer.validator.sets = sets
    trainer.validator.validate(trainer.model_parts, step if CLEAN in sets else -1)
    return Measured(
        bits_per_byte=latest["validation_bits_per_byte"],
        bytes=int(latest["validation_bytes"]),
        hash=f"{int(latest['validation_bytes_hash']):012x}",
    )


def _write_record(folder: str, record: dict[str, Any]) -> None:
    files, path = checkpoint_filesystem(folder)
    write_atomically(files, f"{path}/{RECORD}", json.dumps(record, indent=1).encode())


class JsonLines:
    """A logger of torchtitan's that appends a line of JSON per log; where a run continued, the
    later line of a step counts."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A run that was killed may have left half a line, which would take the next one with it.
        whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        self.file = path.open("a", encoding="utf-8")
        self.file.write("" if whole else "\n")

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Write the metrics of one step."""
        if step >= 0:
            self.file.write(json.dumps({"step": step, **metrics}) + "\n")
            self.file.flush()

    def close(self) -> None:
        """Close the file."""
        self.file.close()
