"""A patching job joins Ray while it loads its model: whose error is told. Starts no Ray."""

import time
from threading import Event

import pytest

from pipeline.errors import ConfigError, PipelineError
from pipeline.patch import job


@pytest.fixture
def joined(monkeypatch) -> list[int | None]:
    """The arguments of ``connect``, which does nothing."""
    calls: list[int | None] = []
    monkeypatch.setattr(job, "connect", calls.append)
    return calls


def test_what_is_loaded_comes_back_when_ray_is_joined(joined):
    assert job._load_while_joining(lambda: None, 3) is None
    assert joined == [3]


def test_an_error_of_the_load_is_raised_as_it_was(joined):
    error = ConfigError("--entropy-model x: no such directory")

    def load():
        raise error

    with pytest.raises(ConfigError) as raised:
        job._load_while_joining(load, None)
    assert raised.value is error and joined == [None]


@pytest.mark.parametrize("error", [PipelineError("the cluster is gone"), KeyboardInterrupt()])
def test_an_error_of_joining_does_not_wait_for_the_load(monkeypatch, error):
    """The load may be a download of hours."""
    begun, end = Event(), Event()

    def load():
        begun.set()
        assert end.wait(30)
        raise ConfigError("too late")

    def connect(workers):
        assert begun.wait(30)
        raise error

    monkeypatch.setattr(job, "connect", connect)
    began = time.monotonic()
    try:
        with pytest.raises(type(error)) as raised:
            job._load_while_joining(load, None)
        assert raised.value is error and time.monotonic() - began < 20
    finally:
        end.set()
