"""Stages in threads of their own: they overlap, fail in order, and keep to their core."""

import threading
import time
from itertools import count

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.prefetch import prefetch


def test_the_next_item_is_made_while_one_is_used():
    asked = [threading.Event() for _ in range(4)]

    def items():
        for number in range(3):
            asked[number].set()
            yield number
        asked[3].set()

    for number in prefetch(items()):
        # Without this item being given back, the next one is begun.
        assert asked[number + 1].wait(10)


@pytest.mark.parametrize("ahead", [1, 3])
def test_not_more_items_are_made_ahead_than_asked_for(ahead):
    made = []
    items = prefetch((made.append(number) or number for number in count()), ahead)
    for number in range(5):
        assert next(items) == number
        assert len(made) <= number + 1 + ahead
    items.close()
    assert len(made) <= 5 + ahead


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        yield 2
        raise PipelineError("third")

    chained = prefetch(prefetch(items()))
    assert [next(chained), next(chained)] == [1, 2]
    with pytest.raises(PipelineError, match="third"):
        next(chained)


def test_a_stage_keeps_to_its_core():
    a = torch.rand(1200, 1200)

    def share_of_the_work() -> float:
        process, thread = time.process_time(), time.thread_time()
        for _ in range(5):
            a @ a
        return (time.thread_time() - thread) / (time.process_time() - process)

    (share,) = prefetch(share_of_the_work() for _ in range(1))
    assert share > 0.9


def test_the_thread_ends_with_the_items_and_when_the_iterator_is_closed_or_dropped():
    def threads() -> int:
        return sum(thread.name.startswith("prefetch") for thread in threading.enumerate())

    assert list(prefetch(iter(range(9)), 4)) == list(range(9)) and threads() == 0
    for finish in (lambda items: items.close(), lambda items: None):
        items = prefetch(count(), 4)
        assert next(items) == 0 and threads() == 1
        finish(items)
        del items
        assert threads() == 0


def test_the_number_of_cores_is_that_of_the_caller_or_what_is_asked_for():
    cores = torch.get_num_threads()

    def seen(*arguments: int) -> int:
        (found,) = prefetch((torch.get_num_threads() for _ in range(1)), *arguments)
        return found

    assert seen() == cores and seen(1, cores + 2) == cores + 2
    assert torch.get_num_threads() == cores
