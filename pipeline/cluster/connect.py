"""Join a Ray cluster, or start a local one; run a single function there."""

import logging
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

from pipeline.cli.command import end_on_signals, submitted
from pipeline.errors import PipelineError

REACH_S = 20
"""Seconds to wait for the cluster to answer."""


def connect(num_cpus: int | None, *packages: str) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has one), or start a local Ray.

    A process that has joined stays where it is.

    Args:
        num_cpus: processors that a local Ray offers, if they are more than this machine has.
        packages: packages of this repository that workers need beside ``model`` and ``pipeline``.

    Raises:
        PipelineError: nothing listens at ``RAY_ADDRESS``.
    """
    # Ray raises an exception where something goes wrong; its warnings are about its own affairs.
    logging.getLogger("ray").setLevel(logging.ERROR)
    # It logs each worker that ends; the stage does that worker's pieces again, or names them.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if ray.is_initialized():
        return
    directories = [_directory(package) for package in ("model", "pipeline", *packages)]
    if address := os.environ.get("RAY_ADDRESS"):
        _check_reachable(address)
        # Inside a submitted job the working directory holds the code already.
        code = {} if submitted() else {"py_modules": list(map(str, directories))}
        ray.init(logging_level=logging.ERROR, runtime_env=code, log_to_driver=False)
    else:
        # Workers find the same packages, installed or not, wherever the job is called from.
        path = (str(directories[0].parent), os.environ.get("PYTHONPATH"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        ray.init(
            address="local",
            # More workers than cores may be asked for; Ray counts cores, it does not bind them.
            num_cpus=max(os.cpu_count() or 1, num_cpus or 1),
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    end_on_signals()  # Ray's own handler would print a stack and abort


def _check_reachable(address: str) -> None:
    """
    Raises:
        PipelineError: nothing listens there. Ray itself would try for many minutes, and its message
            would not fit a sentence.
    """
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
    """The directory of a package, which is not imported: a driver may lack what workers need."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def in_ray(task: Any, gpus: float, *arguments: Any) -> Any:
    """Run one Ray task on the cluster, with one CPU, and wait for it.

    Args:
        task: a remote function.
        gpus: GPUs that it needs.

    Returns:
        what the task returns; an exception of the task is raised here as it was.

    Raises:
        PipelineError: the processes that did the task ended, each time that Ray started one.
    """
    try:
        return ray.get(task.options(num_gpus=gpus).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        used_up = isinstance(error, ray.exceptions.OutOfMemoryError)
        why = "used up the memory of its node" if used_up else "ended its process"
        raise PipelineError(
            f"{task._function_name.rpartition('.')[2].strip('_')}: this step {why}, each time that "
            "it was tried; a file of the input may be damaged"
        ) from error
