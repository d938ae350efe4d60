"""Elementwise work of a step that one kernel can do, where plain PyTorch takes several.

While a step is recorded (:mod:`model.generation.graphs`) these functions are compiled: the graph is
used many times. Otherwise they run as they are; shapes that seldom come again do not pay. They only
compute, so that a compiler has little to get wrong about memory: :func:`largest_so_far` alone
writes over an argument.
"""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Generic, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from model.entropy_model import entropy_of
from model.layers.attention import apply_rotary, rotary_angles

P = ParamSpec("P")
_fusing = False


@contextlib.contextmanager
def fusing() -> Iterator[None]:
    """Compile what is called meanwhile."""
    global _fusing
    before, _fusing = _fusing, True
    try:
        yield
    finally:
        _fusing = before


class Fused(Generic[P]):
    """A function that is compiled while a step is recorded."""

    def __init__(self, function: Callable[P, Tensor]):
        self._function = function
        self._compiled: Callable[P, Tensor] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        if not _fusing:
            return self._function(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(self._function, dynamic=True)
        try:
            return self._compiled(*args, **kwargs)
        except Exception as error:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise
            warnings.warn(
                f"generation is slower than it could be: {self._function.__name__} cannot be "
                f"compiled here ({error})",
                stacklevel=2,
            )
            self._compiled = self._function
            return self._function(*args, **kwargs)


def fused(function: Callable[P, Tensor]) -> Fused[P]:
    """The function as a :class:`Fused` one."""
    return functools.wraps(function)(Fused(function))  # type: ignore[return-value]


@fused
def angles(position_T: Tensor, bits_F: Tensor) -> Tensor:
    """See :func:`model.layers.attention.rotary_angles`."""
    return rotary_angles(position_T, bits_F)


@fused
def turned(heads_THD: Tensor, rotary_TF2: Tensor, count: int) -> Tensor:
    """The heads, of which the first ``count`` are rotated."""
    return torch.cat([apply_rotary(heads_THD[:, :count], rotary_TF2), heads_THD[:, count:]], 1)


@fused
def gated(gate_up_TF: Tensor) -> Tensor:
    """``silu(gate) * up`` of the two halves."""
    gate_TF, up_TF = gate_up_TF.chunk(2, -1)
    return F.silu(gate_TF) * up_TF


@fused
def unseen(
    position_BM: Tensor, reach_BM: Tensor, window: int, slots: int, used: int, dtype: torch.dtype
) -> Tensor:
    """The mask of a ring's slots: minus infinity where a token does not see what a slot holds, else
    0; ``[batch, columns, used]``.

    A slot holds what is so many positions behind a token as the difference modulo the number of
    slots says. If that is more than the token may look back (``reach_BM``, and less than
    ``window``), it holds a later position or none.
    """
    slot_R = torch.arange(used, device=position_BM.device)
    back_BMR = (position_BM[:, :, None] - slot_R) % slots
    hidden_BMR = back_BMR > reach_BM.clamp(max=window - 1)[:, :, None]
    return torch.zeros(hidden_BMR.shape, dtype=dtype, device=hidden_BMR.device).masked_fill(
        hidden_BMR, -torch.inf
    )


@fused
def ngram_rows(near_TX: Tensor, back_TX: Tensor, powers_GX: Tensor, rows: int) -> Tensor:
    """The row of each hash table for each token, ``[tokens, tables]`` int64; see
    :func:`model.layers.hash_embedding.hash_ngrams`.

    Args:
        near_TX: tokens, the newest first.
        back_TX: their positions, negative before the document.
        powers_GX: what each of them counts in the hash of each table.
        rows: rows of a table.
    """
    near_TX = near_TX.masked_fill(back_TX < 0, 0)
    return (near_TX[:, None] * powers_GX).sum(-1).remainder(rows)


@fused
def embedded(tokens_T: Tensor, row_TG: Tensor, weight: Tensor, tables: list[Tensor]) -> Tensor:
    """The sum of the embeddings of tokens and of their n-grams, ``[tokens, dim]``."""
    of_ngrams_TD = F.embedding(row_TG[:, 0], tables[0])
    for i, table in enumerate(tables[1:], 1):
        of_ngrams_TD = of_ngrams_TD + F.embedding(row_TG[:, i], table)
    return F.embedding(tokens_T, weight) + of_ngrams_TD


def _patch_of(position_BS: Tensor, bounds_BX: Tensor, window: int) -> Tensor:
    """The patch of each byte, counted from the first that ended in the piece; those before it are
    negative. Arguments as for :func:`own_patches`."""
    return (position_BS[:, :, None] >= bounds_BX[:, None]).sum(-1) - window


@fused
def own_patches(
    position_BS: Tensor, bounds_BX: Tensor, ended_B: Tensor, window: int, patches: int
) -> Tensor:
    """The index among ``batch * patches`` of the patch that a byte belongs to, if it is one that
    ended in the piece; else ``batch * patches``.

    Args:
        position_BS: positions of bytes; there may be some before the first.
        bounds_BX: see :meth:`model.generation.piece.Piece.bounds`.
        ended_B: patches that ended.
        window: how many patches gather from a byte.
        patches: the most that ended in a row.
    """
    patch_BS = _patch_of(position_BS, bounds_BX, window)
    row_B1 = torch.arange(len(ended_B), device=ended_B.device)[:, None]
    ended_BS = (patch_BS >= 0) & (patch_BS < ended_B[:, None])
    return (patch_BS + row_B1 * patches).where(ended_BS, len(ended_B) * patches)


@fused
def ungathered(
    position_BS: Tensor,
    bounds_BX: Tensor,
    ended_B: Tensor,
    window: int,
    patches: int,
    vectors: int,
    dtype: torch.dtype,
) -> Tensor:
    """The mask of bytes for patches: minus infinity where a patch does not gather from a byte, else
    0; ``[batch, patches * vectors, bytes]``. A patch that does not exist sees all, because a
    softmax over nothing would be no number.

    Args:
        vectors: vectors of a patch; the others as for :func:`own_patches`.
    """
    patch_B1S = _patch_of(position_BS, bounds_BX, window)[:, None]
    index_X1 = torch.arange(patches * vectors, device=ended_B.device)[:, None] // vectors
    sees_BXS = (patch_B1S <= index_X1) & (index_X1 < patch_B1S + window)
    hidden_BXS = ~sees_BXS & (index_X1 < ended_B[:, None, None])
    return torch.zeros(hidden_BXS.shape, dtype=dtype, device=hidden_BXS.device).masked_fill(
        hidden_BXS, -torch.inf
    )


@fused
def pooled(states_BSD: Tensor, own_BS: Tensor, patches: int) -> Tensor:
    """The largest states of the bytes of each patch, ``[batch * patches, dim]``; 0 for a patch
    without bytes.

    Args:
        own_BS: see :func:`own_patches`.
    """
    patch_BQ1 = torch.arange(len(states_BSD) * patches, device=own_BS.device)
    patch_BQ1 = patch_BQ1.view(len(states_BSD), patches, 1)
    has_BQS = own_BS[:, None] == patch_BQ1
    of_patch_BQSD = states_BSD[:, None].where(has_BQS[..., None], -torch.inf)
    largest_BQD = of_patch_BQSD.amax(2).where(has_BQS.any(2, keepdim=True), 0)
    return largest_BQD.flatten(0, 1)


@fused
def largest_so_far(largest_BD: Tensor, state_BD: Tensor, begins_B1: Tensor) -> Tensor:
    """The largest states of an open patch with one byte more, written over ``largest_BD``.

    Args:
        begins_B1: true where the byte is the first of its patch.
    """
    return largest_BD.copy_(torch.where(begins_B1, state_BD, torch.maximum(largest_BD, state_BD)))


@fused
def read_from(q_TE: Tensor, kv_TX2HE: Tensor, mask_TX: Tensor | None) -> Tensor:
    """Attention of each token to a few keys of its own, ``[tokens, heads * features]``.

    Args:
        mask_TX: minus infinity where a key is not there, else 0.
    """
    k_TXHE, v_TXHE = kv_TX2HE.float().unbind(2)
    score_TXH = (q_TE.view_as(k_TXHE[:, 0]).float()[:, None] * k_TXHE).sum(-1)
    score_TXH = score_TXH / math.sqrt(k_TXHE.shape[-1])
    if mask_TX is not None:
        score_TXH = score_TXH + mask_TX[:, :, None]
    # Where no key is there nothing is read. (The numbers stand here, because one of the module
    # would be an argument of what is compiled, and its value would have to be fetched.)
    p_TXH = (score_TXH - score_TXH.amax(1, keepdim=True).clamp(min=-1e30)).exp()
    out_THE: Tensor = (p_TXH[..., None] * v_TXHE).sum(1) / p_TXH.sum(1).clamp(min=1e-30)[..., None]
    return out_THE.flatten(1).type_as(q_TE)


@fused
def entropy(logits_TV: Tensor) -> Tensor:
    """See :func:`model.entropy_model.entropy_of`."""
    return entropy_of(logits_TV)
