"""Triton kernels that multiply one input by two weights at once, and finish with both results.

A program computes the same tile of both products, in two accumulators, so that what needs a value
of each, at the same place, finds them in registers. A tile of the input is loaded once for both.
Written to memory is the finished tile alone.

Tiles are loaded and stored by the card's copying unit, which reads zeros beyond the edge of a
tensor and writes nothing there: widths need not be multiples of a tile. Its rows must begin at
multiples of 16 bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

ROWS = 128
"""Tokens per tile."""
DEPTH = 64
"""Features of the input that are multiplied at a time."""
GROUP = 8
"""Tiles of rows that share their weights: see :func:`tile_of`."""
PROGRAMS = 2
"""Programs of ``heads_kernel`` that fit on one of a Hopper card's multiprocessors."""


@triton.jit
def tile_of(
    program, tokens, features, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr
):
    """The first row and column of a tile. Programs that run at the same time should read the same
    input and weights from the cache, so tiles are numbered down the rows of a group, then across:
    with groups of 2 the first row of tiles is 0 2 4, the second 1 3 5, the third 6 8 10. A last
    group may have fewer rows."""
    across = tl.cdiv(features, COLUMNS)
    first = program // (GROUP * across) * GROUP
    inside = program % (GROUP * across)
    rows = tl.minimum(tl.cdiv(tokens, ROWS) - first, GROUP)
    return (first + inside % rows) * ROWS, inside // rows * COLUMNS


@triton.jit
def two_products(
    x, one, other, row, column, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A tile of ``x @ one.T`` and of ``x @ other.T``, float32."""
    a = tl.zeros((ROWS, COLUMNS), tl.float32)
    b = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, depth, DEPTH):
        tile = x.load([row, k])
        a = tl.dot(tile, one.load([column, k]).T, a)
        b = tl.dot(tile, other.load([column, k]).T, b)
    return a, b


@triton.jit
def gate_kernel(
    x, w1, w3, out, tokens, features, depth,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Tiles of ``silu(x @ w1.T) * (x @ w3.T)``. There is a program per tile; it is a loop all the
    same, because without one the assembler lets each product wait for the one before it, which
    took a fourth more time."""
    tiles = tl.cdiv(tokens, ROWS) * tl.cdiv(features, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, column = tile_of(tile, tokens, features, ROWS, COLUMNS, GROUP)
        a, b = two_products(x, w1, w3, row, column, depth, ROWS, COLUMNS, DEPTH)
        out.store([row, column], (a * tl.sigmoid(a) * b).to(out.dtype))


@triton.jit
def heads_kernel(
    x, even, odd, out, rotary, tokens, features, depth, turned, scaled, scale,
    HALF: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """Tiles of heads, each of whose features is one of a pair ``(x @ even.T, x @ odd.T)``.

    Pairs before ``turned`` are rotated, those before ``scaled`` also multiplied by ``scale``. The
    first members of a head's pairs are the first half of its features, the second members the
    other half. A program takes every tile that it comes to in steps of as many as programs run.
    """
    tiles = tl.cdiv(tokens, ROWS) * tl.cdiv(features, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, column = tile_of(tile, tokens, features, ROWS, COLUMNS, GROUP)
        a, b = two_products(x, even, odd, row, column, depth, ROWS, COLUMNS, DEPTH)
        # The angles of a token are the same for all heads of the tile.
        token = row + tl.arange(0, ROWS)
        angle = rotary + token[:, None] * (2 * HALF) + tl.arange(0, HALF)[None, :]
        heads: tl.constexpr = (ROWS, COLUMNS // HALF, HALF)
        cos = tl.reshape(tl.broadcast_to(tl.load(angle)[:, None, :], heads), (ROWS, COLUMNS))
        sin = tl.reshape(tl.broadcast_to(tl.load(angle + HALF)[:, None, :], heads), (ROWS, COLUMNS))
        pair = (column + tl.arange(0, COLUMNS))[None, :]
        cos = tl.where(pair < turned, cos, 1.0)
        sin = tl.where(pair < turned, sin, 0.0)
        factor = tl.where(pair < scaled, scale, 1.0)
        first = (a * cos - b * sin) * factor
        second = (b * cos + a * sin) * factor
        head = column // HALF
        out.store([row, head, 0], tl.reshape(first.to(out.dtype), heads))
        out.store([row, head, HALF], tl.reshape(second.to(out.dtype), heads))


def gate(x_TD: Tensor, w1_FD: Tensor, w3_FD: Tensor) -> Tensor:
    """Compute :func:`model.kernels.scoring.gate` on a GPU."""
    columns = 128
    x_TD, w1_FD, w3_FD = (_ready(x) for x in (x_TD, w1_FD, w3_FD))
    (tokens, depth), features = x_TD.shape, len(w1_FD)
    out_TF = x_TD.new_empty(tokens, features)
    tiles = triton.cdiv(tokens, ROWS) * triton.cdiv(features, columns)
    with torch.cuda.device_of(x_TD):
        gate_kernel[(tiles,)](
            TensorDescriptor.from_tensor(x_TD, [ROWS, DEPTH]),
            TensorDescriptor.from_tensor(w1_FD, [columns, DEPTH]),
            TensorDescriptor.from_tensor(w3_FD, [columns, DEPTH]),
            TensorDescriptor.from_tensor(out_TF, [ROWS, columns]),
            *(tokens, features, depth),
            **{"ROWS": ROWS, "COLUMNS": columns, "DEPTH": DEPTH, "GROUP": GROUP},
            **{"num_warps": 8, "num_stages": 3},
        )
    return out_TF


def heads(
    x_TD: Tensor, joined_2PD: Tensor, rotary_T2H: Tensor, turned: int, scaled: int, scale: float
) -> Tensor:
    """Compute :func:`model.kernels.scoring.heads` on a GPU."""
    x_TD, joined_2PD, rotary_T2H = (_ready(x) for x in (x_TD, joined_2PD, rotary_T2H))
    (tokens, depth), pairs, half = x_TD.shape, joined_2PD.shape[1], rotary_T2H.shape[2]
    columns = 64
    out_THD = x_TD.new_empty(tokens, pairs // half, 2 * half)
    tiles = triton.cdiv(tokens, ROWS) * triton.cdiv(pairs, columns)
    programs = min(PROGRAMS * _multiprocessors(x_TD.device), tiles)
    with torch.cuda.device_of(x_TD):
        heads_kernel[(programs,)](
            TensorDescriptor.from_tensor(x_TD, [ROWS, DEPTH]),
            TensorDescriptor.from_tensor(joined_2PD[0], [columns, DEPTH]),
            TensorDescriptor.from_tensor(joined_2PD[1], [columns, DEPTH]),
            TensorDescriptor.from_tensor(out_THD, [ROWS, columns // half, half]),
            *(rotary_T2H, tokens, pairs, depth, turned * half, scaled * half, scale),
            **{"HALF": half, "ROWS": ROWS, "COLUMNS": columns, "DEPTH": DEPTH, "GROUP": GROUP},
            **{"num_warps": 4 if half <= 32 else 8, "num_stages": 3},
        )
    return out_THD


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _ready(x: Tensor) -> Tensor:
    """The tensor as the copying unit takes it: rows one after another, from a multiple of 16."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()
