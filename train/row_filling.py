"""Rows → the arrays of a batch. Plain numpy; every byte that is trained on goes through here.

A row's pieces are stretches of the window's text: all are copied in one call, and what is no byte
of text is put in afterwards.
"""

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, PAD_ID
from train.documents import Documents
from train.row_packing import Rows

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
    """Write B rows from ``first`` on into arrays of int64; padded with -1, -100 and 0."""
    first_B = rows.first_R[first : first + len(input_BS) + 1].tolist()
    pieces = slice(first_B[0], first_B[-1])
    first_B = [n - pieces.start for n in first_B]
    row_M = rows.row_N[pieces] - first
    byte_M, tokens_M = rows.byte_N[pieces], rows.tokens_N[pieces]
    text, pad, no_label = documents.text, PAD_ID - BYTE_OFFSET, IGNORE_LABEL - BYTE_OFFSET
    end_M = _lay(text, byte_M, tokens_M, row_M, first_B, pad, input_BS)
    _lay(text, byte_M + 1, tokens_M, row_M, first_B, no_label, labels_BS)
    input_BS += BYTE_OFFSET
    labels_BS += BYTE_OFFSET
    input_T, labels_T = input_BS.reshape(-1), labels_BS.reshape(-1)
    input_T[(end_M - tokens_M)[rows.opens_N[pieces]]] = BOS_ID
    input_T[end_M - 1] = EOS_ID
    labels_T[end_M[rows.closes_N[pieces]] - 2] = EOS_ID
    labels_T[end_M - 1] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        assert documents.patch_lengths_P is not None
        lengths_P, patches_M = documents.patch_lengths_P, rows.patches_N[pieces]
        patch_M = rows.patch_N[pieces]
        end_M = _lay(lengths_P, patch_M, patches_M, row_M, first_B, 0, patch_lengths_BP)
        patch_lengths_BP.reshape(-1)[end_M - patches_M] = 1


def _lay(
    source: np.ndarray,
    start_M: np.ndarray,
    length_M: np.ndarray,
    row_M: np.ndarray,
    first_B: list[int],
    padding: int,
    out_BX: np.ndarray,
) -> np.ndarray:
    """Copy stretches of ``source`` into rows, one after another, and padding after them.

    Returns:
        Where each stretch ends, rows laid end to end.
    """
    width = out_BX.shape[1]
    end_M = length_M.cumsum()
    before_B = [0, *end_M[[n - 1 for n in first_B[1:]]].tolist()]
    blank = np.full(width, padding)
    starts, stops = start_M.tolist(), (start_M + length_M).tolist()
    stretches: list[np.ndarray] = []
    for row in range(len(out_BX)):
        own = slice(first_B[row], first_B[row + 1])
        stretches += [source[a:b] for a, b in zip(starts[own], stops[own], strict=True)]
        stretches.append(blank[before_B[row + 1] - before_B[row] :])
    np.concatenate(stretches, out=out_BX.reshape(-1))
    return end_M + (np.arange(len(out_BX)) * width - before_B[:-1])[row_M]


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
