"""One local Ray per process of the tests, for as long as they ask for the same.

Ray's own processes take 10 seconds of CPU time to start, its workers some more: longer than most
jobs that are tested.
"""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import MappingProxyType

import psutil
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


def workers(*names: str) -> list[psutil.Process]:
    """The running workers of the local Ray whose titles hold one of these names."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(name in " ".join(process.cmdline()) for name in names):
                found.append(process)
    return found


@contextmanager
def a_worker_killed_when(reached: Callable[[], bool], name: str) -> Iterator[None]:
    """Kill a worker with this name as soon as the work within got so far; it is an error if it does
    not."""
    earlier = workers(name)
    over = threading.Event()

    def kill() -> None:
        end = time.monotonic() + 120
        while not over.is_set() and time.monotonic() < end:
            if reached() and (victims := [w for w in workers(name) if w not in earlier]):
                victims[0].kill()
                return
            time.sleep(0.005)
        pytest.fail("nothing was killed")

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        try:
            yield
        finally:
            over.set()
    killed.result()


@contextmanager
def a_full_disk() -> Iterator[None]:
    """Workers of the local Ray, alone of its processes, can write no file of more than 500 kB."""
    whole, over = resource.RLIM_INFINITY, threading.Event()

    def limit(size: int) -> None:
        for process in workers("ray::", "default_worker.py"):
            with suppress(psutil.Error):
                if process.rlimit(psutil.RLIMIT_FSIZE)[0] != size:
                    process.rlimit(psutil.RLIMIT_FSIZE, (size, whole))

    def watch() -> None:  # a new worker imports for a second before it writes
        while not over.wait(0.1):
            limit(500_000)

    limit(500_000)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(watch)
        try:
            yield
        finally:
            over.set()
    limit(whole)
