"""Rows → the arrays of a batch. Plain numpy; every byte that is trained on goes through here.

Each piece of a row is a slice of the window's text. All slices are copied in one call; what is not
a byte of the text (BOS, EOS, padding) is written over the copy afterwards.

>>> from train.data.packing import pack_rows
>>> documents = DocumentArrays(
...     text=np.frombuffer(b"\\0hi\\0\\0", np.uint8),
...     lengths_D=np.array([4]),
...     patch_lengths_P=np.array([1, 1, 2]),
...     patches_D=np.array([3]),
... )
>>> documents, rows = pack_rows(documents, np.random.PCG64(0), tokens=6, patches=4)
>>> input_BS, labels_BS, patch_lengths_BP = (np.empty((1, n), np.int32) for n in (6, 6, 4))
>>> fill_rows(documents, rows, 0, input_BS, labels_BS, patch_lengths_BP)
>>> input_BS.tolist()  # BOS, h, i, EOS, padding
[[1, 108, 109, 2, -1, -1]]
>>> labels_BS.tolist()  # h, i, EOS, ignored
[[108, 109, 2, -100, -100, -100]]
>>> patch_lengths_BP.tolist()
[[1, 1, 2, 0]]
"""

from itertools import pairwise

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, PAD_ID
from train.data.packing import Rows
from train.data.window import DocumentArrays

IGNORE_LABEL = -100
"""The label that torchtitan's losses ignore."""


def fill_rows(
    documents: DocumentArrays,
    rows: Rows,
    first: int,
    input_BS: np.ndarray,
    labels_BS: np.ndarray,
    patch_lengths_BP: np.ndarray | None,
) -> None:
    """Write the B rows from number ``first`` on into int32 arrays, padded with -1, -100 and 0.

    Args:
        documents: as :func:`train.data.packing.pack_rows` returned them, with the rows.
        patch_lengths_BP: None where rows have no patches.
    """
    first_B = rows.first_R[first : first + len(input_BS) + 1].tolist()
    pieces = slice(first_B[0], first_B[-1])
    first_B = [n - pieces.start for n in first_B]
    row_M = rows.row_N[pieces] - first
    byte_M, tokens_M = rows.byte_N[pieces], rows.tokens_N[pieces]
    end_M, used_B = _piece_ends(tokens_M, row_M, first_B, input_BS.shape[1])
    starts, stops = byte_M.tolist(), (byte_M + tokens_M).tolist()
    input_BS[:] = _copy_slices(documents.text, starts, stops, first_B, used_B, input_BS.shape)
    input_BS += BYTE_OFFSET
    # A label is the next token. The last one of a document is EOS, which is written below.
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
        end_M, used_B = _piece_ends(patches_M, row_M, first_B, patch_lengths_BP.shape[1])
        starts, stops = patch_M.tolist(), (patch_M + patches_M).tolist()
        lengths_P, shape = documents.patch_lengths_P, patch_lengths_BP.shape
        patch_lengths_BP[:] = _copy_slices(lengths_P, starts, stops, first_B, used_B, shape)
        patch_lengths_BP.reshape(-1)[end_M - patches_M] = 1


def fill_groups(documents: DocumentArrays, rows: Rows, first: int, groups_BS: np.ndarray) -> None:
    """Write the group of the document that each position of the B rows from ``first`` on belongs
    to; the group of padding is 0."""
    assert documents.groups_D is not None
    pieces = slice(rows.first_R[first], rows.first_R[first + len(groups_BS)])
    row_M, tokens_M = rows.row_N[pieces] - first, rows.tokens_N[pieces]
    used_B = np.bincount(row_M, tokens_M, len(groups_BS))
    groups_BS[:] = 0
    is_used_BS = np.arange(groups_BS.shape[1]) < used_B[:, None]
    # Pieces lie end to end in each row, and in the order of the rows.
    groups_BS[is_used_BS] = np.repeat(documents.groups_D[rows.document_N[pieces]], tokens_M)


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
    source: np.ndarray,
    starts: list[int],
    stops: list[int],
    first_B: list[int],
    used_B: list[int],
    shape: tuple[int, ...],
) -> np.ndarray:
    """An array of ``shape`` whose rows hold slices of ``source``, then zeros.

    Args:
        starts, stops: of the slices.
        first_B: the first slice of each row, and the number of slices.
        used_B: the length of all slices of each row.
    """
    blank = np.zeros(shape[1], source.dtype)
    slices: list[np.ndarray] = []
    for (first, last), used in zip(pairwise(first_B), used_B, strict=True):
        slices += [source[starts[n] : stops[n]] for n in range(first, last)]
        slices.append(blank[used:])
    return np.concatenate(slices).reshape(shape)


def empty_rows(
    input_BS: np.ndarray, labels_BS: np.ndarray, patch_lengths_BP: np.ndarray | None
) -> None:
    """Write rows without labels: each holds one EOS, as models accept no row without tokens."""
    input_BS[:] = PAD_ID
    input_BS[:, 0] = EOS_ID
    labels_BS[:] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        patch_lengths_BP[:] = 0
        patch_lengths_BP[:, 0] = 1
