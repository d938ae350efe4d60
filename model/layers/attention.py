"""Causal attention over segments laid end to end, sliding-window or full, and rotary positions.

A query sees the keys of its own segment that stand at most ``window - 1`` tokens before it, and
itself. Its position p in the segment says how many there are, so that one number per query, its
*reach* ``min(p, window - 1)``, replaces segment ids: query ``q`` sees key ``k`` exactly if
``0 <= q - k <= reach[q]``.

Queries are handled in blocks of 128. The earliest key that a block needs is the earliest of its
first query: within a segment ``q - reach[q]`` never falls, and a segment that begins inside the
block needs nothing before it. The cost is therefore O(tokens * window), and not O(tokens ** 2).
With blocks of 4, a window of 3, and segments of 6 and 2 tokens::

    token      0 1 2 3   4 5 6 7
    position   0 1 2 3   4 5 0 1
    reach      0 1 2 2   2 2 0 1

The second block begins at token 4 with the reach 2, so it reads keys from token 2 on (in whole
blocks: from token 0 on). A mask then hides from each query the keys beyond its own reach: token 6
sees itself alone.

There are two forms: blocks of scaled_dot_product_attention on the CPU, FlexAttention with a block
mask on a GPU. On the meta device there are shapes alone, those of a GPU. Which form is used is
decided here and nowhere else.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

BLOCK = 128
"""Tokens per block of queries. Packs must be padded to a multiple."""
SMALL_BLOCK = 64
"""Tokens per block of a mask with which a GPU skips more: the least that fits SCORING_KERNEL."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The attention of one layer, ``(q_THD, k_TKD, v_TKD) -> out_THD``."""


class RotaryAngles(nn.Module):
    """Cosines and sines of rotary angles: at position p, pair ``i`` of a head's features turns by
    ``p * theta ** (-2 i / head_dim)``.

    Args:
        scaling: see :func:`scaled_frequencies`; empty for none.
    """

    bits_F: Tensor

    def __init__(self, head_dim: int, theta: float, scaling: tuple[float, ...] = ()):
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        # Kept as integers, because .to(bfloat16) must not round them. They stand where weights made
        # now would, except on the meta device, which would lose them.
        device = torch.get_default_device()
        bits_F = self._frequency_bits().to("cpu" if device.type == "meta" else device)
        self.register_buffer("bits_F", bits_F, persistent=False)

    def _frequency_bits(self) -> Tensor:
        pair_F = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu")
        # The form, and the CPU, decide the rounding: an error in the last bit changes sharp logits
        # by 1e-3.
        frequency_F = 1.0 / self.theta ** (pair_F / self.head_dim)
        if self.scaling:
            frequency_F = scaled_frequencies(frequency_F, *self.scaling)
        return frequency_F.view(torch.int32)

    def reset_parameters(self) -> None:
        """Compute the frequencies again: after ``to_empty`` they are lost."""
        self.bits_F.copy_(self._frequency_bits())

    def forward(self, position_T: Tensor) -> Tensor:
        """Cosine and sine of each token's angles, float32, ``[tokens, head_dim / 2, 2]``."""
        return rotary_angles(position_T, self.bits_F)


def rotary_angles(position_T: Tensor, bits_F: Tensor) -> Tensor:
    """Cosines and sines, as :class:`RotaryAngles` computes them, from the bits of its float32
    frequencies."""
    angle_TF = position_T.float()[:, None] * bits_F.view(torch.float32)
    return torch.stack([angle_TF.cos(), angle_TF.sin()], dim=-1)


def scaled_frequencies(
    frequency_F: Tensor, factor: float, low: float, high: float, length: float
) -> Tensor:
    """Rotary frequencies for longer contexts, as Llama 3.1 scales them.

    A pair that turns at least ``high`` times within the first ``length`` positions keeps its
    frequency, one that turns at most ``low`` times turns ``factor`` times slower, and between them
    the frequency is blended linearly in the number of turns. With Llama 3.1's (8, 1, 4, 8192), a
    pair of 10 turns keeps them, one of half a turn gets a sixteenth, and one of 2.5 turns gets
    2.5 * (0.5 + 0.5 / 8) = 1.4.

    Args:
        frequency_F: radians per position, float32.
    """
    frequency_F = frequency_F.double()
    turns_F = frequency_F * length / (2 * torch.pi)
    kept_F = ((turns_F - low) / (high - low)).clamp(0, 1)
    return (frequency_F * (kept_F + (1 - kept_F) / factor)).float()


