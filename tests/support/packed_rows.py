"""Packed rows taken apart again: what each piece of a row holds, and whether nothing is lost."""

import numpy as np

from model.tokenizer import BOS_ID, EOS_ID, PAD_ID
from train.data.filling import IGNORE_LABEL
from train.data.window import DocumentArrays

FIRST = 1000
"""Texts of these tests are numbers from here on, each once: a byte says where it is from."""


def pieces_of(tokens: np.ndarray, labels: np.ndarray, lengths: np.ndarray | None) -> list[tuple]:
    """The pieces of rows: inputs, labels before the closing EOS, patch lengths."""
    pieces = []
    for row in range(len(tokens)):
        used = int((tokens[row] != PAD_ID).sum())
        assert (tokens[row, used:] == PAD_ID).all() and (labels[row, used:] == IGNORE_LABEL).all()
        start, patch = 0, 0
        for stop in np.flatnonzero(labels[row, :used] == IGNORE_LABEL) + 1:
            assert tokens[row, stop - 1] == EOS_ID
            own = None
            if lengths is not None:
                ends = lengths[row, patch:].cumsum()
                count = int(np.searchsorted(ends, stop - start)) + 1
                own = lengths[row, patch : patch + count]
                assert own.sum() == stop - start and own[0] == 1 and (own > 0).all()
                patch += count
            pieces.append((tokens[row, start : stop - 1], labels[row, start : stop - 1], own))
            start = stop
        assert start == used
        assert lengths is None or (lengths[row, patch:] == 0).all()
    return pieces


def check_coverage(documents: DocumentArrays, pieces: list[tuple]) -> None:
    """Every byte and EOS is predicted once, after the right token, in its own patch."""
    predicted, ends_of_patches = [], []
    last_byte = FIRST + (documents.lengths_D - 2).cumsum() - 1  # of each document, if it has any
    after_eos = []
    for inputs, labels, lengths in pieces:
        assert len(labels) and (inputs[1:] == labels[:-1]).all()
        assert (inputs[1:] >= FIRST).all() and (labels[:-1] >= FIRST).all()
        first_labels = labels[0] == EOS_ID or labels[0] - 1 in (*last_byte, FIRST - 1)
        assert inputs[0] == BOS_ID or labels[0] in (EOS_ID, inputs[0] + 1)
        assert inputs[0] != BOS_ID or first_labels
        predicted += labels[labels != EOS_ID].tolist()
        if labels[-1] == EOS_ID:
            after_eos.append(int(inputs[-1]))
        if lengths is not None:
            ends_of_patches += [int(labels[end - 2]) for end in lengths.cumsum()[1:]]
    texts = int((documents.lengths_D - 2).sum())
    assert sorted(predicted) == list(range(FIRST, FIRST + texts))
    ends = np.where(documents.lengths_D == 2, BOS_ID, last_byte)
    assert sorted(after_eos) == sorted(ends.tolist())
    if documents.patch_lengths_P is not None:
        document_P = np.repeat(np.arange(len(documents.patches_D)), documents.patches_D)
        token_P = documents.patch_lengths_P.cumsum() - 1 - 2 * document_P + FIRST - 1
        stop_D = documents.patches_D.cumsum()
        token_P[stop_D - 1] = EOS_ID
        expected = np.delete(token_P, stop_D - documents.patches_D)
        assert sorted(ends_of_patches) == sorted(expected.tolist())
