"""Rows → the arrays of a batch. Plain numpy; every byte that is trained on goes through here.

Each piece of a row is a slice of its window's text. The rows of a batch come from many windows. All
slices are copied in one call; what is not a byte of the text (BOS, EOS, padding) is written over
the copy afterwards.

>>> from train.data.packing import pack_rows
>>> documents = DocumentArrays(
...     text=np.frombuffer(b"\\0hi\\0\\0", np.uint8),
...     lengths_D=np.array([4]),
...     patch_lengths_P=np.array([1, 1, 2]),
...     patches_D=np.array([3]),
... )
>>> window = pack_rows(documents, np.random.PCG64(0), tokens=6, patches=4)
>>> input_BS, labels_BS, patch_lengths_BP = (np.empty((1, n), np.int32) for n in (6, 6, 4))
>>> fill_rows([(window, 0)], input_BS, labels_BS, patch_lengths_BP)
>>> input_BS.tolist()  # BOS, h, i, EOS, padding
[[1, 108, 109, 2, -1, -1]]
>>> labels_BS.tolist()  # h, i, EOS, ignored
[[108, 109, 2, -100, -100, -100]]
>>> patch_lengths_BP.tolist()
[[1, 1, 2, 0]]
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, PAD_ID
from train.data.packing import Column, PackedWindow
from train.data.window import DocumentArrays

IGNORE_LABEL = -100
"""The label that torchtitan's losses ignore."""


def fill_rows(
    rows: Sequence[tuple[PackedWindow, int]],
    input_BS: np.ndarray,
    labels_BS: np.ndarray,
    patch_lengths_BP: np.ndarray | None = None,
) -> None:
    """Write B rows into int32 arrays, padded with -1, -100 and 0.

    Args:
        rows: B windows, each with the number of a row of it.
        patch_lengths_BP: None where rows have no patches.
    """
    of_row = [window.rows.pieces(row) for window, row in rows]
    counts_B = [len(pieces) for pieces in of_row]
    first_B = [0, *accumulate(counts_B)]
    row_M = np.repeat(np.arange(len(of_row)), counts_B)
    columns = np.concatenate(of_row).T.astype(np.int64)
    byte_M, tokens_M, patch_M, patches_M, opens_M, closes_M, _ = columns
    end_M, used_B = _piece_ends(tokens_M, row_M, first_B, input_BS.shape[1])
    texts = [window.documents.text for window, _ in rows]
    input_BS[:] = _copy_slices(texts, byte_M, tokens_M, first_B, used_B, input_BS.shape)
    input_BS += BYTE_OFFSET
    # A label is the next token. The last one of a document is EOS, which is written below.
    labels_BS[:, :-1] = input_BS[:, 1:]
    for row, used in enumerate(used_B):
        input_BS[row, used:] = PAD_ID
        labels_BS[row, used:] = IGNORE_LABEL
    input_T, labels_T = input_BS.reshape(-1), labels_BS.reshape(-1)
    input_T[(end_M - tokens_M)[opens_M != 0]] = BOS_ID
    input_T[end_M - 1] = EOS_ID
    labels_T[end_M[closes_M != 0] - 2] = EOS_ID
    labels_T[end_M - 1] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        end_M, used_B = _piece_ends(patches_M, row_M, first_B, patch_lengths_BP.shape[1])
        lengths = [_patch_lengths(window.documents) for window, _ in rows]
        shape = patch_lengths_BP.shape
        patch_lengths_BP[:] = _copy_slices(lengths, patch_M, patches_M, first_B, used_B, shape)
        patch_lengths_BP.reshape(-1)[end_M - patches_M] = 1


def fill_groups(rows: Sequence[tuple[PackedWindow, int]], groups_BS: np.ndarray) -> None:
    """Write the group of the document that each position of B rows belongs to; that of padding
    is 0."""
    groups_BS[:] = 0
    for (window, row), groups_S in zip(rows, groups_BS, strict=True):
        assert window.documents.groups_D is not None
        places = slice(window.rows.first_R[row], window.rows.first_R[row + 1])
        pieces_MF = window.rows.pieces_NF[places]
        groups_M = window.documents.groups_D[pieces_MF[:, Column.DOCUMENT]]
        groups_T = np.repeat(groups_M, pieces_MF[:, Column.TOKENS])
        groups_S[: len(groups_T)] = groups_T


def _patch_lengths(documents: DocumentArrays) -> np.ndarray:
    assert documents.patch_lengths_P is not None
    return documents.patch_lengths_P


def _piece_ends(
    length_M: np.ndarray, row_M: np.ndarray, first_B: list[int], width: int
) -> tuple[np.ndarray, list[int]]:
    """The end of each piece in an array of rows of ``width``, flattened, and the used length of
    each row."""
    end_M = length_M.cumsum()
    before_B = [0, *end_M[[n - 1 for n in first_B[1:]]].tolist()]
    shift_B = [row * width - before for row, before in enumerate(before_B[:-1])]
    return end_M + np.array(shift_B)[row_M], [b - a for a, b in pairwise(before_B)]


def _copy_slices(
    source_B: list[np.ndarray],
    start_M: np.ndarray,
    length_M: np.ndarray,
    first_B: list[int],
    used_B: list[int],
    shape: tuple[int, ...],
) -> np.ndarray:
    """An array of ``shape`` whose rows hold slices of each row's source, then zeros.

    Args:
        start_M, length_M: of the slices.
        first_B: the first slice of each row, and the number of slices.
        used_B: the length of all slices of each row.
    """
    starts, stops = start_M.tolist(), (start_M + length_M).tolist()
    blank = np.zeros(shape[1], source_B[0].dtype)
    slices: list[np.ndarray] = []
    for source, (first, last), used in zip(source_B, pairwise(first_B), used_B, strict=True):
        slices += [source[starts[n] : stops[n]] for n in range(first, last)]
        slices.append(blank[used:])
    return np.concatenate(slices).reshape(shape)


def empty_rows(
    input_BS: np.ndarray, labels_BS: np.ndarray, patch_lengths_BP: np.ndarray | None = None
) -> None:
    """Write rows without labels: each holds one EOS, as models accept no row without tokens."""
    input_BS[:] = PAD_ID
    input_BS[:, 0] = EOS_ID
    labels_BS[:] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        patch_lengths_BP[:] = 0
        patch_lengths_BP[:, 0] = 1
