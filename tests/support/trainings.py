"""Trainings as torchrun starts them, but quickly: their ranks are forked from a process that has
imported everything. They are processes of their own all the same, and can be killed.

What a training does is written down as it goes on, exactly: weights before the first step, rows and
metrics of every step.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch.distributed import TCPStore

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch", "train.config_registry", "torchtitan.train"])

SHUFFLE_BYTES, LANES = 50_000, 4
PEAK_FLOPS = 1e10
"""Instead of a measurement at every start."""
SEQ_LEN, ROWS, STEPS = 128, 12, 4
LOSS = "loss_metrics/global_avg_loss"


@dataclass
class Training:
    """A training that was started."""

    folder: Path
    """--dump-folder."""
    arguments: list[str]
    ranks: list[Any] = field(default_factory=list)
    """Its processes."""
    store: TCPStore | None = None
    """The place where they meet."""

    def __post_init__(self) -> None:
        self.records = self.folder / f"records-{time.monotonic_ns()}"
        self.records.mkdir(parents=True)

    def wait(self) -> "Training":
        """Until all ranks have ended."""
        for rank in self.ranks:
            rank.join(120)
            assert rank.exitcode is not None, self.output
        return self

    def kill(self) -> None:
        """All ranks, without warning."""
        for rank in self.ranks:
            os.kill(rank.pid, signal.SIGKILL)
        self.wait()

    @property
    def exit_codes(self) -> list[int]:
        return [rank.exitcode for rank in self.ranks]

    @property
    def output(self) -> str:
        """What the ranks printed, one after another."""
        return "\n".join(file.read_text() for file in sorted(self.records.glob("*.txt")))

    @property
    def written(self) -> list[dict[str, Any]]:
        """Records of all ranks."""
        files = sorted(self.records.glob("*.jsonl"))
        # The last line of a rank that was killed may be half a line.
        lines = [line for file in files for line in file.read_text().split("\n")[:-1]]
        return [json.loads(line) for line in lines]

    @cached_property
    def metrics(self) -> dict[int, dict[str, float]]:
        """By step, as the first rank knows them; those of a validation are among them."""
        found: dict[int, dict[str, float]] = {}
        for record in self.written:
            if record["rank"] == 0 and "metrics" in record:
                found.setdefault(record["step"], {}).update(record["metrics"])
        return found

    @cached_property
    def losses(self) -> dict[int, float]:
        """By step, nats a label."""
        return {step: of_step[LOSS] for step, of_step in self.metrics.items() if LOSS in of_step}

    @cached_property
    def rows(self) -> dict[int, list[str]]:
        """Digests of the rows of all ranks, by step, sorted."""
        found: dict[int, list[str]] = {}
        for record in self.written:
            if "rows" in record and record["data rank"] == record["rank"]:
                found.setdefault(record["step"], []).extend(record["rows"])
        return {step: sorted(rows) for step, rows in found.items()}

    @cached_property
    def first_weights(self) -> dict[str, str]:
        """Digest of each whole weight before the first step."""
        found = [record["weights"] for record in self.written if "weights" in record]
        assert all(weights == found[0] for weights in found), "ranks have different weights"
        return found[0]


def start(
    folder: Path, *arguments: object, ranks: int = 1, fault: str = "", restarts: int = 0
) -> Training:
    """Begin to train: torchtitan's arguments; the last one may choose a kind of activation
    checkpointing, as its parser wants it.

    Args:
        fault: see :func:`_inject`.
        restarts: how often torchrun has started the command again.
    """
    given = [*map(str, arguments)]
    if len(given) > 1 and "--dump-folder" not in given:
        given[:0] = ["--dump-folder", str(folder)]
    training = Training(folder, given)
    training.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in range(ranks):
        who = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": training.store.port}
        where["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        where["TORCHELASTIC_RESTART_COUNT"] = restarts
        process = forks.Process(target=_rank, args=(given, who | where, training.records, fault))
        process.start()
        training.ranks.append(process)
    return training


def tiny(
    config: str, shards: Path, *, rows: int, steps: int = STEPS, checkpoint_interval: int = 100
) -> tuple[object, ...]:
    """Arguments of a training that takes a second.

    Args:
        rows: of a microbatch of a rank; those of a step are always ROWS.
        steps: before this many, the same losses.
    """
    return (
        *("--config", config, "--dataloader.shards", shards, "--training.seq-len", SEQ_LEN),
        *("--training.local-batch-size", rows, "--training.global-batch-size", ROWS),
        *("--training.steps", steps, "--lr-scheduler.total-steps", 100),
        *("--lr-scheduler.warmup-steps", 2, "--dataloader.shuffle-bytes", SHUFFLE_BYTES),
        *("--dataloader.lanes", LANES),
        *("--metrics.log-freq", 1, "--metrics.disable-color-printing"),
        *("--checkpoint.interval", checkpoint_interval),
    )


def train(folder: Path, *arguments: object, ranks: int = 1, **how: Any) -> Training:
    """Train to the end."""
    training = start(folder, *arguments, ranks=ranks, **how).wait()
    assert training.exit_codes == [0] * ranks, training.output
    return training


def wait_for(condition: Any, seconds: float = 60) -> None:
    """Until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def _rank(arguments: list[str], environment: dict[str, Any], records: Path, fault: str) -> None:
    """What one of the processes does."""
    os.environ |= {name: str(value) for name, value in environment.items()}
    rank = environment["RANK"]
    file = os.open(records / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    _write_down(records / f"{rank}.jsonl", rank)
    if fault:
        _inject(fault, records)
    from train.__main__ import command

    sys.argv = ["train", *arguments]
    sys.exit(command())


def _write_down(path: Path, rank: int) -> None:
    """Let the training leave records of what it does."""
    import torch
    import torchtitan.trainer
    from torchtitan.components.metrics import BaseLogger

    import train.shim
    from train.trainer import ByteTrainer

    torch.set_num_threads(1)
    train.shim.matrix_product_rate = lambda name: PEAK_FLOPS
    # It sleeps for two seconds at the end.
    torchtitan.trainer.time = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda _: None)
    file = path.open("a", buffering=1)

    def write(**record: Any) -> None:
        file.write(json.dumps({"rank": rank} | record) + "\n")

    def log(self: object, metrics: dict[str, Any], step: int) -> None:
        write(step=step, metrics=metrics)

    def batch_generator(self: ByteTrainer, data: Any) -> Any:
        mesh = self.parallel_dims.get_optional_mesh("tp")
        first = rank if mesh is None else rank - mesh.get_local_rank()
        write(weights=digests(self.model_parts[0].state_dict()))
        for inputs, labels in original_batches(self, data):
            rows = zip(*inputs.values(), labels, strict=True)
            told = ["".join(digest(part) for part in row) for row in rows]
            write(step=self.step, rows=told, **{"data rank": first})
            yield inputs, labels

    original_batches = ByteTrainer.batch_generator
    BaseLogger.log, ByteTrainer.batch_generator = log, batch_generator


