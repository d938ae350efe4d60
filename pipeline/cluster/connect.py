"""Join a Ray cluster, or start a local one; run a single function there."""

import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray

from pipeline.cli.command import BEFORE_LEAVING, Ended, end_on_signals, submitted
from pipeline.cluster.known_lines import without_known_lines
from pipeline.errors import ConfigError, PipelineError, message_of

WITHIN = __name__.rpartition("pipeline.cluster.")[0].rstrip(".")
"""The package that holds all of ours where a wheel is installed, blt_titan; empty in a checkout."""
REACH_S = 20
"""Seconds to wait for the cluster to answer."""
_ADVICE = "start it, or unset RAY_ADDRESS to use this machine alone"


def connect(num_cpus: int | None, *packages: str) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has one), or start a local Ray.

    A process that has joined stays where it is.

    Args:
        num_cpus: processors that a local Ray offers, if they are more than this machine has.
        packages: packages of this repository that workers need beside ``model`` and ``pipeline``.

    Raises:
        ConfigError: the command line is no UTF-8.
        PipelineError: the cluster at ``RAY_ADDRESS`` is gone, or does not take this process in; or
            Ray cannot be started here.
    """
    # Ray raises an exception where something goes wrong; its warnings are about its own affairs.
    logging.getLogger("ray").setLevel(logging.ERROR)
    # A stage may have fewer pieces than workers.
    warnings.filterwarnings("ignore", "The maximum number of concurrent tasks for")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    if ray.is_initialized():
        return
    _check_command_line()
    if WITHIN:
        directories = [_directory(WITHIN)]
    else:
        directories = [_directory(package) for package in ("model", "pipeline", *packages)]
    if address := os.environ.get("RAY_ADDRESS"):
        check_cluster(address)
        # Inside a submitted job the working directory holds the code already.
        code = {} if submitted() else {"py_modules": list(map(str, directories))}
        with _starting(f"RAY_ADDRESS {address}: the cluster cannot be joined", _ADVICE):
            ray.init(logging_level=logging.ERROR, runtime_env=code, log_to_driver=False)
    else:
        if not WITHIN:
            # Workers find the packages of a checkout, installed or not, wherever the job is called
            # from.
            path = (str(directories[0].parent), os.environ.get("PYTHONPATH"))
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        with _starting("Ray cannot be started on this machine", "see its logs below RAY_TMPDIR"):
            ray.init(
                address="local",
                # More workers than cores may be asked for; Ray counts cores, it does not bind them.
                num_cpus=max(os.cpu_count() or 1, num_cpus or 1),
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
    BEFORE_LEAVING.append(_disconnect)
    end_on_signals()  # Ray's own handler would print a stack and abort


def _check_command_line() -> None:
    """
    Raises:
        ConfigError: Ray, which keeps the command line, cannot take it.
    """
    try:
        "".join(sys.argv).encode()
    except UnicodeEncodeError as error:
        where = "".join(sys.argv)[error.start : error.end].encode(errors="surrogateescape")
        raise ConfigError(
            f"the command line: holds bytes that are no UTF-8 ({where!r}), which Ray cannot take; "
            "name a directory above, or a link to that path"
        ) from error


def _disconnect() -> None:
    """Leave the cluster, and end a local Ray.

    Its autoscaler does not heed the polite signal, for which Ray waits a second; on one machine it
    has nothing to scale.
    """
    if ray.is_initialized():
        with suppress(Exception):  # no part of Ray's interface: without it the second passes
            ray._private.worker._global_node.kill_monitor(check_alive=False)  # type: ignore
        ray.shutdown()


@contextmanager
def _starting(what: str, advice: str) -> Iterator[None]:
    """
    Raises:
        PipelineError: Ray raised whatever; says so in a sentence.
        Ended: SIGTERM came, for which Ray has a handler of its own meanwhile.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # Ray's core exits where it finds no cluster
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
            raise Ended(signal.SIGTERM) from error
        lines = message_of(error).strip().splitlines()
        why = f"it ended with {error}" if isinstance(error, SystemExit) else lines[0]
        raise PipelineError(f"{what}: {why.rstrip('.')}; {advice}") from error


def check_cluster(address: str) -> None:
    """Ask a cluster whether it is there and would take this process in. Ray itself would try for
    minutes, and print lines of its own.

    Raises:
        PipelineError: nothing listens there, something else than Ray does, or the cluster asks for
            another token than this process has.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    where = f"RAY_ADDRESS {address}"
    if not port.isdigit():  # such as "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise PipelineError(
            f"{where}: the cluster cannot be reached: {error}; {_ADVICE}"
        ) from error
    if "://" in address or os.environ.get("RAY_USE_TLS", "0") != "0":  # asked in other ways
        return
    status = _status(f"{host}:{port}", None)
    if status is grpc.StatusCode.UNAUTHENTICATED:
        token = _token()
        if token is None or _status(f"{host}:{port}", token) is grpc.StatusCode.UNAUTHENTICATED:
            problem = "and there is none" if token is None else "and refuses this process's"
            raise PipelineError(
                f"{where}: the cluster asks for a token, {problem}; set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head node"
            )
    elif status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        raise PipelineError(f"{where}: what listens there is no Ray cluster; {_ADVICE}")


def _status(target: str, token: str | None) -> grpc.StatusCode:
    """The status with which a cluster's control store answers a small question."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")
        try:
            ask(b"", timeout=REACH_S, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def _token() -> str | None:
    """The token that Ray would send: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, or the file
    in the home directory; None if tokens are switched off."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    with suppress(OSError):
        return Path(path).expanduser().read_text().strip() or None
    return None


def _directory(package: str) -> Path:
    """The directory of a package, which is not imported: a driver may lack what workers need."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def most_gpus() -> float:
    """The most GPUs that a node of the cluster offers now."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return max((float(resources.get("GPU", 0)) for resources in alive), default=0.0)


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
        with without_known_lines():
            return ray.get(task.options(num_gpus=gpus).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        used_up = isinstance(error, ray.exceptions.OutOfMemoryError)
        why = "used up the memory of its node" if used_up else "ended its process"
        raise PipelineError(
            f"{task._function_name.rpartition('.')[2].strip('_')}: this step {why}, each time that "
            "it was tried; a file of the input may be damaged, or a node of Ray's is gone"
        ) from error
