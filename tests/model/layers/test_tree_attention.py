"""Attention among branches against one matrix of who sees whom."""

import pytest
import torch
from support.interpreted_process import run_interpreted
from torch import Tensor

from model.layers.attention import BLOCK, attend_flex, segment_attention
from model.layers.tree_attention import needed_blocks, tree_attention, tree_block_mask

# Tokens that each document shares with the one before it, and tokens of its own.
FORESTS = {
    "the example": [(0, 7), (5, 2), (0, 5)],
    "one long trunk": [(0, 500), *[(480 + i, 40) for i in range(9)], (490, 200), (10, 300)],
    "nothing shared": [(0, 300), (0, 1), (0, 127), (0, 128), (0, 70)],
    "a ladder": [(0, 2), *[(i, 3) for i in range(1, 250)]],
}


def paths(forest: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and last followers, and by token those that stand before it in its document."""
    place, path, position, seen = 0, [], [], []
    for shared, own in forest:
        path = path[:shared]
        for _ in range(own):
            path.append(place)
            position.append(len(path) - 1)
            seen.append(list(path))
            place += 1
    sees_TT = torch.zeros(place, place, dtype=torch.bool)
    for q, keys in enumerate(seen):
        sees_TT[q, keys] = True
    last_T = torch.tensor([int(sees_TT[:, k].nonzero().max()) for k in range(place)])
    return torch.tensor(position), last_T, sees_TT


def example(forest: list[tuple[int, int]], window: int | None, dim: int) -> tuple[Tensor, ...]:
    """Positions, last followers, queries, keys, values, and what attention has to return."""
    position_T, last_T, sees_TT = paths(forest)
    tokens = len(position_T)
    distance_TT = position_T[:, None] - position_T
    allowed_TT = sees_TT & (distance_TT < (window or tokens))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, heads, dim, generator=generator) for heads in (4, 2, 2))
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, 1)) / dim**0.5
    weights = scores.masked_fill(~allowed_TT, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(2, 1))
    return position_T, last_T, q, k, v, expected


def padded_to_blocks(position_T: Tensor, last_T: Tensor, *qkv: Tensor) -> tuple[Tensor, ...]:
    tokens, padding = len(position_T), -len(position_T) % BLOCK
    position_T = torch.nn.functional.pad(position_T, (0, padding))
    last_T = torch.cat([last_T, torch.arange(tokens, tokens + padding)])
    return position_T, last_T, *(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, padding)) for x in qkv)


@pytest.mark.parametrize("window", [1, 60, 200, None])
@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_token_sees_those_before_it_in_its_document(name, window):
    position_T, last_T, *qkv, expected = example(FORESTS[name], window, 8)
    found = tree_attention(position_T, last_T, window)(*qkv)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    # The same mask and lists of blocks, as a GPU has them.
    tokens = len(position_T)
    position_T, last_T, *qkv = padded_to_blocks(position_T, last_T, *qkv)
    mask = tree_block_mask(position_T, last_T, window or tokens)
    fused = attend_flex(*qkv, mask)[:tokens]
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)


def check_kernel() -> None:
    """One compiled for a size, then one for all."""
    from support.interpreted import interpreter
    from torch.nn.attention import flex_attention

    flex_attention._validate_device = lambda *tensors: None
    compiled = torch.compile(attend_flex, backend=interpreter({}))
    for forest, window in (
        ([(0, 200), (150, 100), (30, 84)], None),
        ([(0, 300), (290, 150), (290, 62)], 100),
        ([(0, 100)], None),
    ):
        position_T, last_T, *qkv, expected = example(forest, window, 64)
        tokens = len(position_T)
        position_T, last_T, *qkv = padded_to_blocks(position_T, last_T, *qkv)
        with torch.no_grad():
            mask = tree_block_mask(position_T, last_T, window or tokens)
            found = compiled(*qkv, mask)[:tokens]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_values_of_the_kernel():
    """That of a GPU, run by Triton's interpreter."""
    pytest.importorskip("triton", reason="kernels for GPUs are generated as Triton")
    run_interpreted(check_kernel)


def test_the_module_s_example():
    position_T, last_T, _ = paths(FORESTS["the example"])
    assert position_T.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 0, 1, 2, 3, 4]
    assert last_T.tolist() == [8, 8, 8, 8, 8, 6, 6, 8, 8, 13, 13, 13, 13, 13]


def test_without_sharing_it_is_that_of_segments():
    position_T, last_T, _ = paths(FORESTS["nothing shared"])
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(len(position_T), 2, 8, generator=generator) for _ in range(3))
    for window in (50, None):
        expected = segment_attention(position_T, window)(q, k, v)
        found = tree_attention(position_T, last_T, window)(q, k, v)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_blocks_that_nobody_needs_are_left_out():
    """Queries of a branch need the trunk's last window and their own block, and nothing between."""
    branches = 40
    position_T, last_T, _ = paths([(0, 1024), *[(1024, BLOCK)] * branches])
    count_N, index_NN = needed_blocks(position_T, last_T, 256)
    for block in range(8, 8 + branches):
        assert sorted(index_NN[block, : count_N[block]].tolist()) == [6, 7, block]
    assert count_N[:8].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
