"""A worker of a training on Ray: it meets the others as under torchrun, runs torchtitan's command,
and reports to the driver.
"""

import contextlib
import logging
import os
import sys
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.util.queue import Queue
from torch.distributed import TCPStore

from pipeline.errors import ConfigError
from train.__main__ import main
from train.cluster.failures import portable_error
from train.cluster.messages import FailureMessage, ForwardedStream, ResultMessage, StartMessage

SETTINGS_ERRORS = (ConfigError, ValueError, TypeError, AssertionError)
"""Errors that wrong settings raise. CheckpointError is a ValueError."""


@dataclass
class Rendezvous(TorchConfig):
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


def run_worker(arguments: list[str], messages: Queue) -> None:
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
