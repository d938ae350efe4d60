"""Sums over runs of rows, and their transpose: what bytes and the patches that they form exchange.

A patch is a run of neighbouring bytes. So an index that gives each byte its patch never falls, the
rows that have one index form a run, and a sum by index is a sum over runs. ``index_add`` does not
know this: it adds with atomic operations, in an order that differs each time, and on a GPU in the
rows' own dtype. Here each run is summed by itself, in order and in float32, by the kernel of
``embedding_bag``. With the index 0 0 2 2 2, for example, the runs begin at 0, 2 and 2: row 0 of the
sums is ``x[0] + x[1]``, row 1 is 0, and row 2 is ``x[2] + x[3] + x[4]``.

The two functions are each other's backward pass. Both are made of plain operations, so that a
compiler fuses a lookup with what is computed of its rows.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def take_rows(x_N: Tensor, index_T: Tensor) -> Tensor:
    """``x_N[index_T]``, whose gradient is summed over runs.

    Args:
        x_N: rows of any shape.
        index_T: int64; must never fall if there is a backward pass.
    """
    rows_T: Tensor = _TakeRows.apply(x_N, index_T)  # type: ignore[no-untyped-call]
    return rows_T


def sum_runs(x_T: Tensor, index_T: Tensor, rows: int) -> Tensor:
    """``rows`` sums, each over the rows of ``x_T`` with its index, in their dtype.

    Args:
        x_T: rows of any shape.
        index_T: int64, from 0 to ``rows - 1``; must never fall.
    """
    sums_N: Tensor = _SumRuns.apply(x_T, index_T, rows)  # type: ignore[no-untyped-call]
    return sums_N


def max_of_runs(x_T: Tensor, index_T: Tensor, rows: int) -> Tensor:
    """The greatest value of each run and feature; minus infinity for an empty one.

    The gradient goes to it, in equal parts if it occurs several times. Arguments are those of
    :func:`sum_runs`.
    """
    bounds = torch.arange(rows + 1, device=index_T.device)
    # "unsafe" leaves out a check of the bounds for which a GPU would be waited for.
    return torch.segment_reduce(
        x_T, "max", offsets=torch.searchsorted(index_T, bounds), axis=0, unsafe=True
    )


def _sums(x_T: Tensor, index_T: Tensor, rows: int) -> Tensor:
    starts_N = torch.searchsorted(index_T, torch.arange(rows, device=index_T.device))
    all_T = torch.arange(len(x_T), device=index_T.device)
    sums_NF: Tensor = F.embedding_bag(all_T, x_T.flatten(1), starts_N, mode="sum")
    return sums_NF.view(rows, *x_T.shape[1:])


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_N: Tensor, index_T: Tensor) -> Tensor:
        ctx.save_for_backward(index_T)
        ctx.rows = len(x_N)
        return x_N[index_T]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index_T,) = ctx.saved_tensors
        return _sums(grads[0], index_T, ctx.rows), None


class _SumRuns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_T: Tensor, index_T: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(index_T)
        return _sums(x_T, index_T, rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index_T,) = ctx.saved_tensors
        return grads[0][index_T], None, None