def apply_rotary(x_THD: Tensor, rotary_TF2: Tensor) -> Tensor:
    """``x_THD`` with the pairs ``(2i, 2i + 1)`` of each head's features rotated, computed in
    float32 whatever its dtype.

    Args:
        rotary_TF2: as :class:`RotaryAngles` returns them.
    """
    turn = turn_complex if x_THD.is_cpu else turn_real
    pairs_THF2 = x_THD.float().unflatten(-1, (-1, 2))
    return turn(pairs_THF2, rotary_TF2.unsqueeze(1)).flatten(-2).type_as(x_THD)


def turn_real(pairs: Tensor, rotary: Tensor) -> Tensor:
    """Pairs rotated, for GPUs: the compiler fuses this form with its neighbours, but not complex
    numbers. Written as ``(a, b) cos + (b, a) (-sin, sin)``, each result reads what it needs and
    nothing else."""
    cos, sin = rotary.chunk(2, -1)
    sign = torch.arange(-1, 2, 2, device=pairs.device)
    return pairs * cos + pairs.flip(-1) * (sin * sign)


def turn_complex(pairs: Tensor, rotary: Tensor) -> Tensor:
    """The same products, 8 times faster on a CPU."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))


def segment_attention(position_T: Tensor, window: int | None) -> Attend:
    """The attention among segments laid end to end.

    Args:
        position_T: position of each token in its segment.
        window: keys that a query sees, itself included; None for all of its segment before it.
    """
    tokens = len(position_T)
    padding = -tokens % BLOCK
    # Padding stands in segments of one token each, so that it costs the attention least.
    position_T = F.pad(position_T, (0, padding))
    window = window or max(len(position_T), 1)
    attend: Attend
    if position_T.is_cpu:
        attend = BlockedAttention(position_T, window)
    elif position_T.is_meta:
        attend = shapes_only(position_T, window)
    else:
        attend = fused_attention(position_T, window)
    if not padding:
        return attend

    def attend_padded(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        padded = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q_THD, k_TKD, v_TKD))
        return attend(*padded)[:tokens]

    return attend_padded


class BlockedAttention:
    """The attention of one pack on a CPU.

    Each block of queries reads as many whole blocks of keys before it as it needs; see the module's
    text. Blocks that read equally many form a group, which is one call of
    scaled_dot_product_attention. Masks are made once for all layers.
    """

    def __init__(self, position_T: Tensor, window: int):
        """
        Args:
            position_T: position of each token in its segment; a multiple of BLOCK tokens.
            window: keys that a query sees, itself included.
        """
        position_NB = position_T.view(-1, BLOCK)
        reach_NB1 = position_NB.clamp(max=window - 1).int().unsqueeze(-1)
        # Keys before the block that it reads: the reach of its first query, in whole blocks.
        before_N = position_NB[:, 0].clamp(max=window - 1)
        before_N = (before_N + BLOCK - 1) // BLOCK * BLOCK
        self.groups = []
        for before in before_N.unique().tolist():
            (block_G,) = (before_N == before).nonzero(as_tuple=True)
            k_GK = block_G[:, None] * BLOCK + torch.arange(-before, BLOCK)
            # A key after the query counts as farther than any reach. So does one before the first
            # token of the pack, which whole blocks may include: its distance exceeds any position.
            distance_BK = torch.arange(BLOCK)[:, None] - torch.arange(-before, BLOCK)
            distance_BK = torch.where(distance_BK < 0, 2**31 - 1, distance_BK).int()
            outside = distance_BK > reach_NB1[block_G]
            mask = torch.zeros(outside.shape).masked_fill_(outside, -torch.inf)
            self.groups.append((block_G, k_GK.clamp(min=0), mask.unsqueeze(1)))

    def __call__(self, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        q_NBHD = q_THD.unflatten(0, (-1, BLOCK))
        out_NBHD = torch.empty_like(q_NBHD)
        gqa = q_THD.shape[1] != k_TKD.shape[1]
        for block_G, k_GK, mask in self.groups:
            out_NBHD[block_G] = F.scaled_dot_product_attention(
                q_NBHD[block_G].transpose(1, 2),
                k_TKD[k_GK].transpose(1, 2),
                v_TKD[k_GK].transpose(1, 2),
                attn_mask=mask.type_as(q_THD),
                enable_gqa=gqa,
            ).transpose(1, 2)
        return out_NBHD.flatten(0, 1)


def window_block_mask(position_T: Tensor, window: int, block: int = BLOCK) -> BlockMask:
    """FlexAttention's mask for one pack, made from positions alone.

    FlexAttention wants, for each block of queries, a list of the key blocks in which ``mask_mod``
    decides about each pair, and a list of the *full* ones, whose keys are all seen by all queries
    and which need no mask. The first key that a token sees, ``q - reach[q]``, never falls from one
    token to the next (see the module's text). The first query therefore says which block is the
    earliest that is read, the last query from which block on all are full, and nothing between
    has to be looked at. With blocks of 4, a window of 10 and one segment of 16 tokens, query 12
    sees keys from token 3 on, query 15 from token 6 on: blocks 0 and 1 are masked, block 2 is full,
    and block 3, the queries' own, is masked because keys follow queries in it.

    Backward asks for the same lists by key block. Since both bounds never fall, the query blocks
    that read a key block are runs, too. Where nothing goes backward they are not made.

    Args:
        position_T: position of each token in its segment; a multiple of ``block`` tokens.
        window: keys that a query sees, itself included.
        block: tokens per block; a multiple of the blocks of the kernel that reads the mask.
    """
    tokens, device = len(position_T), position_T.device
    # The first key that each query sees.
    key_T = torch.arange(tokens, device=device, dtype=torch.int32)
    key_T -= position_T.clamp(max=window - 1).int()
    own_N = torch.arange(tokens // block, device=device, dtype=torch.int32)
    first_N = key_T[::block] // block
    full_N = ((key_T[block - 1 :: block] + block - 1) // block).minimum(own_N)
    masked, full = _block_lists(first_N, full_N, own_N), _block_lists(full_N, own_N)
    of_keys: _Lists | None = None
    of_keys_full: _Lists | None = None
    if torch.is_grad_enabled():
        # The blocks before these are those whose queries see a key of a block, and all keys of it.
        seen_N, all_seen_N = (
            torch.searchsorted(bound_N, own_N, right=True, out_int32=True)
            for bound_N in (first_N, full_N)
        )
        of_keys = _block_lists(all_seen_N, seen_N, own_N)
        of_keys_full = _block_lists(own_N + 1, all_seen_N)

    def inside(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= key_T[q])

    return BlockMask(
        seq_lengths=(tokens, tokens),
        kv_num_blocks=masked.counts,
        kv_indices=masked.blocks,
        full_kv_num_blocks=full.counts,
        full_kv_indices=full.blocks,
        q_num_blocks=of_keys and of_keys.counts,
        q_indices=of_keys and of_keys.blocks,
        full_q_num_blocks=of_keys_full and of_keys_full.counts,
        full_q_indices=of_keys_full and of_keys_full.blocks,
        BLOCK_SIZE=(block, block),
        mask_mod=inside,
    )


class _Lists(NamedTuple):
    """A list of blocks for each block, as FlexAttention reads it."""

    counts: Tensor
    """How many blocks each list has, int32, ``[1, 1, N]``."""
    blocks: Tensor
    """The lists, int32, ``[1, 1, N, N]``; what follows the counted blocks is no part of one. All
    have one width, because torch 2.11 reads full ones with the strides of the others."""


def _block_lists(start_N: Tensor, stop_N: Tensor, last_N: Tensor | None = None) -> _Lists:
    """For each block the run of blocks from start to stop, and a last one if there is one."""
    count_N, blocks = stop_N - start_N, len(start_N)
    offset_N = torch.arange(blocks, device=start_N.device, dtype=torch.int32)
    index_NN = (start_N[:, None] + offset_N).clamp(max=blocks - 1)
    if last_N is not None:
        index_NN = torch.where(offset_N < count_N[:, None], index_NN, last_N[:, None])
        count_N = count_N + 1
    return _Lists(count_N[None, None], index_NN[None, None])


SCORING_KERNEL: FlexKernelOptions = {
    "BLOCK_M": 64,
    "BLOCK_N": 64,
    "num_warps": 4,
    "num_stages": 3,
}
"""FlexAttention's forward kernel where nothing goes backward: named, so that no rule of another
release chooses another one. Of seven that were timed on an H200 it took least, 443 us for 65,536
tokens where the default takes 487. (ROWS_GUARANTEED_SAFE must stay out, though each query sees
itself: a query may see nothing of the first keys that the kernel takes, and is then lost.)"""
MOST_TILE_BYTES = 16 << 10
"""Bytes of the keys that a kernel takes at a time. With three stages it then needs up to 112 KB of
an H100's shared memory, up to 96 of other cards'. An A10, L4 or RTX 4090 has 99 per multiprocessor;
a T4 has 64, and needs 48, because Triton makes no stages there."""


def scoring_kernel(head_dim: int, dtype: torch.dtype) -> FlexKernelOptions:
    """SCORING_KERNEL, with smaller blocks for heads that are wider than 128 in bfloat16, or 64 in
    float32: it follows from both alone, so that all GPUs get the same one."""
    row_bytes = (1 << (head_dim - 1).bit_length()) * dtype.itemsize
    block = SCORING_KERNEL["BLOCK_M"]
    while block * row_bytes > MOST_TILE_BYTES and block > 16:
        block //= 2
    return {**SCORING_KERNEL, "BLOCK_M": block, "BLOCK_N": block}


def attend_flex(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    mask: BlockMask,
    scale: float | None = None,
    kernel: FlexKernelOptions | None = None,
) -> Tensor:
    """The attention of one layer for one pack; meant to run compiled, on a GPU.

    Args:
        scale: what scores are multiplied by; ``1 / sqrt(head_dim)`` by default.
        kernel: FlexAttention's options; it chooses by default.
    """
    q_1HTD, k_1KTD, v_1KTD = (x.transpose(0, 1).unsqueeze(0) for x in (q_THD, k_TKD, v_TKD))
    gqa = q_THD.shape[1] != k_TKD.shape[1]
    out = flex_attention(
        *(q_1HTD, k_1KTD, v_1KTD),
        block_mask=mask,
        scale=scale,
        enable_gqa=gqa,
        kernel_options=kernel,
    )
    return out.squeeze(0).transpose(0, 1)


def fused_attention(position_T: Tensor, window: int) -> Attend:
    """FlexAttention for one pack, compiled; arguments as for :func:`window_block_mask`."""
    return functools.partial(_compiled_flex(), mask=window_block_mask(position_T, window))


def shapes_only(position_T: Tensor, window: int) -> Attend:
    """The attention on the meta device: what a fused kernel returns and keeps for backward.

    FlexAttention itself would write all pairs of tokens there, because it cannot be compiled.
    """

    def attend(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        group = q_THD.shape[1] // k_TKD.shape[1]
        k_THD, v_THD = (x.repeat_interleave(group, 1) if group > 1 else x for x in (k_TKD, v_TKD))
        q_1HTD, k_1HTD, v_1HTD = (x.transpose(0, 1).unsqueeze(0) for x in (q_THD, k_THD, v_THD))
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        out_1HTD: Tensor = kernel(q_1HTD, k_1HTD, v_1HTD, is_causal=True)[0]
        return out_1HTD.squeeze(0).transpose(0, 1)

    return attend


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    # Without compilation FlexAttention would write all pairs of tokens to memory. The first kernel
    # serves one shape; where batches differ, the second serves any.
    return torch.compile(attend_flex)
