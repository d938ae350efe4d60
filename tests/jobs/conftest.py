"""Jobs as users run them, and an S3 server that their tests share."""

from collections.abc import Iterator
from typing import Any

import pytest
from support.jobs import JOB, RunJob, job_alone, job_here


@pytest.fixture
def run_job() -> RunJob:
    return job_alone(JOB)


@pytest.fixture
def run_here(local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    return job_here(JOB, monkeypatch, capsys)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment to use it with; each file's tests have a bucket of their own."""
    from support.clusters import an_s3_server

    with an_s3_server(tmp_path_factory.mktemp("s3")) as variables:
        yield variables
