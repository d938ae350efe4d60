"""Jobs as users run them."""

from typing import Any

import pytest
from support.jobs import JOB, RunJob, job_alone, job_here


@pytest.fixture
def run_job() -> RunJob:
    return job_alone(JOB)


@pytest.fixture
def run_here(local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    return job_here(JOB, monkeypatch, capsys)
