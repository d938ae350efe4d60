"""Stages in threads of their own: they overlap, fail in order, and keep to their core."""

import threading
import time
from itertools import count

import numpy as np
import pytest
import torch

from model import NGramEntropyModel, Patcher
from pipeline.errors import PipelineError
from pipeline.patch.scoring import Scorer, prefetch


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


def test_not_more_than_one_item_is_made_ahead():
    made = []
    ahead = prefetch(made.append(number) or number for number in count())
    for number in range(5):
        assert next(ahead) == number
        assert len(made) <= number + 2
    ahead.close()


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


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_entropies_that_are_no_numbers_stop_the_job(broken):
    model = NGramEntropyModel(np.full(1 << 18, broken, np.float16), {})
    with pytest.raises(PipelineError, match="--entropy-model: gave an entropy that is not a num"):
        Scorer(model, Patcher(1.0)).score([b"text"])
    assert Scorer(model, Patcher(1.0)).score([]).lengths_D.tolist() == []
