"""Rows hold every token once, keep to their budgets, and are what the model accepts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packed_rows import FIRST, check_coverage, pieces_of

from model.layers.patch_layout import check_batch
from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, PAD_ID
from train.data.filling import IGNORE_LABEL, empty_rows, fill_rows
from train.data.packing import pack_rows
from train.data.window import DocumentArrays, join_documents, split_long_patches


def numbered(patch_lengths: list[list[int]] | list[int], *, patches: bool = True) -> DocumentArrays:
    """Documents of the patches after BOS (or of so many bytes), whose bytes are all different."""
    lists = [[1, *lengths] for lengths in patch_lengths] if patches else []
    lengths = [sum(one) for one in lists] if patches else [n + 2 for n in patch_lengths]
    text = np.arange(sum(lengths) - 2 * len(lengths) + 3) + FIRST - BYTE_OFFSET - 1
    lengths_D = np.array(lengths, np.int64)
    if not patches:
        return DocumentArrays(text, lengths_D, None, None)
    flat = np.array([n for one in lists for n in one], np.int32)
    return DocumentArrays(text, lengths_D, flat, np.array([len(one) for one in lists]))


def filled(documents: DocumentArrays, tokens: int, patches: int | None, seed: int = 0) -> tuple:
    """All rows of some documents."""
    window = pack_rows(documents, np.random.PCG64(seed), tokens, patches)
    rows = len(window.rows)
    arrays = [np.full((rows, width), -7, np.int32) for width in (tokens, tokens, patches or 0)]
    picked = [(window, row) for row in range(rows)]
    fill_rows(picked, *arrays[:2], arrays[2] if patches else None)
    return tuple(arrays)


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=40), min_size=1, max_size=30),
    st.integers(8, 60),
    st.integers(4, 60),
    st.integers(0, 5),
)
def test_every_token_is_predicted_once(patch_lengths, tokens, patches, seed):
    documents = split_long_patches(numbered(patch_lengths), tokens - 2)
    arrays = filled(documents, tokens, patches, seed)
    check_batch(*(torch.from_numpy(arrays[i]) for i in (0, 2)), FIRST * 100)
    check_coverage(documents, pieces_of(*arrays))


@settings(max_examples=100)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=30), st.integers(8, 60))
def test_rows_without_patches(lengths, tokens):
    documents = numbered(lengths, patches=False)
    inputs, labels, _ = filled(documents, tokens, None)
    pieces = pieces_of(inputs, labels, None)
    check_coverage(documents, pieces)
    # Only the last row has room left, but for what a scrap of a document may leave.
    assert (inputs == PAD_ID).sum() <= tokens + len(inputs)


def test_a_row_by_hand():
    # "a", "bcdefgh" in patches of 1 2 2 3; rows of 8 tokens.
    documents = numbered([[1, 1], [1, 2, 2, 3]])
    # DocumentArrays and rows stay in order with this seed.
    arrays = filled(documents, 8, 6, seed=1)
    a, b = FIRST, FIRST + 1
    no, pad, eos, bos = IGNORE_LABEL, PAD_ID, EOS_ID, BOS_ID
    assert arrays[0].tolist() == [
        [bos, a, eos, bos, b, b + 1, eos, pad],
        [b + 2, b + 3, b + 4, b + 5, b + 6, eos, pad, pad],
    ]
    assert arrays[1].tolist() == [
        [a, eos, no, b, b + 1, b + 2, no, no],
        [b + 3, b + 4, b + 5, b + 6, eos, no, no, no],
    ]
    assert arrays[2].tolist() == [[1, 1, 1, 1, 1, 2], [1, 2, 3, 0, 0, 0]]


def test_short_documents_stay_whole_and_long_ones_contiguous():
    draw = np.random.default_rng(0)
    book = draw.geometric(0.2, 30_000).tolist()
    short = [draw.geometric(0.4, 60).tolist() for _ in range(200)]
    inputs, labels, _ = filled(numbered([book, *short]), 2048, 440)
    pieces = pieces_of(inputs, labels, None)
    of_book = [len(labels) for _, labels, _ in pieces if FIRST <= labels[0] < FIRST + sum(book) - 1]
    # The rest of a row goes to the short ones, which are denser, until these are used up.
    assert np.median(of_book) > 1500
    whole = sum(inputs[0] == BOS_ID and labels[-1] == EOS_ID for inputs, labels, _ in pieces)
    assert whole > 120


@pytest.mark.parametrize("tokens", [2048, 4096, 8192])
def test_both_paddings_are_small_in_mixed_text(tokens):
    """Prose, code, short messages and books, each with rates of its own."""
    draw = np.random.default_rng(1)
    documents = []
    for count, size, rate in ((400, 4e3, 0.24), (200, 6e3, 0.15), (900, 200, 0.35), (4, 3e5, 0.22)):
        for _ in range(count):
            patches = max(int(size * rate * draw.lognormal(0, 0.7)), 1)
            documents.append(draw.geometric(rate * draw.normal(1, 0.1), patches).tolist())
    documents = numbered(documents)
    rate = documents.patches_D.sum() / documents.lengths_D.sum()
    patches = int(rate * tokens * 1.005) + 3
    inputs, _, lengths = filled(documents, tokens, patches)
    assert len(inputs) > 100 * 4096 / tokens
    assert (inputs == PAD_ID).mean() < 0.02
    assert (lengths == 0).mean() < 0.02


def test_long_patches_are_cut():
    documents = split_long_patches(numbered([[3, 25, 1], [10], [11]]), 10)
    assert documents.patch_lengths_P.tolist() == [1, 3, 10, 10, 5, 1, 1, 10, 1, 10, 1]
    assert documents.patches_D.tolist() == [6, 2, 3]
    with pytest.raises(ValueError, match="too long for a row of 11 tokens"):
        pack_rows(documents, np.random.PCG64(0), 11, 6)


def test_parts_are_laid_end_to_end():
    parts = [
        DocumentArrays(
            np.frombuffer(text, np.uint8), np.array(lengths), np.array(patches), np.array(n)
        )
        for text, lengths, patches, n in (
            (b"ab", [4], [1, 3], [2]),
            (b"c", [2, 3], [1, 1, 1, 2], [2, 2]),
        )
    ]
    joined = join_documents(parts, 2, patches=True)
    assert bytes(joined.text) == b"\0abc\0\0" and joined.lengths_D.tolist() == [4, 2, 3]
    assert joined.patch_lengths_P.tolist() == [1, 2, 1, 1, 1, 1, 2]
    assert joined.patch_lengths_P.dtype == np.uint16
    assert joined.patches_D.tolist() == [3, 2, 2]
    joined = join_documents(parts, 2, patches=False)
    assert joined.patch_lengths_P is None and joined.patches_D is None
    assert join_documents(parts, 2**16, patches=True).patch_lengths_P.dtype == np.int32


def test_rows_of_several_windows_at_once():
    draw = np.random.default_rng(2)
    windows = []
    for seed in range(3):
        documents = numbered([draw.geometric(0.3, 20).tolist() for _ in range(8)])
        documents = documents._replace(text=documents.text + 10_000 * seed)
        windows.append(pack_rows(documents, np.random.PCG64(seed), 40, 20))
    picked = [(windows[n % 3], n // 3) for n in range(9)]
    together = [np.zeros((9, width), np.int32) for width in (40, 40, 20)]
    fill_rows(picked, *together)
    for n, one in enumerate(picked):
        alone = [np.zeros((1, width), np.int32) for width in (40, 40, 20)]
        fill_rows([one], *alone)
        assert all((a[n] == b[0]).all() for a, b in zip(together, alone, strict=True))


def test_empty_rows_are_accepted_and_teach_nothing():
    arrays = [np.ones((2, width), np.int32) for width in (8, 8, 5)]
    empty_rows(*arrays)
    check_batch(torch.from_numpy(arrays[0]), torch.from_numpy(arrays[2]), 260)
    assert (arrays[1] == IGNORE_LABEL).all() and (arrays[0] != PAD_ID).sum() == 2


@pytest.mark.parametrize("patches", [True, False])
def test_no_documents_give_no_rows(patches):
    documents = join_documents([], 14, patches=patches)
    _, rows = pack_rows(documents, np.random.PCG64(0), 16, 4)
    assert len(rows) == 0
