"""Counts by threshold against re-patching at each threshold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.patcher import Patcher
from pipeline.statistics.threshold_curve import (
    CUT_THRESHOLDS,
    ThresholdCounts,
    patches_at_thresholds,
)

RULES = [
    Patcher(1.0),
    Patcher(1.0, rule="monotonic"),
    Patcher(1.0, rule="monotonic", published=True),
    Patcher(1.0, rule="combined", threshold_add=0.3),
    Patcher(1.0, rule="combined", threshold_add=-0.2, published=True),
]
documents = st.lists(
    st.lists(st.sampled_from([0.0, 0.0009765625, 0.1, 0.3, 0.65, 1.3, 1.335, 5.5]), min_size=2),
    max_size=6,
)


def end_to_end(documents: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    h_T = np.array([h for document in documents for h in document], np.float16)
    return h_T, np.array([len(document) for document in documents], np.int64)


def patches_of(patcher: Patcher, threshold: float, h_T: np.ndarray, lengths_D: np.ndarray) -> int:
    rule = replace(patcher, threshold=threshold)
    return len(rule.patch_lengths_flat(torch.from_numpy(h_T), torch.from_numpy(lengths_D))[0])


@pytest.mark.parametrize("patcher", RULES, ids=str)
@settings(max_examples=40)
@given(documents=documents)
def test_every_threshold_gives_the_patches_of_re_patching(patcher, documents):
    h_T, lengths_D = end_to_end(documents)
    counts = ThresholdCounts.of(patcher, h_T, lengths_D)
    thresholds = [*counts.values.tolist(), -6.0, 0.0, 0.5, 1.25, 6.0]
    if patcher.rule != "monotonic":  # there, float16 thresholds only
        thresholds += [1.335442066192627, 0.1, 0.30000001]
    found = counts.patches(np.array(thresholds)).tolist()
    assert found == [patches_of(patcher, t, h_T, lengths_D) for t in thresholds]
    assert counts.bytes == len(h_T) - 2 * len(lengths_D)
    assert ThresholdCounts.from_json(counts.to_json()).to_json() == counts.to_json()


@pytest.mark.parametrize("patcher", RULES, ids=str)
@settings(max_examples=20)
@given(a=documents, b=documents)
def test_counts_add_up(patcher, a, b):
    one, other = (ThresholdCounts.of(patcher, *end_to_end(part)) for part in (a, b))
    whole = ThresholdCounts.of(patcher, *end_to_end(a + b))
    assert (one + other).to_json() == whole.to_json()


@pytest.mark.parametrize("rule", ["global", "monotonic"])
def test_no_threshold_comes_closer_than_the_suggested_one(rule):
    random = np.random.default_rng(0)
    h_T, lengths_D = random.gamma(1, 1, 900).astype(np.float16), np.array([300, 100, 500])
    patcher = Patcher(1.0, rule=rule)
    counts = ThresholdCounts.of(patcher, h_T, lengths_D)
    for target in (1.0, 1.7, 4.5, 8.0, 500.0):
        suggested, reached = counts.curve().closest(target)

        def distance(threshold: float, target: float = target) -> float:
            size = counts.bytes / patches_of(patcher, threshold, h_T, lengths_D)
            return abs(size - target)

        assert abs(reached - target) == distance(suggested)
        assert distance(suggested) == min(map(distance, [*counts.values.tolist(), -9.0]))


def test_rules_without_a_threshold_are_counted_as_the_global_one():
    h_T, lengths_D = end_to_end([[0.1, 2.0, 0.3, 1.5, 0.2]])
    counts = ThresholdCounts.of(Patcher(rule="space"), h_T, lengths_D)
    assert counts.patches(np.array([1.0, 1.5])).tolist() == [4, 3]


def test_of_nothing_there_is_no_threshold():
    counts = ThresholdCounts.of(Patcher(1.0), *end_to_end([]))
    assert counts.curve().closest(4.5) is None
    assert len(counts.curve().thinned(9).thresholds_K) == 0
    assert counts.patches(np.array([0.0, 1.0])).tolist() == [0, 0]


def test_a_thinned_curve_keeps_its_ends_and_its_values():
    random = np.random.default_rng(0)
    h_T, lengths_D = random.gamma(1, 1, 3000).astype(np.float16), np.array([3000])
    rule = Patcher(1.0)
    curve = ThresholdCounts.of(rule, h_T, lengths_D).curve()
    thinned = curve.thinned(50)
    assert 30 < len(thinned.thresholds_K) <= 50
    assert {curve.thresholds_K[0], curve.thresholds_K[-1]} <= set(thinned.thresholds_K)
    pairs = dict(zip(curve.thresholds_K.tolist(), curve.patches_K.tolist(), strict=True))
    for threshold, patches in zip(thinned.thresholds_K, thinned.patches_K, strict=True):
        assert pairs[float(threshold)] == patches == patches_of(rule, threshold, h_T, lengths_D)


def test_with_cuts_of_long_patches_documents_are_re_patched_at_each_threshold():
    h_T, lengths_D = end_to_end([[0.1, 2.0] + [0.3] * 9 + [1.5, 0.2], [0.5, 0.5]])
    rule = Patcher(1.0, max_patch_length=4)
    patches_K = patches_at_thresholds(rule, h_T, lengths_D)
    found = dict(zip(CUT_THRESHOLDS.tolist(), patches_K, strict=True))
    # 1 + 1 + (4 + 4 + 2) + 1, and the two tokens of the other document.
    assert found[1.0] == 6 + 2
    assert found[-1.0] == len(h_T) and found[5.5] == 1 + 3 + 2
