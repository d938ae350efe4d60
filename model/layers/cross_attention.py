"""Cross attention between bytes and patches, both ways (arXiv 2412.09871, section 3.2.2 and 3.3.1).

A patch is k vectors. In the encoder these gather from the bytes of their patch; in the decoder each
byte reads the vectors of the latest patch that is complete before the next byte. A byte meets a
handful of vectors, so neither way builds a mask of bytes by patches: vectors are looked up by
index, and the cost is O(bytes * k). For the same reason scores are no matrix products (half a
million of 1 x 64 by 64 x 2): they are sums of products, which a compiler fuses with the lookup
before them and the softmax after them into one pass over the bytes.

Which patches a byte meets is given as indices, a column for each patch of a window. ``~i`` instead
of ``i`` says that there is none; ``i`` then keeps the column from falling, as
:mod:`model.layers.runs` needs it.
"""

import functools

import torch
from torch import Tensor, nn

from model.layers.runs import max_of_runs, sum_runs, take_rows


def split_index(patch_T: Tensor) -> tuple[Tensor, Tensor]:
    """From the index of a patch for each byte, or ``~i`` for none: ``i``, and a mask that is true
    where there is none."""
    none_T = patch_T < 0
    return torch.where(none_T, ~patch_T, patch_T), none_T


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

    A softmax over the bytes of each patch, whose number varies, is made of sums over runs of bytes:
    with scores s and values v, a patch gets ``sum exp(s - m) v / sum exp(s - m)``, where m is its
    highest score. A patch of two bytes a, b with the scores 1 and 3, for example, gets
    ``(exp(-2) v_a + v_b) / (exp(-2) + 1)``. Each column of a window has runs of its own, and their
    sums are added.
    """

    def forward(self, x_NKD: Tensor, bytes_TD: Tensor, patch_TW: Tensor) -> Tensor:
        """The k vectors of each patch, ``[patches, k, dim]``; a patch without bytes gathers none.

        Args:
            x_NKD: the k vectors of each patch.
            bytes_TD: byte states.
            patch_TW: indices of the patches that see each byte; ``~i`` for none.
        """
        patches = len(x_NKD)
        k_THE, v_THE = self.keys_values(bytes_TD)
        q_NKHE = self.queries(x_NKD)
        columns = [split_index(patch_T) for patch_T in patch_TW.unbind(1)]
        scores = []
        for index_T, none_T in columns:
            score_TKH = (take_rows(q_NKHE, index_T) * k_THE[:, None]).sum(-1, dtype=torch.float32)
            scores.append(score_TKH.masked_fill(none_T[:, None, None], -torch.inf))
        with torch.no_grad():
            highest_NKH = max_of_runs(scores[0], columns[0][0], patches)
            for score_TKH, (index_T, _) in zip(scores[1:], columns[1:], strict=True):
                more_NKH = max_of_runs(score_TKH, index_T, patches)
                highest_NKH = torch.maximum(highest_NKH, more_NKH)
            # A patch without bytes has none; any number serves.
            highest_NKH = highest_NKH.clamp(min=torch.finfo(torch.float32).min)
        # In float32: a sum over the bytes of a long patch loses too much in bfloat16.
        v_T1HE = v_THE.float()[:, None]
        totals, sums = [], []
        for score_TKH, (index_T, _) in zip(scores, columns, strict=True):
            weight_TKH = (score_TKH - highest_NKH[index_T]).exp()
            totals.append(sum_runs(weight_TKH, index_T, patches))
            sums.append(sum_runs(weight_TKH[..., None] * v_T1HE, index_T, patches))
        # A patch with bytes has a total of at least 1.
        total_NKH = functools.reduce(torch.add, totals).clamp(min=1)
        out_NKHE = functools.reduce(torch.add, sums) / total_NKH[..., None]
        gathered_NKD: Tensor = self.wo(out_NKHE.flatten(-2).type_as(x_NKD))
        return 2 * x_NKD + gathered_NKD


Vectors = Tensor | tuple[Tensor, Tensor]
"""What bytes read of patches: the k vectors of each, ``[patches, k, dim]``, or the keys and values
made of them beforehand, each ``[patches, k, heads, head_dim]``."""


class ReadFromPatches(CrossAttention):
    """The decoder's way: bytes read from patches."""

    def forward(self, x_TD: Tensor, patches: Vectors, patch_TW: Tensor) -> Tensor:
        """Byte states, ``[bytes, dim]``.

        Args:
            x_TD: byte states.
            patches: their vectors, or keys and values.
            patch_TW: indices of the patches that each byte sees; ``~i`` for none, which the first
                column never has.
        """
        k_NKHE, v_NKHE = self.keys_values(patches) if isinstance(patches, Tensor) else patches
        q_T1HE = self.queries(x_TD)[:, None]
        columns = [split_index(patch_T) for patch_T in patch_TW.unbind(1)]
        scores = []
        for column, (index_T, none_T) in enumerate(columns):
            score_TKH = (q_T1HE * take_rows(k_NKHE, index_T)).sum(-1, dtype=torch.float32)
            if column:
                score_TKH = score_TKH.masked_fill(none_T[:, None, None], -torch.inf)
            scores.append(score_TKH)
        weight_TXH = torch.cat(scores, 1).softmax(1).type_as(x_TD)
        weights = weight_TXH.split(k_NKHE.shape[1], 1)
        read = [
            (weight_TKH[..., None] * take_rows(v_NKHE, index_T)).sum(1)
            for weight_TKH, (index_T, _) in zip(weights, columns, strict=True)
        ]
        read_TD: Tensor = self.wo(functools.reduce(torch.add, read).flatten(-2))
        return 2 * x_TD + read_TD
