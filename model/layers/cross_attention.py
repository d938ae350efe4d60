"""Cross attention between bytes and patches, both ways (arXiv 2412.09871, section 3.2.2 and 3.3.1).

A patch is k vectors. In the encoder these gather from the bytes of their patch; in the decoder each
byte reads the vectors of the latest patch that is complete before the next byte. Each query sees a
handful of keys, so neither way builds a mask of bytes by patches: keys are looked up by index, and
the cost is O(bytes * k).
"""

import torch
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """The projections and norms that both ways share; there are no rotary positions.

    The published weights were trained with the residual added twice: the result is
    ``2 * x + wo(attention)``.
    """

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, norm_eps: float):
        super().__init__()
        self.head_dim = dim // n_heads  # as published: a remainder of the width is unused
        self.cross_attn_norm_q = nn.RMSNorm(dim, eps=norm_eps)
        self.cross_attn_norm_kv = nn.RMSNorm(dim, eps=norm_eps)
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)
        self.groups = n_heads // n_kv_heads

    def queries(self, x: Tensor) -> Tensor:
        """``[..., dim] -> [..., heads, head_dim]``, scaled."""
        q: Tensor = self.wq(self.cross_attn_norm_q(x)).unflatten(-1, (-1, self.head_dim))
        return q * float(self.head_dim**-0.5)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[..., dim] ->`` keys and values, each ``[..., heads, head_dim]``."""
        normed = self.cross_attn_norm_kv(x)
        k, v = (w(normed).unflatten(-1, (-1, self.head_dim)) for w in (self.wk, self.wv))
        return k.repeat_interleave(self.groups, -2), v.repeat_interleave(self.groups, -2)


class GatherFromBytes(CrossAttention):
    """The encoder's way: patches gather from bytes.

    A softmax over the bytes of each patch, whose number varies, is a sum over pairs of byte and
    patch that is scattered to the patches: with scores s and values v, a patch gets
    ``sum exp(s - m) v / sum exp(s - m)``, where m is its highest score. A patch of two bytes a, b
    with the scores 1 and 3, for example, gets ``(exp(-2) v_a + v_b) / (exp(-2) + 1)``.
    """

    def forward(self, x_NKD: Tensor, bytes_TD: Tensor, patch_TW: Tensor) -> Tensor:
        """The k vectors of each patch, ``[patches, k, dim]``; a patch without bytes gathers none.

        Args:
            x_NKD: the k vectors of each patch.
            bytes_TD: byte states.
            patch_TW: indices of the patches that see each byte.
        """
        k_THE, v_THE = self.keys_values(bytes_TD)
        q_TWKHE = self.queries(x_NKD)[patch_TW]
        score_TWKH = torch.einsum("twkhe,the->twkh", q_TWKHE, k_THE).float()
        # X pairs of a byte and a patch that sees it.
        pair_patch = patch_TW.flatten()
        score_XKH = score_TWKH.flatten(0, 1)
        empty_NKH = score_XKH.new_full((len(x_NKD), *score_XKH.shape[1:]), -torch.inf)
        index_XKH = pair_patch[:, None, None].expand_as(score_XKH)
        highest_NKH = empty_NKH.scatter_reduce(0, index_XKH, score_XKH.detach(), "amax")
        weight_XKH = (score_XKH - highest_NKH[pair_patch]).exp()
        total_NKH = torch.zeros_like(empty_NKH).index_add(0, pair_patch, weight_XKH)
        # In float32: a sum over the bytes of a long patch loses too much in bfloat16.
        weighted = weight_XKH.view_as(score_TWKH)[..., None] * v_THE.float()[:, None, None]
        sum_NKHE = weighted.new_zeros(len(x_NKD), *weighted.shape[2:])
        sum_NKHE = sum_NKHE.index_add(0, pair_patch, weighted.flatten(0, 1))
        # A patch with bytes has a total of at least 1.
        out_NKHE = sum_NKHE / total_NKH.clamp(min=1)[..., None]
        gathered_NKD: Tensor = self.wo(out_NKHE.flatten(-2).type_as(x_NKD))
        return 2 * x_NKD + gathered_NKD


class ReadFromPatches(CrossAttention):
    """The decoder's way: bytes read from patches, whose keys and values are made beforehand."""

    def forward(self, x_TD: Tensor, k_NKHE: Tensor, v_NKHE: Tensor, patch_TW: Tensor) -> Tensor:
        """Byte states, ``[bytes, dim]``.

        Args:
            x_TD: byte states.
            k_NKHE, v_NKHE: keys and values of the k vectors of each patch.
            patch_TW: indices of the patches that each byte sees; -1 for none.
        """
        q_THE = self.queries(x_TD)
        score_THWK = torch.einsum("the,twkhe->thwk", q_THE, k_NKHE[patch_TW]).float()
        if patch_TW.shape[1] > 1:
            score_THWK = score_THWK.masked_fill((patch_TW < 0)[:, None, :, None], -torch.inf)
        weight_THX = score_THWK.flatten(-2).softmax(-1).type_as(q_THE)
        weight_THWK = weight_THX.view_as(score_THWK)
        out_THE = torch.einsum("thwk,twkhe->the", weight_THWK, v_NKHE[patch_TW])
        read_TD: Tensor = self.wo(out_THE.flatten(-2))
        return 2 * x_TD + read_TD
