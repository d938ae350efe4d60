"""Joining Ray."""

import logging
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

from pipeline.cli.command import submitted
from pipeline.errors import PipelineError

REACH_S = 20
"""Seconds to wait for an answer of the cluster."""


def connect(num_cpus: int | None, *more: str, worker_output: bool = True) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has one), or start a local Ray.

    Args:
        num_cpus: that a local Ray should have room for.
        more: packages that workers need, beside ``model`` and ``pipeline``.
        worker_output: show what workers print.

    Raises:
        PipelineError: nobody listens at ``RAY_ADDRESS``.
    """
    # What goes wrong in Ray comes as an exception; its warnings are about Ray's own affairs.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    packages = [_directory(package) for package in ("model", "pipeline", *more)]
    if address := os.environ.get("RAY_ADDRESS"):
        _reach(address)
        # Inside a submitted job the working directory holds the code already.
        code = {} if submitted() else {"py_modules": [str(package) for package in packages]}
        ray.init(logging_level=logging.ERROR, runtime_env=code, log_to_driver=worker_output)
    else:
        # Workers find the same packages, installed or not, wherever the job was called from.
        path = (str(packages[0].parent), os.environ.get("PYTHONPATH"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        ray.init(
            address="local",
            # More workers than cores may be asked for; Ray counts cores, it does not bind them.
            num_cpus=max(os.cpu_count() or 1, num_cpus or 1),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=worker_output,
        )


def _reach(address: str) -> None:
    """Ray itself would try for many minutes, and then not say it in a sentence."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise PipelineError(
            f"RAY_ADDRESS {address}: the cluster cannot be reached: {error}; start it, or unset "
            "RAY_ADDRESS to use this machine alone"
        ) from error


def _directory(package: str) -> Path:
    """Where a package lies; without importing it: not all that workers need, drivers do."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def in_ray(task: Any, gpus: float, *arguments: Any) -> Any:
    """The result of a task that runs where a worker could; raises what the task raised."""
    try:
        return ray.get(task.options(num_gpus=gpus).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
