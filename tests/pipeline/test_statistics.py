import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics import ENTROPY_BIN, LONGEST, PatchStatistics

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
    assert PatchStatistics().mean_patch_bytes == 0


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
