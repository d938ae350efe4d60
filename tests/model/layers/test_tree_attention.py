"""Attention among branches against one matrix of who sees whom."""

import pytest
import torch
from torch import Tensor

from model.layers.attention import BLOCK, attend_flex, segment_attention
from model.layers.tree_attention import _block_mask, needed_blocks, tree_attention

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


@pytest.mark.parametrize("window", [1, 60, 200, None])
@pytest.mark.parametrize("name", FORESTS)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_token_sees_those_before_it_in_its_document(name, window):
    position_T, last_T, sees_TT = paths(FORESTS[name])
    tokens = len(position_T)
    distance_TT = position_T[:, None] - position_T
    allowed_TT = sees_TT & (distance_TT < (window or tokens))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(tokens, heads, 8, generator=generator) for heads in (4, 2, 2))
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, 1)) / 8**0.5
    weights = scores.masked_fill(~allowed_TT, -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(2, 1))
    found = tree_attention(position_T, last_T, window)(q, k, v)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    # The same mask and lists of blocks, as a GPU has them.
    padding = -tokens % BLOCK
    position_T = torch.nn.functional.pad(position_T, (0, padding))
    last_T = torch.cat([last_T, torch.arange(tokens, tokens + padding)])
    listed = needed_blocks(position_T, last_T, window or tokens)

    def sees(q: Tensor, k: Tensor) -> Tensor:
        distance = position_T[q] - position_T[k]
        return (k <= q) & (q <= last_T[k]) & (distance < (window or tokens))

    q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
    fused = attend_flex(q, k, v, _block_mask(*listed, sees))[:tokens]
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=1e-5)


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
