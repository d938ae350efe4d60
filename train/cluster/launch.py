"""Training on a Ray cluster: Ray Train places the workers, and starts them again from the last
checkpoint when one dies; torchtitan does the rest, as it does under torchrun.

Nothing is stored in Ray: checkpoints are torchtitan's.
"""

import contextlib
import logging
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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

from pipeline.errors import ConfigError
from train.cluster.messages import Listener, SentOn, as_one_sentence, portable

HOPELESS = (ConfigError, ValueError, TypeError, AssertionError)
"""Errors that are raised of settings. CheckpointError is a ValueError."""

PATIENCE_S = 30
"""After so long without a word from the workers, whether there is room for them is looked at."""


@dataclass(frozen=True)
class Workers:
    """How many processes train, and what each of them has."""

    number: int
    cpus: int = 1
    gpus: int = 0

    def __str__(self) -> str:
        return f"{self.number} {'GPU' if self.gpus else 'CPU'} worker{'s'[: self.number - 1]}"

    def each(self) -> str:
        """What each of them has, in words."""
        return f"{self.cpus} CPU{'s'[: self.cpus - 1]}" + (" and a GPU" if self.gpus else "")

    def room(self) -> int:
        """How many such workers fit into the cluster as it is, if nothing else runs there."""
        wanted = {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})
        return sum(
            int(min(node["Resources"].get(name, 0) // count for name, count in wanted.items()))
            for node in ray.nodes()
            if node["Alive"]
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
        PipelineError: workers failed more often than that, or cannot begin; in one sentence.
        ConfigError: a setting is wrong that only workers can see.

    If this is left before the end (by Ctrl-C, or as there is no use in going on), a thread still
    waits for Ray, and the process has to leave with ``os._exit``: Ray's own end would abort it.
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
        fit, listener, quiet = _Fit(trainer), Listener(say), 0
        while (running := fit.is_alive()) or not told.empty():
            try:
                listener.hear(*told.get(timeout=1 if running else 0))
                quiet = 0
            except Empty:
                # Ray Train waits without a word.
                if quiet % PATIENCE_S == 0 and (room := workers.room()) < workers.number:
                    say(
                        f"waiting for room: {workers} of {workers.each()} are asked for, and the "
                        f"cluster, as it is, has room for {room}; fewer --num-workers would do, too"
                    )
                quiet += 1
        if fit.error is not None:
            raise as_one_sentence(fit.error) from fit.error
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
            told.put(("start", None))
            with contextlib.redirect_stdout(SentOn(told, sys.stdout)):
                main()
            told.put(("result", dict(latest)))
    except Exception as error:
        with contextlib.suppress(RayError):
            # Before the first step, so that it would be so again.
            hopeless = not latest and isinstance(error, HOPELESS)
            told.put(("failure", (rank, portable(error), hopeless)))
        raise
