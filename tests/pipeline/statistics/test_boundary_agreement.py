"""Agreement of boundaries, against loops over sets of places."""

from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.patches import PatchedTokens
from pipeline.statistics.boundary_agreement import (
    Places,
    Scores,
    cases,
    chance_f1,
    count_cases,
    first_decided,
)

LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=5)


@st.composite
def patched_twice(draw) -> tuple[PatchedTokens, PatchedTokens]:
    """Documents in two random ways of patching; each starts patches at its first token."""
    lengths = draw(LENGTHS)

    def patches() -> PatchedTokens:
        sizes, patches_D = [], []
        for n in lengths:
            inner = sorted(draw(st.sets(st.integers(1, n - 1))))
            edges = [0, *inner, n]
            sizes += np.diff(edges).tolist()
            patches_D.append(len(edges) - 1)
        return PatchedTokens(
            np.array(lengths), np.zeros(0, np.float16), np.array(sizes), np.array(patches_D)
        )

    return patches(), patches()


def starts(patched: PatchedTokens, first: int) -> set[tuple[int, int]]:
    """(document, token) of every start that counts."""
    found, sizes = set(), iter(patched.patch_lengths_P.tolist())
    for document, count in enumerate(patched.patches_D.tolist()):
        token = 0
        for _ in range(count):
            found.add((document, token))
            token += next(sizes)
    return {(document, token) for document, token in found if token >= first}


@given(patched_twice(), st.integers(1, 4))
def test_scores_are_those_of_sets_of_starts(both, first):
    reference, other = both
    places = Places.of(reference.lengths_D, first)
    counts = count_cases(cases(reference, other, places), places.document_C, len(both[0].lengths_D))
    a, b = starts(reference, first), starts(other, first)
    every = {(d, t) for d, n in enumerate(reference.lengths_D) for t in range(first, n)}
    assert counts.sum(axis=0).tolist() == [
        *(len(every - a - b), len(b - a), len(a - b), len(a & b)),
    ]
    for document, counts_4 in enumerate(counts):
        assert counts_4[3] == sum(d == document for d, _ in a & b)
    scores = Scores.of(counts.sum(axis=0))
    near(scores.precision, len(a & b), len(b))
    near(scores.recall, len(a & b), len(a))
    near(scores.f1, 2 * len(a & b), len(a) + len(b))
    near(scores.chance_f1, 2 * len(a) * len(b) / max(len(every), 1), len(a) + len(b))
    # Cohen's kappa by its definition.
    n = len(every)
    if n and not isnan(scores.kappa):
        seen = (len(a & b) + len(every - a - b)) / n
        chance = (len(a) * len(b) + (n - len(a)) * (n - len(b))) / n**2
        assert scores.kappa == pytest.approx((seen - chance) / (1 - chance))
    assert chance_f1(counts.sum(axis=0)[None]) == pytest.approx(
        float(scores.chance_f1), nan_ok=True
    )


def near(found: np.ndarray, top: float, bottom: float) -> None:
    if bottom:
        assert found == pytest.approx(top / bottom)
    else:
        assert isnan(found)


def test_the_example_of_the_module():
    lengths = np.array([9])  # BOS, "one two", EOS
    a = PatchedTokens(lengths, np.zeros(0, np.float16), np.array([1, 3, 4, 1]), np.array([4]))
    b = PatchedTokens(lengths, np.zeros(0, np.float16), np.array([1, 4, 3, 1]), np.array([4]))
    places = Places.of(lengths, first_decided([{0: True, 1: True}] * 2))
    scores = Scores.of(count_cases(cases(a, b, places), places.document_C, 1)[0])
    assert len(places.at_C) == 7
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)
    assert scores.chance_f1 == pytest.approx(2 / 7)


@pytest.mark.parametrize("rates", [(0.22, 0.22), (0.1, 0.4)])
def test_chance_is_what_random_patchers_reach(rates):
    draw = np.random.default_rng(0)
    a, b = (draw.random(400_000) < rate for rate in rates)
    counts = count_cases(2 * a.astype(int) + b, np.zeros(len(a), int), 1)[0]
    scores = Scores.of(counts)
    assert scores.f1 == pytest.approx(2 * rates[0] * rates[1] / sum(rates), abs=0.005)
    assert scores.chance_f1 == pytest.approx(float(scores.f1), abs=0.005)
    assert scores.kappa == pytest.approx(0, abs=0.01)


def test_chance_within_groups_knows_their_rates():
    draw = np.random.default_rng(1)
    group = draw.integers(0, 2, 400_000)
    rate = np.array([0.05, 0.9])[group]
    a, b = (draw.random(len(group)) < rate for _ in range(2))
    counts = count_cases(2 * a.astype(int) + b, group, 2)
    total = Scores.of(counts.sum(axis=0))
    assert chance_f1(counts) == pytest.approx(float(total.f1), abs=0.005)
    assert total.chance_f1 < total.f1 - 0.3
    assert isnan(chance_f1(np.zeros((2, 4), int)))


def test_first_decided_is_behind_what_the_rules_force():
    assert first_decided([{0: True, 1: True}, {0: True}]) == 2
    assert first_decided([{0: True}, {0: True}]) == 1
    assert first_decided([{0: True, 1: True}, {0: True, 1: True, 2: True, 3: False}]) == 4
