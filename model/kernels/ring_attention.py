"""Attention of one new token per row to the keys and values that a ring keeps.

One program computes one head of one row: it rotates the query and the new key, keeps the new key
and value, and attends to what the token sees. Plain PyTorch takes three kernels and a mask for it,
of which the attention alone took 36 us for one row, and reads every slot for every row. This reads
the slots that hold something, and nothing for rows that need nothing.

A softmax over many keys is usually joined after each piece of keys, for which all threads meet.
Here each of ``LANES`` lanes has a softmax of its own over every LANES-th slot: its greatest score,
its sum, and its sum of values. They are joined once, at the end. The new token itself is always
seen. So its score is the first maximum of each lane, and no lane has to do with minus infinity
alone; lane 0 also counts it.

For example, 5 tokens were read into a ring of 8 slots, and the window is 4. The new token has
position 5 and goes to slot 5. Slots 0 to 4 hold what is 5 to 1 tokens behind; those that are more
than 3 behind are not seen, so that with 4 lanes lane 0 sees slot 4 and itself, lane 1 nothing, and
lanes 2 and 3 their slots.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc

from model.kernels.launch import launched_early

LANES, WARPS = 16, 2
"""Slots that a program takes at a time, at a head of 128 in two bytes each, and the warps that take
them."""
STAGES = 3
"""Pieces of slots that are on their way at a time."""
FEW_ROWS, LARGER = 4, 4
"""Up to so many rows a program is so many times as large: there are few, for many
multiprocessors."""


@triton.jit
def _attend(
    qkv, rotary, ring, out, position, reach, needed,
    position_step, reach_step, needed_step, row_step, slots, window, heads, groups, scale,
    ALL: tl.constexpr, HEAD: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc.gdc_launch_dependents()
        gdc.gdc_wait()
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    shared = heads // groups  # heads of keys, and of values
    kept = head // groups
    e, lane_L = tl.arange(0, WIDE), tl.arange(0, LANES)
    inside_E = e < HEAD
    at_E = qkv + row * (heads + 2 * shared) * HEAD + e
    turned_E = at_E - e + (e ^ 1)  # the other feature of the pair
    angle_E = rotary + row * HEAD + e // 2 * 2
    cos_E = tl.load(angle_E, inside_E, 0)
    sin_E = tl.load(angle_E + 1, inside_E, 0) * tl.where(e % 2 == 0, -1.0, 1.0)
    q_E = tl.load(at_E + head * HEAD, inside_E, 0).to(tl.float32) * cos_E
    q_E += tl.load(turned_E + head * HEAD, inside_E, 0).to(tl.float32) * sin_E
    q_E = q_E.to(qkv.dtype.element_ty).to(tl.float32) * scale
    of_key = (heads + kept) * HEAD
    k_E = tl.load(at_E + of_key, inside_E, 0).to(tl.float32) * cos_E
    k_E += tl.load(turned_E + of_key, inside_E, 0).to(tl.float32) * sin_E
    k_E = k_E.to(ring.dtype.element_ty)
    v_E = tl.load(at_E + of_key + shared * HEAD, inside_E, 0)

    now = tl.load(position + row * position_step)
    stop = tl.minimum(now, slots).to(tl.int32)
    own = (now % slots).to(tl.int32)
    step = 2 * shared * HEAD
    ring += row * row_step + kept * HEAD
    slot_E = ring + own.to(tl.int64) * step + e
    first = tl.where(head % groups == 0, inside_E, False)
    tl.store(slot_E, k_E, first)
    tl.store(slot_E + shared * HEAD, v_E.to(ring.dtype.element_ty), first)

    behind_most = tl.minimum(tl.load(reach + row * reach_step), window - 1).to(tl.int32)
    if not ALL:
        stop = tl.where(tl.load(needed + row * needed_step) > 0, stop, 0)
    most_L = tl.zeros((LANES,), tl.float32) + tl.sum(q_E * k_E.to(tl.float32), 0)
    itself_L = tl.where(lane_L == 0, 1.0, 0.0)
    sum_L = itself_L
    out_LE = itself_L[:, None] * v_E.to(tl.float32)[None, :]
    at_LE = ring + lane_L[:, None].to(tl.int64) * step + e[None, :]
    for begin in tl.range(0, stop, LANES, num_stages=STAGES):
        slot_L = begin + lane_L
        behind_L = own - slot_L
        behind_L = tl.where(behind_L < 0, behind_L + slots, behind_L)
        seen_L = (slot_L < stop) & (behind_L > 0) & (behind_L <= behind_most)
        seen_LE = seen_L[:, None] & inside_E[None, :]
        k_LE = tl.load(at_LE, seen_LE, 0)
        v_LE = tl.load(at_LE + shared * HEAD, seen_LE, 0)
        at_LE += LANES * step
        score_L = tl.sum(k_LE.to(tl.float32) * q_E[None, :], 1)
        score_L = tl.where(seen_L, score_L, -float("inf"))
        greatest_L = tl.maximum(most_L, score_L)
        fade_L = tl.exp(most_L - greatest_L)
        p_L = tl.exp(score_L - greatest_L)
        sum_L = sum_L * fade_L + p_L
        out_LE = out_LE * fade_L[:, None] + p_L[:, None] * v_LE.to(tl.float32)
        most_L = greatest_L
    fade_L = tl.exp(most_L - tl.max(most_L, 0))
    out_E = tl.sum(out_LE * fade_L[:, None], 0) / tl.sum(sum_L * fade_L, 0)
    tl.store(out + (row * heads + head) * HEAD + e, out_E.to(out.dtype.element_ty), inside_E)


def lanes_of(wide: int, larger: int, itemsize: int) -> int:
    """Slots that a program takes at a time: as many as have the same bytes, whatever the width of a
    head and the dtype. Those that are on their way then take at most 64 KB of shared memory, of
    which an A10, L4 or RTX 4090 has 99."""
    return max(larger * LANES * 128 * 2 // (wide * itemsize), 1)


@torch.library.custom_op("blt_titan::attend_to_ring", mutates_args=("ring",))
def attend_to_ring(
    qkv_BE: Tensor,
    rotary_BF2: Tensor,
    ring: Tensor,
    position_B: Tensor,
    reach_B: Tensor,
    needed_B: Tensor | None,
    window: int,
) -> Tensor:
    """Attend to a ring and keep the new keys and values in it.

    Args:
        qkv_BE: heads of queries, of keys and of values of one token per row, not rotated.
        rotary_BF2: as :class:`model.layers.attention.RotaryAngles` returns them.
        ring: ``[batch, slots, 2 * key heads, head_dim]``; keys stand before values.
        position_B: how many tokens were read before, int64.
        reach_B: how far each token may look back, int64.
        needed_B: 0 for rows of which nobody needs the result: their token sees itself alone. All
            are needed by default.
        window: keys that a query sees, itself included.

    Returns:
        ``[batch, heads * head_dim]``.
    """
    batch, slots, kept, head_dim = ring.shape
    heads = qkv_BE.shape[1] // head_dim - kept
    wide = 1 << (head_dim - 1).bit_length()
    larger = LARGER if batch <= FEW_ROWS else 1
    out_BD = qkv_BE.new_empty(batch, heads * head_dim)
    needed = position_B if needed_B is None else needed_B
    with torch.cuda.device_of(ring):
        _attend[(heads, batch)](
            *(qkv_BE.contiguous(), rotary_BF2.contiguous(), ring, out_BD),
            *(position_B, reach_B, needed),
            *(position_B.stride(0), reach_B.stride(0), needed.stride(0), ring.stride(0)),
            *(slots, window, heads, 2 * heads // kept, head_dim**-0.5),
            ALL=needed_B is None,
            HEAD=head_dim,
            WIDE=wide,
            LANES=lanes_of(wide, larger, ring.element_size()),
            STAGES=STAGES,
            num_warps=larger * WARPS,
            **launched_early(ring.device),
        )
    return out_BD


@attend_to_ring.register_fake
def _(qkv_BE: Tensor, _rotary: Tensor, ring: Tensor, *_: object) -> Tensor:
    return qkv_BE.new_empty(len(qkv_BE), qkv_BE.shape[1] - ring.shape[2] * ring.shape[3])
