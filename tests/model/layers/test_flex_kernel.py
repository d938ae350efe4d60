"""The kernel of FlexAttention with which a GPU scores: its values, run by Triton's interpreter."""

import pytest
import torch
from support.interpreted_process import run_interpreted
from torch import Tensor

from model.layers.attention import (
    BLOCK,
    SCORING_KERNEL,
    SMALL_BLOCK,
    BlockedAttention,
    attend_flex,
    scoring_kernel,
    window_block_mask,
)

LENGTHS, WINDOW = (450, 70, 30, 90), 300


def positions() -> Tensor:
    return torch.cat([torch.arange(length) for length in LENGTHS])


def blind_rows(block: int) -> Tensor:
    """For each query whether it sees nothing of the first keys that the kernel takes for it."""
    mask = window_block_mask(positions(), WINDOW, block)
    query_T1 = torch.arange(sum(LENGTHS))[:, None]
    first_T1 = mask.kv_indices[0, 0, query_T1 // block, 0] * block
    key_TK = first_T1 + torch.arange(SCORING_KERNEL["BLOCK_N"])
    batch_or_head = torch.zeros((), dtype=torch.int64)
    return ~mask.mask_mod(batch_or_head, batch_or_head, query_T1, key_TK).any(1)


def lost_rows(kernel: dict[str, object], block: int) -> Tensor:
    """For each query whether the kernel returns NaN for it; all others must be right."""
    from support.interpreted import interpreter
    from torch.nn.attention import flex_attention

    from model.entropy_model import FIXED_KERNELS

    flex_attention._validate_device = lambda *tensors: None
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(LENGTHS), 2, 64, generator=generator) for _ in range(3))
    torch._dynamo.reset()
    with torch.no_grad():
        mask = window_block_mask(positions(), WINDOW, block)
        compiled = torch.compile(
            attend_flex, backend=interpreter(FIXED_KERNELS), fullgraph=True, dynamic=False
        )
        out = compiled(q, k, v, mask, None, kernel)
    lost = out.isnan().flatten(1).any(1)
    expected = BlockedAttention(positions(), WINDOW)(q, k, v)
    torch.testing.assert_close(out[~lost], expected[~lost], rtol=0, atol=1e-5)
    return lost


@pytest.mark.parametrize("block", [BLOCK, SMALL_BLOCK])
def test_some_rows_see_nothing_at_first(block):
    """So their greatest score is still -inf after the first keys, and exp(-inf - -inf) is NaN."""
    mask = window_block_mask(positions(), WINDOW, block)
    assert mask.full_kv_num_blocks.any() and (mask.kv_num_blocks > 1).any()
    assert 0 < blind_rows(block).sum() < sum(LENGTHS)
    assert not SCORING_KERNEL.get("ROWS_GUARANTEED_SAFE")


@pytest.mark.parametrize(
    ("head_dim", "dtype", "block"),
    [
        *((head_dim, torch.bfloat16, 64) for head_dim in (16, 48, 64, 128)),
        *((192, torch.bfloat16, 32), (256, torch.bfloat16, 32)),
        *((64, torch.float32, 64), (128, torch.float32, 32), (256, torch.float32, 16)),
    ],
)
def test_wide_heads_get_smaller_blocks(head_dim, dtype, block):
    """Triton compiles the kernel with blocks of 64, heads of 256 and bfloat16 to 168 KB of shared
    memory: more than an A100's multiprocessor has, 163, and a 4090's, 99. With these it needs 82 or
    less of each card."""
    blocks = {"BLOCK_M": block, "BLOCK_N": block}
    assert scoring_kernel(head_dim, dtype) == SCORING_KERNEL | blocks


def check_kernels() -> None:
    """The option that promises safe rows loses exactly those that see nothing at first."""
    assert not lost_rows(SCORING_KERNEL, BLOCK).any()
    lost = lost_rows(SCORING_KERNEL | {"ROWS_GUARANTEED_SAFE": True}, SMALL_BLOCK)
    assert torch.equal(lost, blind_rows(SMALL_BLOCK))


def test_values_of_the_kernel():
    pytest.importorskip("triton", reason="kernels for GPUs are generated as Triton")
    run_interpreted(check_kernels)
