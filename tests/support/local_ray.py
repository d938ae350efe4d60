"""A Ray that the tests of a file share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from pipeline.cluster.connect import connect


@contextmanager
def a_local_ray(num_cpus: int, *packages: str, worker_output: bool = True) -> Iterator[None]:
    """A Ray that jobs of this process find started: to start one takes longer than most of them."""
    with pytest.MonkeyPatch.context() as kept:
        # Joining prepends to it; what tests start should find the packages by itself.
        kept.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        connect(num_cpus, *packages, worker_output=worker_output)
    yield
    ray.shutdown()
