"""Attention to a ring: Triton's interpreter against a mask over every position."""

import pytest
import torch
import torch.nn.functional as F
from support.kernels_on_cpus import attend_to_ring_plainly, run_kernels_on_cpu

from model.kernels import ring_attention
from model.layers.attention import RotaryAngles, apply_rotary


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    run_kernels_on_cpu(monkeypatch)
    monkeypatch.setattr(ring_attention, "LARGER", 1)  # several rounds


def attend_plainly(qkv_BE, rotary, keys_BTHD, values_BTHD, position_B, reach_B, heads, window):
    """The same from the keys and values of all positions, and those of the new token."""
    batch, (kv, dim) = len(qkv_BE), keys_BTHD.shape[2:]
    q, k, v = qkv_BE.view(batch, -1, dim).split((heads, kv, kv), 1)
    q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    out = []
    for row, (now, reach) in enumerate(zip(position_B.tolist(), reach_B.tolist(), strict=True)):
        first = now - min(reach, window - 1)
        keys = torch.cat([keys_BTHD[row, first:now], k[row][None]]).transpose(0, 1)
        values = torch.cat([values_BTHD[row, first:now], v[row][None]]).transpose(0, 1)
        out.append(F.scaled_dot_product_attention(q[row][:, None], keys, values, enable_gqa=True))
    return torch.stack(out).flatten(1), k, v


@pytest.mark.parametrize(
    ("heads", "kv", "dim", "window", "slots"),
    [(2, 2, 8, 30, 32), (4, 2, 16, 24, 48), (3, 1, 24, 1000, 128)],
    ids=["ring", "groups", "everything"],
)
def test_tokens_see_what_they_should(heads, kv, dim, window, slots):
    """Rows that have read nothing, less than the slots, and several times as much."""
    read_B = torch.tensor([0, 5, 31, 47, 100 if window < 1000 else 127])
    batch, draw = len(read_B), torch.Generator().manual_seed(slots)
    everything = torch.randn(2, batch, int(read_B.max()) + 1, kv, dim, generator=draw)
    ring = torch.randn(batch, slots, 2 * kv, dim, generator=draw)  # what is stale is never seen
    for row, read in enumerate(read_B.tolist()):
        for position in range(max(read - slots, 0), read):
            ring[row, position % slots] = everything[:, row, position].flatten(0, 1)
    numbers = torch.stack([read_B, read_B.clamp(max=9)], 1)  # as strided as a piece's
    rotary = RotaryAngles(dim, 1e4)(read_B)
    qkv = torch.randn(batch, (heads + 2 * kv) * dim, generator=draw)
    for reach in (0, 1):
        arguments = numbers[:, 0], numbers[:, reach]
        expected, k, v = attend_plainly(qkv, rotary, *everything, *arguments, heads, window)
        kept = ring.clone()
        out = ring_attention.attend_to_ring(qkv, rotary, kept, *arguments, None, window)
        torch.testing.assert_close(out, expected)
        # The new keys and values are kept, and nothing else has changed.
        ring_after = ring.clone()
        ring_after[torch.arange(batch), read_B % slots] = torch.cat([k, v], 1)
        torch.testing.assert_close(kept, ring_after)
        # Other tests believe what stands for the kernel.
        plainly = attend_to_ring_plainly(qkv, rotary, ring.clone(), *arguments, None, window)
        torch.testing.assert_close(plainly, expected)


def test_what_nobody_needs_is_not_looked_at():
    """The ring holds NaN, which would show."""
    ring = torch.full((2, 16, 2, 8), torch.nan)
    position, rotary = torch.tensor([7, 7]), RotaryAngles(8, 1e4)(torch.tensor([7, 7]))
    qkv = torch.ones(2, 24)
    needed = torch.tensor([0, 1])
    for attend in (ring_attention.attend_to_ring, attend_to_ring_plainly):
        out = attend(qkv, rotary, ring.clone(), position, position, needed, 16)
        assert (out[0] == 1).all() and out[1].isnan().all()
