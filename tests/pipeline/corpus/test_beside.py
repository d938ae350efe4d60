"""Entropies and patches that come with a text: what fits it, and what is said of the rest."""

import numpy as np
import pytest

from model.tokenizer import VOCAB_SIZE
from pipeline.corpus.beside import IDS, entropies_of, patch_lengths_at, patch_lengths_of

TEXT = "hé!".encode()  # four bytes, six tokens
H = [0.5, 1.25, 5.5625, 0.0, 2.0, 3.0]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i8", list])
def test_entropies_of_any_kind_of_numbers(kind):
    given = H if kind is list else np.array(H, kind)
    stored = entropies_of(given, TEXT)
    assert stored.dtype == np.float16
    assert stored.tolist() == (np.array(H).astype("i8") if kind == "i8" else np.array(H)).tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (H[:-1], r"has 5 values, and the text has 6 tokens \(BOS, bytes, EOS\)"),
        ([*H, 1.0], "has 7 values"),
        ([], "has 0 values"),
        ([*H[:-1], float("nan")], "holds NaN"),
        ([*H[:-1], -0.25], r"holds -0\.25, which is no entropy"),
        ([*H[:-1], float("inf")], r"holds inf, and the entropy of 260 ids is at most 5\.56 nats"),
        ([*H[:-1], 1e9], "holds inf"),
        ([*H[:-1], 8.0], r"holds 8\.0, .* \(are these bits\?\)"),
        ([*H[:-1], None], "is no list of numbers"),
        (["1.0"] * 6, "is no list of numbers"),
        ([[1.0]] * 6, "is no list of numbers"),
        ([True] * 6, "holds true or false, which are no numbers"),
        ([*H[:-1], True], "holds true or false, which are no numbers"),
        ("[1, 2, 3]", "is no list of numbers"),
        (b"[1, 2, 3]", "is no list of numbers"),
        (None, "is null"),
    ],
)
def test_entropies_that_do_not_fit(value, message):
    with pytest.raises(ValueError, match=message):
        entropies_of(value, TEXT)


def test_entropies_at_the_edges():
    """Rounding to float16 and bfloat16 is no error: log(260) is 5.5607."""
    assert entropies_of([5.59375, -1e-9], b"").tolist() == [5.59375, 0.0]
    with pytest.raises(ValueError, match=r"holds 5\.6"):
        entropies_of([5.625, 0.0], b"")


@pytest.mark.parametrize(
    ("value", "lengths"),
    [
        ([1, 3, 2], [1, 3, 2]),  # tokens: BOS, three bytes, the last byte and EOS
        ([3, 1], [1, 3, 2]),  # bytes
        ([1, 1, 1, 1], [1, 1, 1, 1, 2]),
        ([4], [1, 5]),
        ([1, 5], [1, 5]),
        (np.array([3.0, 1.0], "f4"), [1, 3, 2]),
        (np.array([1, 3, 2], "u8"), [1, 3, 2]),
    ],
)
def test_patch_lengths_of_bytes_or_of_tokens(value, lengths):
    found = patch_lengths_of(value, TEXT)
    assert found.tolist() == lengths and found.dtype == np.int32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([3, 2], r"sums to 5, and the text has 4 bytes \(6 tokens\)"),
        ([], "sums to 0"),
        ([4, 2], "begins with 4: the first patch has to be BOS alone"),
        ([1, 0, 3, 2], "holds a length of 0"),
        ([-1, 5], "holds a length of -1"),
        ([1.5, 2.5], "holds numbers that are not whole"),
        ([float("nan"), 4.0], "holds numbers that are not whole"),
        ([1 << 40], "holds numbers that are too large"),
        ([1 << 70], "is no list of numbers"),
        ([[0, 3], [3, 4]], "is no list of numbers"),
        ([[0, 3], [3]], "is no list of numbers"),
        ([3, None], "is no list of numbers"),
        ([True, 3], "holds true or false, which are no numbers"),
        (None, "is null"),
    ],
)
def test_patch_lengths_that_do_not_fit(value, message):
    with pytest.raises(ValueError, match=message):
        patch_lengths_of(value, TEXT)


@pytest.mark.parametrize("value", [[3], [0, 3], [3, 4], [0, 3, 4]])
def test_offsets_with_and_without_the_ends(value):
    assert patch_lengths_at(value, TEXT).tolist() == [1, 3, 2]


def test_no_text_and_no_offsets():
    for value in ([], [0]):
        assert patch_lengths_at(value, b"").tolist() == [1, 1]
    assert patch_lengths_of([], b"").tolist() == patch_lengths_of([1, 1], b"").tolist() == [1, 1]
    assert patch_lengths_at([], TEXT).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0, 5], r"holds the offset 5, and the text has 4 bytes"),
        ([-1, 2], "holds the offset -1"),
        ([2, 2], "holds offsets that do not rise"),
        ([3, 1], "holds offsets that do not rise"),
        ([0.5], "holds numbers that are not whole"),
    ],
)
def test_offsets_that_do_not_fit(value, message):
    with pytest.raises(ValueError, match=message):
        patch_lengths_at(value, TEXT)


def test_the_number_of_ids_is_that_of_models():
    assert IDS == VOCAB_SIZE
