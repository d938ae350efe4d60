"""Loading without garbage collections."""

import gc
import weakref

import pytest

from pipeline.cli.loading import loading


@pytest.fixture(autouse=True)
def collecting():
    """torchtitan switches the collector off for the process that trains, which may be this one."""
    before = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if before else gc.disable)()


class _Ring:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_meanwhile_and_garbage_is_afterwards():
    runs: list[str] = []
    gc.callbacks.append(lambda phase, info: runs.append(phase))
    try:
        with loading():
            runs.clear()
            kept = [[] for _ in range(100_000)]  # far more than any generation takes
            assert runs == []
    finally:
        gc.callbacks.pop()
    assert gc.isenabled()
    frozen = gc.get_freeze_count()
    assert frozen and kept
    with loading():
        later = weakref.ref(_Ring())
    assert gc.get_freeze_count() <= frozen
    gc.collect()
    assert later() is None


def test_the_collector_is_as_before_after_an_error():
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    with loading():
        pass
    assert not gc.isenabled()
