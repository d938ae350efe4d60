"""One local Ray per process of the tests, for as long as they ask for the same.

Ray's own processes take 10 seconds of CPU time to start, its workers some more: longer than most
jobs that are tested.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import ray

from pipeline.cluster.connect import connect

_running: tuple[object, ...] | None = None
"""The arguments and settings that the running Ray was started with."""


def share_local_ray(
    num_cpus: int = 4,
    *packages: str,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Let a local Ray run that jobs of this process find started.

    A Ray that runs already is used if it was started with the same arguments. Otherwise it is
    ended, and another one is started.

    Args:
        num_cpus, packages: those of :func:`pipeline.cluster.connect.connect`.
        settings: environment variables that tests set, and workers need: they have the environment
            in which Ray was started.
    """
    global _running
    wanted = (num_cpus, packages, dict(settings))
    if ray.is_initialized() and wanted == _running:
        return
    end_local_ray()
    with pytest.MonkeyPatch.context() as environment:
        # Joining prepends to it; what tests start should find the packages by itself.
        environment.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        for name, value in settings.items():
            environment.setenv(name, value)
        connect(num_cpus, *packages)
    _running = wanted


def to_join_local_ray() -> dict[str, str]:
    """The environment variables with which jobs in processes of their own join the local Ray."""
    authentication = {k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH_")}
    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, **authentication}


def end_local_ray() -> None:
    """End the local Ray, if there is one."""
    global _running
    _running = None
    ray.shutdown()
