"""Operators of which one kernel does what PyTorch needs several for, where a GPU scores.

Each is an operator of PyTorch's own kind, so that the compiler takes it as it is: on a GPU it is
the Triton kernel of :mod:`model.kernels.twin_products`, anywhere else the plain PyTorch below, with
the same values up to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.device import has_scoring_kernels

TOKENS = 128
"""Packs hold a multiple of so many tokens."""
HEAD_DIMS = (32, 64, 128)
"""Widths of heads for which the kernel was compiled for Hopper cards without spilling registers."""
ALIGNED_BYTES = 16
"""Rows of tensors begin at multiples of it, so that Hopper's copying unit can load and store
them."""


def fits(
    device: torch.device, dtype: torch.dtype, tokens: int, head_dim: int, widths: tuple[int, ...]
) -> bool:
    """True if a pack is scored with the operators here. It follows from the kind of card, the dtype
    and the shape alone, so that all processes on one kind of card compute the same bits.

    Args:
        widths: features of states, and of what lies between them.
    """
    aligned = all(width * dtype.itemsize % ALIGNED_BYTES == 0 for width in widths)
    shape_fits = aligned and tokens % TOKENS == 0 and head_dim in HEAD_DIMS
    return shape_fits and has_scoring_kernels(device, dtype)


@torch.library.custom_op("blt_titan::gate", mutates_args=())
def gate(x_TD: Tensor, w1_FD: Tensor, w3_FD: Tensor) -> Tensor:
    """``silu(x @ w1.T) * (x @ w3.T)``, rounded once.

    The two products of one token and one feature are needed together, so one kernel computes both,
    tile by tile, and writes what comes of them. With 2 features, ``x @ w1.T = (1, -1)`` and ``x @
    w3.T = (3, 2)`` never leave the registers, and ``(2.19, -0.54)`` is written; apart, both would
    be written and read again.
    """
    a_TF, b_TF = (F.linear(x_TD.float(), weight_FD.float()) for weight_FD in (w1_FD, w3_FD))
    return (F.silu(a_TF) * b_TF).type_as(x_TD)


@gate.register_fake
def _(x_TD: Tensor, w1_FD: Tensor, w3_FD: Tensor) -> Tensor:
    return x_TD.new_empty(len(x_TD), len(w1_FD))


@gate.register_kernel("cuda")
def _(x_TD: Tensor, w1_FD: Tensor, w3_FD: Tensor) -> Tensor:
    from model.kernels import twin_products  # Triton is not installed everywhere

    return twin_products.gate(x_TD, w1_FD, w3_FD)


@torch.library.custom_op("blt_titan::heads", mutates_args=())
def heads(
    x_TD: Tensor, joined_2PD: Tensor, rotary_T2H: Tensor, turned: int, scaled: int, scale: float
) -> Tensor:
    """Heads of features, the first ``turned`` of them rotated and, of these, the first ``scaled``
    multiplied by ``scale``; ``[tokens, heads, head_dim]``, rounded once.

    Args:
        joined_2PD: for each of a head's ``head_dim / 2`` pairs of features the weight of the first
            member, and that of the second: see :func:`project_heads`.
        rotary_T2H: cosines and sines of each token's angles, float32.
    """
    half = rotary_T2H.shape[2]
    one_THP, other_THP = (
        F.linear(x_TD.float(), weight_PD.float()).unflatten(1, (-1, half))
        for weight_PD in joined_2PD
    )
    head_H1 = torch.arange(one_THP.shape[1], device=x_TD.device)[:, None]
    cos, sin = rotary_T2H[:, None].unbind(2)
    cos = torch.where(head_H1 < turned, cos, 1.0)
    sin = torch.where(head_H1 < turned, sin, 0.0)
    factor = torch.where(head_H1 < scaled, scale, 1.0)
    first = (one_THP * cos - other_THP * sin) * factor
    second = (other_THP * cos + one_THP * sin) * factor
    return torch.cat([first, second], -1).type_as(x_TD)


@heads.register_fake
def _(
    x_TD: Tensor, joined_2PD: Tensor, rotary_T2H: Tensor, turned: int, scaled: int, scale: float
) -> Tensor:
    half = rotary_T2H.shape[2]
    return x_TD.new_empty(len(x_TD), joined_2PD.shape[1] // half, 2 * half)


@heads.register_kernel("cuda")
def _(
    x_TD: Tensor, joined_2PD: Tensor, rotary_T2H: Tensor, turned: int, scaled: int, scale: float
) -> Tensor:
    from model.kernels import twin_products

    return twin_products.heads(x_TD, joined_2PD, rotary_T2H, turned, scaled, scale)


def project_heads(
    x_TD: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, rotary_T2H: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer, ``[tokens, heads, head_dim]``; queries and keys are
    rotated, queries multiplied by ``scale``.

    A rotation takes the two features ``2i`` and ``2i + 1`` of a head, which a tile of one product
    holds side by side. Therefore the rows of ``wq`` and ``wk`` are joined in another order: the
    even rows of each head are one weight, the odd rows another, and the members of a pair have the
    same place in two products. Queries and keys come out with even features first, then odd ones:
    of a head of 4, features 0 2 1 3. Both do, and so their scores are what they were. Nothing turns
    the values: of their heads the two halves are the pair, and so they come out in their order.

    The weights are joined anew in each pack, so that no copy of them can be out of date; that takes
    as long as the products of a few hundred tokens.
    """
    half = rotary_T2H.shape[2]
    joined_2PD = torch.cat(
        [
            *(w.unflatten(0, (-1, half, 2)).movedim(2, 0).flatten(1, 2) for w in (wq, wk)),
            wv.unflatten(0, (-1, 2, half)).movedim(1, 0).flatten(1, 2),
        ],
        dim=1,
    )
    queries, keys = (len(w) // (2 * half) for w in (wq, wk))
    out_THD = heads(x_TD, joined_2PD, rotary_T2H, queries + keys, queries, scale)
    q_THD, k_TKD, v_TKD = out_THD.split([queries, keys, keys], 1)
    return q_THD, k_TKD, v_TKD
