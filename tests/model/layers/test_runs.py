"""Sums over runs: what indexing and ``index_add`` compute, and gradients, by finite differences."""

import random

import pytest
import torch
from support.blt_cases import random_batch
from torch import Tensor

from model.layers.cross_attention import split_index
from model.layers.patch_layout import PatchLayout
from model.layers.runs import max_of_runs, sum_runs, take_rows

INDEXES = {
    "all runs": ([0, 0, 1, 2, 2, 2], 3),
    "empty ones at both ends and between": ([1, 1, 1, 4, 5, 5], 7),
    "one run": ([0] * 5, 1),
    "each its own": ([0, 1, 2, 3], 4),
}


def values(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("case", INDEXES)
def test_values_and_gradients(case):
    listed, rows = INDEXES[case]
    index = torch.tensor(listed)
    x_N, x_T = values(rows, 2, 3), values(len(index), 2, 3)
    assert torch.equal(take_rows(x_N, index), x_N[index])
    sums = torch.zeros(rows, 2, 3, dtype=torch.float64).index_add(0, index, x_T)
    torch.testing.assert_close(sum_runs(x_T, index, rows), sums)
    highest = max_of_runs(x_T, index, rows)
    for row in range(rows):
        own = x_T[index == row]
        expected = own.amax(0) if len(own) else torch.full((2, 3), -torch.inf)
        assert torch.equal(highest[row], expected.double())
    assert torch.autograd.gradcheck(lambda x: take_rows(x, index), x_N)
    assert torch.autograd.gradcheck(lambda x: sum_runs(x, index, rows), x_T)
    used = index.unique()
    assert torch.autograd.gradcheck(lambda x: max_of_runs(x, index, rows)[used], x_T)


def test_equal_values_share_the_gradient():
    x_T = torch.tensor([[1.0], [3.0], [3.0], [2.0]], requires_grad=True)
    max_of_runs(x_T, torch.tensor([0, 0, 0, 1]), 2).sum().backward()
    assert x_T.grad is not None and x_T.grad.flatten().tolist() == [0, 0.5, 0.5, 1]


def test_long_runs_add_up_in_float32():
    """The sum of 4,096 times 1 would stop at 256 in bfloat16."""
    ones, index = torch.ones(4096, 1, dtype=torch.bfloat16), torch.zeros(4096, dtype=torch.int64)
    assert sum_runs(ones, index, 1).item() == 4096
    table = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    take_rows(table, index).sum().backward()
    assert table.grad is not None and table.grad.item() == 4096


@pytest.mark.parametrize("seed", range(20))
def test_the_indices_of_a_layout_never_fall(seed):
    rng = random.Random(seed)
    windows = rng.choice([1, 2, 5]), rng.choice([1, 3])
    layout = PatchLayout.of(*random_batch(rng), *windows, multiple=rng.choice([1, 128]))
    patches = len(layout.position_N)
    for index_TW in (layout.gathering_TW, layout.read_TW):
        for column_T in index_TW.unbind(1):
            index_T, none_T = split_index(column_T)
            assert (
                (index_T.diff() >= 0).all() and (index_T >= 0).all() and (index_T < patches).all()
            )
            assert torch.equal(index_T[~none_T], column_T[~none_T])
    assert (layout.read_TW[:, 0] >= 0).all()
