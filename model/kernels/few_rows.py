"""Products of few tokens with a matrix, with what stands before and after them in a block.

Such a product reads each weight once and computes next to nothing: it takes the time in which the
matrix comes from memory, if enough of it is on its way at once. The kernels of libraries are made
for many tokens. For one they take about 5 us where a matrix of 768 x 2304 needs 1, and the norm
before, the gate after and the sum are kernels of their own. Here each program takes a few rows of
the matrix and all of the input. Its threads add up products of their own columns, and join them
once, at the end. What stands around the product costs it little:

- RMSNorm before: ``norm(x) @ w.T`` is ``(x * g) @ w.T`` divided by the root mean square of x. Each
  program sees all of x anyway, and adds up its squares.
- a gate after: one program computes the same rows of both halves of the matrix.
- a sum: the program that has a result adds it to the state, and nobody else reads that place.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4
"""Rows of the matrix that a program takes."""


class Taken(NamedTuple):
    """How a program takes its rows; of those that were timed for the shapes of the published
    models, these took least."""

    columns: int
    """Columns at a time."""
    warps: int
    stages: int
    """Pieces that are on their way at a time."""


NORMED, ADDED = Taken(256, 2, 4), Taken(1024, 4, 3)


@triton.jit
def _normed_product(
    x, norm, weight, out, tokens, rows, columns, eps,
    T: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token_T = tl.arange(0, T)
    sum_TRC = tl.zeros((T, ROWS, COLUMNS), tl.float32)
    up_TRC = tl.zeros((T, ROWS, COLUMNS), tl.float32)
    square_TC = tl.zeros((T, COLUMNS), tl.float32)
    at_RC = weight + row_R.to(tl.int64)[:, None] * columns
    up_at_RC = at_RC + tl.cast(rows, tl.int64) * columns
    for first in tl.range(0, columns, COLUMNS, num_stages=STAGES):
        column_C = first + tl.arange(0, COLUMNS)
        inside_C = column_C < columns
        inside_TC = (token_T < tokens)[:, None] & inside_C[None, :]
        inside_RC = (row_R < rows)[:, None] & inside_C[None, :]
        x_TC = tl.load(x + token_T[:, None] * columns + column_C[None, :], inside_TC, 0)
        x_TC = x_TC.to(tl.float32)
        square_TC += x_TC * x_TC
        x_TC *= tl.load(norm + column_C, inside_C, 0).to(tl.float32)[None, :]
        w_RC = tl.load(at_RC + column_C[None, :], inside_RC, 0).to(tl.float32)
        sum_TRC += w_RC[None, :, :] * x_TC[:, None, :]
        if GATED:
            w_RC = tl.load(up_at_RC + column_C[None, :], inside_RC, 0).to(tl.float32)
            up_TRC += w_RC[None, :, :] * x_TC[:, None, :]
    scale_T1 = tl.rsqrt(tl.sum(square_TC, 1) / columns + eps)[:, None]
    y_TR = tl.sum(sum_TRC, 2) * scale_T1
    if GATED:
        y_TR *= tl.sigmoid(y_TR) * (tl.sum(up_TRC, 2) * scale_T1)
    inside_TR = (token_T < tokens)[:, None] & (row_R < rows)[None, :]
    at_TR = out + token_T[:, None] * rows + row_R[None, :]
    tl.store(at_TR, y_TR.to(out.dtype.element_ty), inside_TR)


@triton.jit
def _added_product(
    x, y, weight, times, tokens, rows, columns,
    T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token_T = tl.arange(0, T)
    sum_TRC = tl.zeros((T, ROWS, COLUMNS), tl.float32)
    at_RC = weight + row_R.to(tl.int64)[:, None] * columns
    for first in tl.range(0, columns, COLUMNS, num_stages=STAGES):
        column_C = first + tl.arange(0, COLUMNS)
        inside_C = column_C < columns
        inside_TC = (token_T < tokens)[:, None] & inside_C[None, :]
        inside_RC = (row_R < rows)[:, None] & inside_C[None, :]
        y_TC = tl.load(y + token_T[:, None] * columns + column_C[None, :], inside_TC, 0)
        w_RC = tl.load(at_RC + column_C[None, :], inside_RC, 0).to(tl.float32)
        sum_TRC += w_RC[None, :, :] * y_TC.to(tl.float32)[:, None, :]
    inside_TR = (token_T < tokens)[:, None] & (row_R < rows)[None, :]
    at_TR = x + token_T[:, None] * rows + row_R[None, :]
    x_TR = tl.load(at_TR, inside_TR, 0).to(tl.float32) * times + tl.sum(sum_TRC, 2)
    tl.store(at_TR, x_TR.to(x.dtype.element_ty), inside_TR)


def _fixed(tokens: int, taken: Taken) -> dict[str, int]:
    """What is fixed when a kernel is compiled."""
    return {
        "T": 1 << (tokens - 1).bit_length(),
        "ROWS": ROWS,
        "COLUMNS": taken.columns,
        "STAGES": taken.stages,
        "num_warps": taken.warps,
    }


@torch.library.custom_op("blt_titan::normed_product", mutates_args=())
def normed_product(
    x_TD: Tensor, norm_D: Tensor, eps: float, weight_ED: Tensor, gated: bool
) -> Tensor:
    """``rms_norm(x) @ weight.T``, or ``silu(a) * b`` of the two halves of that.

    Args:
        x_TD: at most FEW_TOKENS.
        norm_D: weight of the norm.
    """
    tokens, rows = len(x_TD), len(weight_ED) // (2 if gated else 1)
    out_TE = x_TD.new_empty(tokens, rows)
    _normed_product[(triton.cdiv(rows, ROWS),)](
        *(x_TD.contiguous(), norm_D, weight_ED, out_TE, tokens, rows, x_TD.shape[1], eps),
        GATED=gated,
        **_fixed(tokens, NORMED),
    )
    return out_TE


@normed_product.register_fake
def _(x_TD: Tensor, norm_D: Tensor, eps: float, weight_ED: Tensor, gated: bool) -> Tensor:
    return x_TD.new_empty(len(x_TD), len(weight_ED) // (2 if gated else 1))


@torch.library.custom_op("blt_titan::added_product", mutates_args=("x_TD",))
def added_product(x_TD: Tensor, y_TE: Tensor, weight_DE: Tensor, times: float) -> None:
    """Write ``times * x + y @ weight.T`` over ``x``, which is contiguous.

    Args:
        y_TE: at most FEW_TOKENS.
    """
    assert x_TD.is_contiguous()
    tokens, (rows, columns) = len(x_TD), weight_DE.shape
    _added_product[(triton.cdiv(rows, ROWS),)](
        *(x_TD, y_TE.contiguous(), weight_DE, times, tokens, rows, columns),
        **_fixed(tokens, ADDED),
    )


@added_product.register_fake
def _(x_TD: Tensor, y_TE: Tensor, weight_DE: Tensor, times: float) -> None:
    return None
