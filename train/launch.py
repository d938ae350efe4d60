"""Training on a Ray cluster: Ray Train places the workers, and starts them again from the last
checkpoint when one dies; torchtitan does the rest, as it does under torchrun.

Nothing is stored in Ray: checkpoints are torchtitan's. What rank 0 says comes to the driver
through a queue, because Ray's own forwarding prefixes, repeats and delays it.
"""

import contextlib
import io
import logging
import os
import queue
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

# The releases of Ray that have both take the older Ray Train otherwise.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# `print` goes to standard output, from where it is sent on.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.checkpoint_files import CheckpointError
from pipeline.errors import ConfigError, PipelineError

OF_COMMUNICATION = ("gloo", "nccl", "connection", "closed by peer", "timed out", "socket")
"""Words in errors of ranks whose only fault is that another one is gone."""


@dataclass(frozen=True)
class Workers:
    """How many processes train, and what each of them has."""

    number: int
    cpus: int = 1
    gpus: int = 0

    def __str__(self) -> str:
        return f"{self.number} {'GPU' if self.gpus else 'CPU'} worker{'s'[: self.number - 1]}"

    def room(self) -> int:
        """How many such workers fit into the cluster as it is, if nothing else runs there."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(
            int(min(node.get("CPU", 0) // self.cpus, node.get("GPU", 0) / self.gpus))
            if self.gpus
            else int(node.get("CPU", 0) // self.cpus)
            for node in nodes
        )


def gpus_of_cluster() -> int:
    """All that there are."""
    return int(ray.cluster_resources().get("GPU", 0))


def train_on_ray(
    arguments: list[str], workers: Workers, *, max_failures: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Train until the end; Ray is running. What was logged last of the last step.

    Args:
        arguments: torchtitan's, as :mod:`train` takes them; paths are absolute.
        max_failures: how often workers are started again; -1: without end.
        say: is given each line that rank 0 prints, and what happens to workers.

    Raises:
        PipelineError: workers failed more often than that; in one sentence.
        ConfigError, CheckpointError: what the workers were started with cannot be used.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    told = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    with tempfile.TemporaryDirectory(prefix="blt-titan-", ignore_cleanup_errors=True) as storage:
        trainer = _Trainer(
            _worker,
            train_loop_config={"arguments": arguments, "told": told},
            scaling_config=ScalingConfig(
                num_workers=workers.number,
                use_gpu=bool(workers.gpus),
                resources_per_worker={"CPU": workers.cpus}
                | ({"GPU": workers.gpus} if workers.gpus else {}),
            ),
            run_config=RunConfig(
                # Ray Train wants a place for checkpoints that are given to it; none are.
                storage_path=storage,
                failure_config=FailureConfig(max_failures=max_failures),
            ),
            torch_config=_Rendezvous(),
        )
        fit = _Fit(trainer)
        listener = _Listener(say)
        while (running := fit.is_alive()) or not told.empty():
            with contextlib.suppress(Empty):
                listener.hear(*told.get(timeout=1 if running else 0))
        if fit.error is not None:
            raise _as_one_sentence(fit.error) from fit.error
    return listener.result


class _Trainer(TorchTrainer):
    """Without the actor that removes placement groups after a controller that died. It is for
    drivers that live on: ours ends, and Ray removes what is its. And it asks whichever cluster was
    last started on this machine whether the controller is alive, which need not be this one.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


class _Fit(threading.Thread):
    """``trainer.fit()`` beside the main thread, which has to stay free for Ctrl-C."""

    def __init__(self, trainer: TorchTrainer):
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # told in the main thread
            self.error = error


class _Listener:
    """What workers tell, on the driver."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.starts = 0
        self.failures: dict[int, Exception] = {}
        """Of each rank, since the workers were started."""
        self.result: dict[str, float] = {}

    def hear(self, kind: str, rank: int, value: Any) -> None:
        """
        Raises:
            ConfigError, CheckpointError: the workers can't begin, however often they are started.
        """
        if kind == "line":
            self.say(value)
        elif kind == "result":
            self.result = value
        elif kind == "failure":
            self.failures[rank] = value
            if self.starts == 1 and isinstance(value, ConfigError | CheckpointError):
                raise value
        elif kind == "start":
            if self.starts:
                why = _cause(self.failures) if self.failures else "a worker's process died"
                self.say(f"workers are started again, from the last checkpoint: {why}")
            self.starts += 1
            self.failures = {}


def _as_one_sentence(error: Exception) -> PipelineError:
    """What ``fit`` raised, for users: why, and not where in Ray."""
    failures = getattr(error, "worker_failures", None)
    why = _cause(failures) if failures else _first_line(getattr(error, "controller_failure", error))
    return PipelineError(f"training failed: {why}; the same command goes on from the last step")


def _cause(failures: Mapping[int, Exception]) -> str:
    """What began it: when one rank fails the others do, too, for want of it."""

    def importance(rank: int) -> tuple[int, int]:
        error = failures[rank]
        text = f"{type(error).__name__} {error}".lower()
        if isinstance(error, PipelineError | CheckpointError):
            return 0, rank
        if _is_rays(error):
            return 2, rank
        return 3 if any(word in text for word in OF_COMMUNICATION) else 1, rank

    rank = min(failures, key=importance)
    error = failures[rank]
    if isinstance(error, PipelineError | CheckpointError):
        return str(error)
    if _is_rays(error):
        return f"the process of rank {rank} died ({_first_line(error)})"
    return f"rank {rank}: {type(error).__name__}: {_first_line(error)}"


def _is_rays(error: Exception) -> bool:
    return type(error).__module__.startswith("ray.")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


@dataclass
class _Rendezvous(TorchConfig):
    """Says where rank 0 is, and leaves the process group to torchtitan, as torchrun does."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _RendezvousBackend


class _RendezvousBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_environment, *address)


def _free_address() -> tuple[str, int]:
    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def _set_environment(address: str, port: int) -> None:
    """What torchrun would."""
    context = ray.train.get_context()
    os.environ |= {
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }


def _worker(config: dict[str, Any]) -> None:
    """What each worker does: torchtitan's command."""
    from train.__main__ import main
    from train.metrics import latest

    rank, told = int(os.environ["RANK"]), config["told"]
    sys.argv = ["train", *config["arguments"]]
    try:
        if rank:
            logging.disable(logging.INFO)  # All ranks would say the same.
            main()
        else:
            told.put(("start", rank, None))
            with contextlib.redirect_stdout(_SentOn(told, sys.stdout)):
                main()
            told.put(("result", rank, dict(latest)))
    except Exception as error:
        with contextlib.suppress(RayError):
            told.put(("failure", rank, _portable(error)))
        raise


def _portable(error: Exception) -> Exception:
    """An error that the driver can read: with ours what they are, others as text."""
    if isinstance(error, PipelineError | CheckpointError):
        return type(error)(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")


class _SentOn(io.TextIOBase):
    """Standard output whose lines the driver gets, too. Ray's own logs keep them."""

    def __init__(self, told: Queue, stream: TextIO):
        self.told, self.stream, self.begun = told, stream, ""

    def write(self, text: str) -> int:
        self.stream.write(text)
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            # Training goes on where nobody listens, or not for long.
            with contextlib.suppress(RayError, queue.Full):
                self.told.put(("line", 0, line))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()
