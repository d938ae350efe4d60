"""Rows → the arrays of a batch. Plain numpy; every byte that is trained on goes through here.

A row's pieces are stretches of the window's text: all are copied in one call, and what is no byte
of text is put in afterwards.
"""

from itertools import pairwise

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, PAD_ID
from train.data.packing import Rows
from train.data.window import Documents

IGNORE_LABEL = -100
"""What torchtitan's losses leave out."""


def fill_rows(
    documents: Documents,
    rows: Rows,
    first: int,
    input_BS: np.ndarray,
    labels_BS: np.ndarray,
    patch_lengths_BP: np.ndarray | None,
) -> None:
    """Write B rows from ``first`` on into arrays of int32; padded with -1, -100 and 0."""
    first_B = rows.first_R[first : first + len(input_BS) + 1].tolist()
    pieces = slice(first_B[0], first_B[-1])
    first_B = [n - pieces.start for n in first_B]
    row_M = rows.row_N[pieces] - first
    byte_M, tokens_M = rows.byte_N[pieces], rows.tokens_N[pieces]
    end_M, used_B = _places(tokens_M, row_M, first_B, input_BS.shape[1])
    starts, stops = byte_M.tolist(), (byte_M + tokens_M).tolist()
    input_BS[:] = _laid(documents.text, starts, stops, first_B, used_B, input_BS.shape)
    input_BS += BYTE_OFFSET
    # A label is the next token: also the last of a piece, which a closing EOS replaces below.
    labels_BS[:, :-1] = input_BS[:, 1:]
    for row, used in enumerate(used_B):
        input_BS[row, used:] = PAD_ID
        labels_BS[row, used:] = IGNORE_LABEL
    input_T, labels_T = input_BS.reshape(-1), labels_BS.reshape(-1)
    input_T[(end_M - tokens_M)[rows.opens_N[pieces]]] = BOS_ID
    input_T[end_M - 1] = EOS_ID
    labels_T[end_M[rows.closes_N[pieces]] - 2] = EOS_ID
    labels_T[end_M - 1] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        assert documents.patch_lengths_P is not None
        patch_M, patches_M = rows.patch_N[pieces], rows.patches_N[pieces]
        end_M, used_B = _places(patches_M, row_M, first_B, patch_lengths_BP.shape[1])
        starts, stops = patch_M.tolist(), (patch_M + patches_M).tolist()
        lengths_P, shape = documents.patch_lengths_P, patch_lengths_BP.shape
        patch_lengths_BP[:] = _laid(lengths_P, starts, stops, first_B, used_B, shape)
        patch_lengths_BP.reshape(-1)[end_M - patches_M] = 1


def _places(
    length_M: np.ndarray, row_M: np.ndarray, first_B: list[int], width: int
) -> tuple[np.ndarray, list[int]]:
    """Where each piece ends, rows of ``width`` laid end to end, and how much of each is used."""
    end_M = length_M.cumsum()
    before_B = [0, *end_M[[n - 1 for n in first_B[1:]]].tolist()]
    shift_B = [row * width - before for row, before in enumerate(before_B[:-1])]
    return end_M + np.array(shift_B)[row_M], [b - a for a, b in pairwise(before_B)]


def _laid(
    source: np.ndarray,
    starts: list[int],
    stops: list[int],
    first_B: list[int],
    used_B: list[int],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Stretches of ``source`` in rows, one after another, and zeros after them."""
    blank = np.zeros(shape[1], source.dtype)
    stretches: list[np.ndarray] = []
    for (first, last), used in zip(pairwise(first_B), used_B, strict=True):
        stretches += [source[starts[n] : stops[n]] for n in range(first, last)]
        stretches.append(blank[used:])
    return np.concatenate(stretches).reshape(shape)


def empty_rows(
    input_BS: np.ndarray, labels_BS: np.ndarray, patch_lengths_BP: np.ndarray | None
) -> None:
    """Write rows that teach nothing: one EOS without label; models read no row without token."""
    input_BS[:] = PAD_ID
    input_BS[:, 0] = EOS_ID
    labels_BS[:] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        patch_lengths_BP[:] = 0
        patch_lengths_BP[:, 0] = 1
