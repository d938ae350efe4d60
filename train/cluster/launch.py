"""Training on a Ray cluster: Ray Train places the workers and restarts them from the last
checkpoint when one dies. Each worker runs torchtitan's command, as it does under torchrun.

Ray stores nothing: the checkpoints are torchtitan's.
"""

import contextlib
import logging
import os
import sys
import tempfile
import threading
import uuid
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
from ray.train.backend import Backend
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.distributed import TCPStore

from pipeline.errors import ConfigError
from train.__main__ import main
from train.cluster.messages import (
    FailureMessage,
    ForwardedStream,
    MessageReader,
    ResultMessage,
    StartMessage,
    portable_error,
    training_error,
)

SETTINGS_ERRORS = (ConfigError, ValueError, TypeError, AssertionError)
"""Errors that wrong settings raise. CheckpointError is a ValueError."""

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
            lambda: _run_worker(arguments, messages),
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
            torch_config=_Rendezvous(),
        )
        fit, reader, quiet_s = _Fit(trainer), MessageReader(print_line), 0
        while (running := fit.is_alive()) or not messages.empty():
            try:
                reader.handle(messages.get(timeout=1 if running else 0))
                quiet_s = 0
            except Empty:
                # Ray Train waits for resources in silence.
                if quiet_s % CAPACITY_CHECK_S == 0:
                    _report_missing_capacity(workers, print_line)
                quiet_s += 1
        if fit.error is not None:
            raise training_error(fit.error) from fit.error
    return reader.metrics


def _report_missing_capacity(workers: Workers, print_line: Callable[[str], None]) -> None:
    if (capacity := workers.capacity()) < workers.number:
        print_line(
            f"waiting for room: {workers.request} are asked for, and the cluster, as it is, has "
            f"room for {capacity}; fewer --num-workers would do, too"
        )


class _Trainer(TorchTrainer):
    """Ray Train's trainer without the actor that removes placement groups of a dead controller.

    That actor serves drivers that outlive their controller; here the driver exits, and Ray then
    removes its placement groups. The actor also asks the cluster that was started last on this
    machine whether the controller is alive, which may be another cluster.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


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


@dataclass
class _Rendezvous(TorchConfig):
    """Tells the workers where rank 0 is. torchtitan makes the process group, as under torchrun."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _RendezvousBackend


class _RendezvousBackend(Backend):
    share_cuda_visible_devices = True
    starts = 0
    """How often it has started workers."""

    def __init__(self) -> None:
        self.run = uuid.uuid4().hex

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        address = worker_group.execute_single(0, _serve_store)
        worker_group.execute(_set_environment, *address, self.run, self.starts)
        self.starts += 1


_stores: list[TCPStore] = []
"""The store that this process serves, while it lives."""


def _serve_store() -> tuple[str, int]:
    """Serve the store where ranks meet, as torchrun does. A port that is only looked up here could
    be another process's when rank 0 has loaded its modules."""
    address = ray.util.get_node_ip_address()
    _stores[:] = [TCPStore(address, 0, is_master=True, wait_for_workers=False)]
    return address, _stores[0].port


def _set_environment(address: str, port: int, run: str, restarts: int) -> None:
    """Set the variables that torchrun sets."""
    context = ray.train.get_context()
    os.environ |= {
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": run,
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }


def _run_worker(arguments: list[str], messages: Queue) -> None:
    """Run torchtitan's command in a worker; rank 0 reports lines and the result to the driver."""
    from train.metrics import latest  # loads torchtitan, which the driver does not need

    rank = int(os.environ["RANK"])
    sys.argv = ["train", *arguments]
    try:
        if rank:
            logging.disable(logging.INFO)  # all ranks log the same
            main()
        else:
            messages.put(StartMessage())
            with contextlib.redirect_stdout(ForwardedStream(messages, sys.stdout)):
                main()
            messages.put(ResultMessage(dict(latest)))
    except Exception as error:
        with contextlib.suppress(RayError):
            # Before the first step is logged, an error of the settings would be raised again.
            permanent = not latest and isinstance(error, SETTINGS_ERRORS)
            messages.put(FailureMessage(rank, portable_error(error), permanent))
        raise