BELL = 7
"""A byte that no text of the tests holds, unless it shall spoil a row."""


def _inject(fault: str, records: Path) -> None:
    """Break the training: ``row``: logits of rows with the byte BELL are NaN; ``gradient``: only
    their gradient is; ``weights``: a weight of rank 0 is NaN from step 3 on; ``slow index``,
    ``late index`` and ``no room``: the index of step 4 is never written, late, or cannot be; ``own
    disks``: each rank is on a machine of its own, where a path that is not absolute is on a disk of
    that machine; in step 3 the last rank has no ``memory``, or finds a shard ``unreadable``; ``full
    node``: the last rank cannot write its part of step 4."""
    import torch
    from torch.distributed.checkpoint.filesystem import _FileSystemWriter

    from pipeline.errors import PipelineError
    from train.trainer import ByteTrainer

    def spoil(model: object, args: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
        bad_B = (args[0] == BELL + 4).any(1)
        spoiled = logits + torch.where(bad_B, torch.nan, 0.0)[:, None, None]
        if fault == "gradient" and logits.requires_grad and bad_B.any():
            logits.register_hook(lambda gradient: gradient * torch.nan)
        return spoiled if fault == "row" else logits

    def train_step(self: ByteTrainer, data: Any) -> None:
        model = self.model_parts[0]
        if fault == "weights" and self.step == 3 and os.environ["RANK"] == "0":
            next(model.parameters()).data.to_local().fill_(torch.nan)
        is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if fault == "memory" and self.step == 3 and is_last:
            model.register_forward_pre_hook(run_out_of_memory)
        if fault == "unreadable" and self.step == 3 and is_last:
            raise PipelineError("shards/00001.arrow: cannot be read; restore it")
        if fault in ("row", "gradient") and spoil not in model._forward_hooks.values():
            model.register_forward_hook(spoil)
        original(self, data)

    def run_out_of_memory(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has")

    def write_data(self: Any, plan: Any, planner: Any) -> Any:
        is_last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1
        if fault == "full node" and is_last and "step-4" in str(self.path):
            raise OSError(28, "No space left on device")
        return write_part(self, plan, planner)

    def finish(self: Any, **given: Any) -> None:
        if "step-4" in str(self.path) and fault == "slow index":
            time.sleep(60)
        if "step-4" in str(self.path) and fault == "late index":
            time.sleep(3)
        if "step-4" in str(self.path) and fault == "no room":
            raise OSError("No space left on device")
        write_index(self, **given)

    if fault == "own disks":
        import train.checkpoints.shared_folder

        train.checkpoints.shared_folder.PATIENCE_S = 0.1
        own = records / f"disk-{os.environ['RANK']}"
        own.mkdir()
        os.chdir(own)
        os.environ["LOCAL_RANK"] = "0"

    original, ByteTrainer.train_step = ByteTrainer.train_step, train_step
    write_index, _FileSystemWriter.finish = _FileSystemWriter.finish, finish
    write_part, _FileSystemWriter.write_data = _FileSystemWriter.write_data, write_data


def digests(weights: dict[str, Any]) -> dict[str, str]:
    """Of whole weights, however they are spread."""
    whole = {n: w.full_tensor() if hasattr(w, "full_tensor") else w for n, w in weights.items()}
    return {name: digest(weight) for name, weight in whole.items()}


def digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()[:16]
