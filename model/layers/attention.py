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

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Tokens per block of queries. Packs must be padded to a multiple."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The attention of one layer, ``(q_THD, k_TKD, v_TKD) -> out_THD``."""


class RotaryAngles(nn.Module):
    """Cosines and sines of rotary angles: at position p, pair ``i`` of a head's features turns by
    ``p * theta ** (-2 i / head_dim)``."""

    bits_F: Tensor

    def __init__(self, head_dim: int, theta: float):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        # Kept as integers, because .to(bfloat16) must not round them. They stand where weights made
        # now would, except on the meta device, which would lose them.
        device = torch.get_default_device()
        bits_F = self._frequency_bits().to("cpu" if device.type == "meta" else device)
        self.register_buffer("bits_F", bits_F, persistent=False)

    def _frequency_bits(self) -> Tensor:
        pair_F = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device="cpu")
        # The form, and the CPU, decide the rounding: an error in the last bit changes sharp logits
        # by 1e-3.
        return (1.0 / self.theta ** (pair_F / self.head_dim)).view(torch.int32)

    def reset_parameters(self) -> None:
        """Compute the frequencies again: after ``to_empty`` they are lost."""
        self.bits_F.copy_(self._frequency_bits())

    def forward(self, position_T: Tensor) -> Tensor:
        """Cosine and sine of each token's angles, float32, ``[tokens, head_dim / 2, 2]``."""
        angle_TF = position_T.float()[:, None] * self.bits_F.view(torch.float32)
        return torch.stack([angle_TF.cos(), angle_TF.sin()], dim=-1)


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
    numbers."""
    (a, b), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)


def turn_complex(pairs: Tensor, rotary: Tensor) -> Tensor:
    """The same products, 8 times faster on a CPU."""
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))


def token_positions(lengths_S: Tensor, tokens: int) -> Tensor:
    """The position of each token in its segment, int64.

    Args:
        tokens: the sum of the lengths, which a GPU would have to be waited for to learn.
    """
    start_S = lengths_S.cumsum(0) - lengths_S
    start_T = torch.repeat_interleave(start_S, lengths_S, output_size=tokens)
    return torch.arange(tokens, device=lengths_S.device) - start_T


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


def window_block_mask(position_T: Tensor, window: int) -> BlockMask:
    """FlexAttention's mask for one pack, made without visiting all pairs of blocks.

    FlexAttention wants a list of key blocks for each block of queries. Here it is a run of blocks,
    from that of the earliest key that the first query sees (see the module's text) to the queries'
    own. Inside these blocks ``mask_mod`` decides about each pair.

    Args:
        position_T: position of each token in its segment; a multiple of BLOCK tokens.
        window: keys that a query sees, itself included.
    """
    tokens, device = len(position_T), position_T.device
    first_query_N = torch.arange(0, tokens, BLOCK, device=device)
    reach_N = position_T[first_query_N].clamp(max=window - 1)
    first_block_N = (first_query_N - reach_N) // BLOCK
    blocks = len(first_query_N)
    count_N = torch.arange(blocks, device=device) - first_block_N + 1
    offset_K = torch.arange(blocks, device=device)
    index_NK = (first_block_N[:, None] + offset_K).clamp(max=blocks - 1)

    def inside(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q - k < window) & (q - k <= position_T[q])

    return BlockMask.from_kv_blocks(
        count_N.int()[None, None],
        index_NK.int()[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=inside,
        seq_lengths=(tokens, tokens),
    )


def attend_flex(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, mask: BlockMask) -> Tensor:
    """The attention of one layer for one pack; meant to run compiled, on a GPU."""
    q_1HTD, k_1KTD, v_1KTD = (x.transpose(0, 1).unsqueeze(0) for x in (q_THD, k_TKD, v_TKD))
    gqa = q_THD.shape[1] != k_TKD.shape[1]
    out = flex_attention(q_1HTD, k_1KTD, v_1KTD, block_mask=mask, enable_gqa=gqa)
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
