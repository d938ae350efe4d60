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

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc

from model.kernels.launch import launched_early

ROWS = 4
"""Rows of the matrix that a program takes."""
COLUMNS, WARPS, STAGES = 1024, 4, 3
"""Columns that it takes at a time, with so many warps, and how many such pieces are on their way at
a time. Of those that were timed for the shapes of the published models these are among the best."""


@triton.jit
def _normed_product(
    x, norm, weight, out, tokens, rows, columns, eps,
    T: tl.constexpr, GATED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_C, token_T = tl.arange(0, COLUMNS), tl.arange(0, T)
    w_RC = _piece(weight, row_R, rows, column_C, columns)
    norm_C = tl.load(norm + column_C, column_C < columns, 0)
    up = weight + tl.cast(rows, tl.int64) * columns
    if GATED:
        up_RC = _piece(up, row_R, rows, column_C, columns)
    if EARLY:
        gdc.gdc_launch_dependents()
        gdc.gdc_wait()
    x_TC = _piece(x, token_T, tokens, column_C, columns).to(tl.float32)
    square_TC = x_TC * x_TC
    x_T1C = (x_TC * norm_C.to(tl.float32)[None, :])[:, None, :]
    sum_TRC = w_RC.to(tl.float32)[None, :, :] * x_T1C
    if GATED:
        up_TRC = up_RC.to(tl.float32)[None, :, :] * x_T1C
    for _ in tl.range(COLUMNS, columns, COLUMNS, num_stages=STAGES):
        column_C += COLUMNS
        x_TC = _piece(x, token_T, tokens, column_C, columns).to(tl.float32)
        square_TC += x_TC * x_TC
        norm_C = tl.load(norm + column_C, column_C < columns, 0)
        x_T1C = (x_TC * norm_C.to(tl.float32)[None, :])[:, None, :]
        w_RC = _piece(weight, row_R, rows, column_C, columns)
        sum_TRC += w_RC.to(tl.float32)[None, :, :] * x_T1C
        if GATED:
            up_RC = _piece(up, row_R, rows, column_C, columns)
            up_TRC += up_RC.to(tl.float32)[None, :, :] * x_T1C
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
    EARLY: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_C, token_T = tl.arange(0, COLUMNS), tl.arange(0, T)
    w_RC = _piece(weight, row_R, rows, column_C, columns)
    if EARLY:
        gdc.gdc_launch_dependents()
        gdc.gdc_wait()
    y_TC = _piece(y, token_T, tokens, column_C, columns).to(tl.float32)
    sum_TRC = w_RC.to(tl.float32)[None, :, :] * y_TC[:, None, :]
    for _ in tl.range(COLUMNS, columns, COLUMNS, num_stages=STAGES):
        column_C += COLUMNS
        y_TC = _piece(y, token_T, tokens, column_C, columns).to(tl.float32)
        w_RC = _piece(weight, row_R, rows, column_C, columns)
        sum_TRC += w_RC.to(tl.float32)[None, :, :] * y_TC[:, None, :]
    inside_TR = (token_T < tokens)[:, None] & (row_R < rows)[None, :]
    at_TR = x + token_T[:, None] * rows + row_R[None, :]
    x_TR = tl.load(at_TR, inside_TR, 0).to(tl.float32) * times + tl.sum(sum_TRC, 2)
    tl.store(at_TR, x_TR.to(x.dtype.element_ty), inside_TR)


@triton.jit
def _piece(matrix, row_R, rows, column_C, columns):
    """Columns of rows of a matrix; 0 outside it."""
    inside_RC = (row_R < rows)[:, None] & (column_C < columns)[None, :]
    at_RC = matrix + row_R.to(tl.int64)[:, None] * columns + column_C[None, :]
    return tl.load(at_RC, inside_RC, 0)


def columns_of(tokens: int) -> int:
    """Columns at a time for so many tokens: the sums of more than two do not fit into registers
    otherwise."""
    return COLUMNS if tokens <= 2 else COLUMNS // 4


def _fixed(x_TD: Tensor) -> dict[str, int | bool]:
    """The parameters that are fixed when a kernel is compiled, and how it is launched."""
    padded = 1 << (len(x_TD) - 1).bit_length()
    fixed = {"T": padded, "ROWS": ROWS, "COLUMNS": columns_of(padded), "STAGES": STAGES}
    return {**fixed, "num_warps": WARPS, **launched_early(x_TD.device)}


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
    with torch.cuda.device_of(x_TD):
        _normed_product[(triton.cdiv(rows, ROWS),)](
            *(x_TD.contiguous(), norm_D, weight_ED, out_TE, tokens, rows, x_TD.shape[1], eps),
            GATED=gated,
            **_fixed(x_TD),
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
    with torch.cuda.device_of(x_TD):
        _added_product[(triton.cdiv(rows, ROWS),)](
            *(x_TD, y_TE.contiguous(), weight_DE, times, tokens, rows, columns),
            **_fixed(x_TD),
        )


@added_product.register_fake
def _(x_TD: Tensor, y_TE: Tensor, weight_DE: Tensor, times: float) -> None:
    return None
