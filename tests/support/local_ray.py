"""One local Ray per process of the tests, for as long as they ask for the same.

Ray's own processes take 10 seconds of CPU time to start, its workers some more: longer than most
jobs that are tested.
"""

import os

import pytest
import ray

from pipeline.cluster.connect import connect

_running: tuple[object, ...] | None = None
"""What the running Ray was asked for as, with its environment."""


def share_local_ray(num_cpus: int, *packages: str, worker_output: bool = True) -> None:
    """Let a local Ray run that jobs of this process find started.

    A Ray that runs already is used if it was started with the same arguments and, since workers
    inherit it, in the same environment. Otherwise it is ended, and another one is started.

    Args:
        num_cpus, packages, worker_output: those of :func:`pipeline.cluster.connect.connect`.
    """
    global _running
    wanted = (num_cpus, packages, worker_output)
    if ray.is_initialized() and _running == (*wanted, _environment()):
        return
    end_local_ray()
    with pytest.MonkeyPatch.context() as kept:
        # Joining prepends to it; what tests start should find the packages by itself.
        kept.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        connect(num_cpus, *packages, worker_output=worker_output)
    _running = (*wanted, _environment())


def _environment() -> dict[str, str]:
    """That of this process, without what pytest and Ray change in it by themselves."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "RAY_"))}


def to_join_local_ray() -> dict[str, str]:
    """The environment variables with which jobs in processes of their own join the local Ray."""
    authentication = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH_")}
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, **authentication}


def end_local_ray() -> None:
    """End the local Ray, if there is one."""
    global _running
    _running = None
    ray.shutdown()
