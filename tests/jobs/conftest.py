"""Jobs as users run them, and a Ray that the jobs of a file find started."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.jobs import JOB, RunJob, job_alone, job_here


@pytest.fixture
def run_job() -> RunJob:
    return job_alone(JOB)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    from support.local_ray import a_local_ray

    with a_local_ray(4):
        yield


@pytest.fixture
def run_here(local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    return job_here(JOB, monkeypatch, capsys)
