import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.counts import (
    ENTROPY_BIN,
    LENGTH_BINS,
    LONGEST,
    DocumentStatistics,
    PatchStatistics,
)

shards = st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=6), min_size=1, max_size=4)


def of(documents: list[list[int]]) -> PatchStatistics:
    lengths = np.array([sum(document) for document in documents])
    patches = np.concatenate([np.array(document) for document in documents])
    return PatchStatistics.of(lengths, patches, np.linspace(0, 5.5, lengths.sum(), dtype="f2"))


@given(shards, shards)
def test_statistics_add_up(first, second):
    a, b = of(first), of(second)
    total = a + b
    assert total.documents == len(first) + len(second)
    assert total.patches == sum(map(len, first)) + sum(map(len, second))
    assert total.bytes == sum(sum(d) - 2 for d in first + second)
    assert total.patch_lengths.sum() == total.patches
    assert total.entropies.sum() == total.tokens
    assert (b + a).to_json() == total.to_json()
    assert PatchStatistics.from_json(total.to_json()).to_json() == total.to_json()


def test_known_values():
    statistics = of([[1, 3, 3, 1], [1, 9]])
    assert statistics.mean_patch_bytes == (6 + 8) / 6
    assert [statistics.patch_length_percentile(p) for p in (50, 51, 90, 100)] == [1, 3, 9, 9]
    assert PatchStatistics().mean_patch_bytes == 0 == PatchStatistics().patch_length_percentile(50)


def test_entropies_are_counted_by_bin():
    h = np.array([0, 0.019, 0.02, 0.05, 5.56, 5.56, 1.5], np.float16)
    entropies = PatchStatistics.of(np.array([7]), np.array([1, 6]), h).entropies
    expected = np.bincount((h.astype("f4") / np.float32(ENTROPY_BIN)).astype(int))
    assert entropies.tolist() == expected.tolist()
    assert entropies[0] == 2 and entropies.dtype == np.int64


def test_a_huge_patch_does_not_need_a_huge_histogram():
    statistics = PatchStatistics.of(np.array([10**8]), np.array([1, 10**8 - 1]), np.zeros(0, "f2"))
    assert len(statistics.patch_lengths) == LONGEST + 1
    assert statistics.patch_length_percentile(100) == LONGEST


def of_texts(texts: list[bytes]) -> DocumentStatistics:
    return DocumentStatistics.of(pa.array(texts, pa.large_binary()))


many_texts = st.lists(st.binary(max_size=40), max_size=9)


@given(many_texts, many_texts)
def test_statistics_of_documents_add_up(first, second):
    a, b = of_texts(first), of_texts(second)
    total = a + b
    assert total.to_json() == (b + a).to_json() == of_texts(second + first).to_json()
    assert total.documents == len(first + second) == total.lengths.sum()
    assert total.bytes == sum(map(len, first + second))
    assert total.longest == max(map(len, first + second), default=0)
    assert total.digest == sum(map(xxhash.xxh3_128_intdigest, first + second)) % 2**128
    read = DocumentStatistics.from_json(json.loads(json.dumps(total.to_json())))
    assert read.to_json() == total.to_json()
    assert (DocumentStatistics() + a).to_json() == a.to_json()


@given(many_texts, many_texts)
def test_the_same_texts_are_told_from_others(first, second):
    assert of_texts(first).same_texts(of_texts(sorted(first)))
    same = Counter(first) == Counter(second)
    assert of_texts(first).same_texts(of_texts(second)) == same
    assert not of_texts(first).same_texts(of_texts([*first, b""]))
    # As many documents and bytes, but others: one twice and one not at all.
    assert not of_texts([b"aa", b"b", *first]).same_texts(of_texts([b"ab", b"b", *first]))
    assert not of_texts([b"a", b"b", *first]).same_texts(of_texts([b"a", b"a", *first]))


def test_statistics_of_part_of_an_array_are_of_that_part():
    texts = pa.array([b"a", b"", b"ccc", b"dd"], pa.large_binary())
    for start, stop in ((0, 4), (1, 4), (2, 3), (1, 2), (3, 3)):
        part = DocumentStatistics.of(texts.slice(start, stop - start))
        assert part.to_json() == of_texts(texts.to_pylist()[start:stop]).to_json()


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30), st.integers(1, 100))
def test_percentiles_of_lengths_are_never_too_low_and_hardly_too_high(lengths, percent):
    statistics = of_texts([bytes(length) for length in lengths])
    exact = sorted(lengths)[math.ceil(len(lengths) * percent / 100) - 1]
    found = statistics.length_percentile(percent)
    assert exact <= found <= max(lengths)
    assert found + 1 <= (exact + 1) * 2 ** (1 / LENGTH_BINS)
    assert statistics.length_percentile(100) == max(lengths)


def test_lengths_at_the_edges_of_bins_are_counted_in_their_own():
    lengths = [2**k - 1 + d for k in range(2, 24) for d in (-1, 0)]
    bins = [int(np.flatnonzero(of_texts([bytes(length)]).lengths)[0]) for length in lengths]
    assert bins[1::2] == [LENGTH_BINS * k for k in range(2, 24)]
    assert all(low < high for low, high in zip(bins[::2], bins[1::2], strict=True))
    assert DocumentStatistics().length_percentile(50) == 0 == DocumentStatistics().mean_bytes
