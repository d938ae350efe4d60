"""Jobs as users run them; and what their tests share because it takes long to start: a local Ray,
and an S3 server."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support.jobs import JOB, RunJob, job_alone, job_here


@pytest.fixture
def run_job() -> RunJob:
    return job_alone(JOB)


@pytest.fixture
def local_ray() -> None:
    """One Ray for the tests of all files, as long as they want the same; see its module."""
    from support.local_ray import share_local_ray

    share_local_ray(4)


@pytest.fixture
def run_here(local_ray: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    return job_here(JOB, monkeypatch, capsys)


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the local Ray after the last test of this folder: idle, it takes CPU time, too."""
    folder = item.path.parent
    if "support.local_ray" in sys.modules and (nextitem is None or nextitem.path.parent != folder):
        from support.local_ray import end_local_ray

        end_local_ray()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment to use it with; each file's tests have a bucket of their own."""
    from support.clusters import an_s3_server

    with an_s3_server(tmp_path_factory.mktemp("s3")) as variables:
        yield variables
