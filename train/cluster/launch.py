"""Training on a Ray cluster: Ray Train places the workers and restarts them from the last
checkpoint when one dies. Each worker runs torchtitan's command, as it does under torchrun.

Ray stores nothing: the checkpoints are torchtitan's.
"""

import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Releases of Ray that hold two versions of Ray Train use the older one by default.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# Ray Train would send `print` to its logs; ForwardedStream needs it on standard output.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from model.checkpoints.files import CheckpointError
from pipeline.errors import ConfigError, PipelineError
from train.cluster.failures import rank_failure, training_error
from train.cluster.messages import (
    FailureMessage,
    LineMessage,
    Message,
    ResultMessage,
    StartMessage,
)
from train.cluster.worker import Rendezvous, run_worker

CAPACITY_CHECK_S = 30
"""Seconds without a message from the workers between two checks of the cluster's capacity."""


@dataclass(frozen=True)
class Workers:
    """How many processes train, and the resources of each."""

    number: int
    cpus: int = 1
    gpus: int = 0

    def __str__(self) -> str:
        return f"{self.number} {'GPU' if self.gpus else 'CPU'} worker{'s'[: self.number - 1]}"

    @property
    def resources(self) -> dict[str, int]:
        """Resources of one worker, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    @property
    def request(self) -> str:
        """Number and resources, in words."""
        cpus = f"{self.cpus} CPU{'s'[: self.cpus - 1]}"
        return f"{self} of {cpus}{' and a GPU' if self.gpus else ''}"

    def capacity(self) -> int:
        """How many such workers fit into the cluster as it is, if nothing else runs there."""
        return sum(
            int(min(node["Resources"].get(name, 0) // n for name, n in self.resources.items()))
            for node in ray.nodes()
            if node["Alive"]
        )

    def check_capacity(self) -> None:
        """
        Raises:
            ConfigError: the workers do not fit into a cluster that does not grow.
        """
        if (capacity := self.capacity()) < self.number:
            raise ConfigError(
                f"--num-workers: {self.request} are asked for, but this machine has room for "
                f"{capacity}"
            )


def choose_workers(number: int | None, cpus: int, gpus: int | None) -> Workers:
    """The workers that flags ask for, with defaults from the cluster: a GPU per worker if there are
    any, and as many workers as GPUs."""
    cluster_gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus is None:
        gpus = min(cluster_gpus, 1)
    return Workers(number or cluster_gpus * gpus or 1, cpus, gpus)


def train_on_ray(
    arguments: list[str], workers: Workers, *, max_failures: int, print_line: Callable[[str], None]
) -> dict[str, float]:
    """Train to the end on the Ray that is running; returns the metrics that were logged last.

    Args:
        arguments: torchtitan's, as :mod:`train` takes them; paths are absolute.
        max_failures: how often workers are restarted; -1: without limit.
        print_line: is given each line that rank 0 prints, and each restart of the workers.

    Raises:
        PipelineError: workers failed more often than that, or cannot begin; in one sentence.
        ConfigError: a setting is wrong, and only workers can detect it.

    After an exception (Ctrl-C, or a failure that a restart cannot mend) a thread still waits for
    Ray. The process then has to exit with ``os._exit``, because Ray's own exit would abort it.
    """
    driver = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": driver})
    with tempfile.TemporaryDirectory(prefix="blt-titan-", ignore_cleanup_errors=True) as storage:
        trainer = _Trainer(
            lambda: run_worker(arguments, messages),
            scaling_config=ScalingConfig(
                num_workers=workers.number,
                use_gpu=bool(workers.gpus),
                resources_per_worker=workers.resources,
            ),
            run_config=RunConfig(
                # Ray Train requires a directory for checkpoints; this project gives it none.
                storage_path=storage,
                failure_config=FailureConfig(max_failures=max_failures),
            ),
            torch_config=Rendezvous(),
        )
        fit, reader, quiet_s = _Fit(trainer), MessageReader(print_line), 0
        try:
            while (running := fit.is_alive()) or not messages.empty():
                try:
                    reader.handle(messages.get(timeout=1 if running else 0))
                    quiet_s = 0
                except Empty:
                    # Ray Train waits for resources in silence.
                    if quiet_s % CAPACITY_CHECK_S == 0:
                        _report_missing_capacity(workers, print_line)
                    quiet_s += 1
        except RayError as error:  # with the driver's node its messages are gone
            raise training_error(error) from error
        if fit.error is not None:
            raise training_error(fit.error) from fit.error
    return reader.metrics


class MessageReader:
    """Handles the workers' messages on the driver."""

    def __init__(self, print_line: Callable[[str], None]):
        self.print_line = print_line
        self.starts = 0
        self.failures: list[tuple[int, str]] = []
        """Since the last start of the workers; see :func:`rank_failure`."""
        self.metrics: dict[str, float] = {}
        """The numbers that rank 0 logged last; empty until it has trained to the end."""

    def handle(self, message: Message) -> None:
        """Print, or remember, what a message says.

        Raises:
            ConfigError, PipelineError: the workers cannot begin, however often they are restarted.
        """
        match message:
            case LineMessage(text):
                self.print_line(text)
            case ResultMessage(metrics):
                self.metrics = metrics
            case FailureMessage(rank, error, permanent):
                failure = rank_failure(rank, error)
                self.failures.append(failure)
                if self.starts <= 1 and permanent:
                    if isinstance(error, ConfigError | CheckpointError):
                        raise ConfigError(failure[1])
                    raise PipelineError(f"cannot begin: {failure[1]}")
            case StartMessage():
                if self.starts:
                    cause = min(self.failures, default=(2, "a worker's process died"))[1]
                    self.print_line(
                        f"workers were started again, to continue from the last checkpoint: {cause}"
                    )
                self.starts += 1
                self.failures = []


def _report_missing_capacity(workers: Workers, print_line: Callable[[str], None]) -> None:
    if (capacity := workers.capacity()) < workers.number:
        print_line(
            f"waiting for room: {workers.request} are asked for, and the cluster, as it is, has "
            f"room for {capacity}; fewer --num-workers would do, too"
        )


class _Trainer(TorchTrainer):
    """Ray Train's trainer without two actors, each a process that takes seconds to start.

    One hands out Ray datasets; shards are read without Ray. One removes placement groups of a dead
    controller. It serves drivers that outlive their controller; here the driver exits, and Ray then
    removes its placement groups. It also asks the cluster that was started last on this machine
    whether the controller is alive, which may be another cluster.
    """

    unused = ("DatasetsCallback", "PlacementGroupCleanerCallback")

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ not in self.unused]


class _Fit(threading.Thread):
    """``trainer.fit()`` in a thread, because the main thread has to stay free for Ctrl-C."""

    def __init__(self, trainer: TorchTrainer):
        super().__init__(name="fit", daemon=True)
        self.trainer = trainer
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.trainer.fit()
        except Exception as error:  # the main thread raises it
            self.error = error
