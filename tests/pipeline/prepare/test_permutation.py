"""The shuffle's order is as good as random: nothing of the order of the corpus is left in it.

Seeds are fixed, so results are too; bounds are such that a random permutation misses one of them
about once in ten thousand times.
"""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats
from support.shuffles import Texts, ids_of, shuffle_files, write_files

RARE = 1e-5
SEEDS = range(5)
CHUNKS = 16


def corpus() -> Texts:
    """20,000 short documents in 150 files, of which the largest has some thousand times as many as
    the smallest."""
    shares = 1 / np.arange(1, 151)
    sizes = np.maximum(20_000 * shares / shares.sum(), 1).astype(int)
    sizes[0] += 20_000 - sizes.sum()
    sizes = np.random.default_rng(0).permutation(sizes)
    return {
        f"{file:03d}.jsonl": [f"{file} {i}" for i in range(size)] for file, size in enumerate(sizes)
    }


class Order:
    """A shuffled corpus, as numbers: P positions in it."""

    def __init__(self, ranks_P: np.ndarray, files_P: np.ndarray, chunks_P: np.ndarray):
        self.ranks_P = ranks_P
        """Where the document stood in the corpus."""
        self.files_P, self.chunks_P = files_P, chunks_P

    def p_values(self) -> Iterator[tuple[str, float]]:
        """How likely a random permutation is at least as unusual, seen in different ways."""
        positions_D = np.argsort(self.ranks_P)
        half = len(positions_D) // 2
        yield "halves", stats.ks_2samp(positions_D[:half], positions_D[half:]).pvalue
        yield "trend", stats.spearmanr(self.ranks_P, np.arange(2 * half)).pvalue
        yield "next to next", stats.spearmanr(self.ranks_P[:-1], self.ranks_P[1:]).pvalue
        for file in np.argsort(np.bincount(self.files_P))[[-1, -2, -10, -50]]:
            inside = self.files_P == file
            positions = np.flatnonzero(inside), np.flatnonzero(~inside)
            yield f"file {file}", stats.ks_2samp(*positions).pvalue
        first_P = np.diff(self.files_P[np.argsort(self.ranks_P)], prepend=-1)[self.ranks_P] > 0
        firsts = np.flatnonzero(first_P), np.flatnonzero(~first_P)
        yield "first of files", stats.ks_2samp(*firsts).pvalue
        yield "neighbours", 2 * stats.norm.sf(abs(self.same_file_score()))
        large_P = np.bincount(self.files_P)[self.files_P] >= 5 * CHUNKS
        table = np.zeros((self.files_P.max() + 1, CHUNKS))
        np.add.at(table, (self.files_P[large_P], self.chunks_P[large_P]), 1)
        table = table[table.sum(1) > 0][:, table.sum(0) > 0]
        yield "files in chunks", stats.chi2_contingency(table).pvalue
        yield "chunks", stats.chisquare(np.bincount(self.chunks_P, minlength=CHUNKS)).pvalue

    def same_file_score(self) -> float:
        """By how many standard deviations there are more neighbours from one file than chance says;
        mean and variance are those of the test of runs of several kinds (Barton and David)."""
        same = int((self.files_P[1:] == self.files_P[:-1]).sum())
        n = len(self.files_P)
        sizes = np.bincount(self.files_P).astype(float)
        squares, cubes = (sizes**2).sum(), (sizes**3).sum()
        variance = (squares * (squares + n * (n + 1)) - 2 * n * cubes - n**3) / (n**2 * (n - 1))
        return (same - (squares / n - 1)) / math.sqrt(variance)


@pytest.fixture(scope="module")
def orders(tmp_path_factory) -> dict[tuple[bool, int], Order]:
    """By whether keys come from texts, and seed."""
    directory = tmp_path_factory.mktemp("permutation")
    texts = corpus()
    source = write_files(directory / "in", texts)
    ranks = {name: rank for rank, name in enumerate(ids_of(texts))}
    files = {name: i for i, name in enumerate(sorted(texts))}
    found = {}
    for by_text in (False, True):
        for seed in SEEDS:
            done = shuffle_files(
                source,
                directory / f"{by_text} {seed}",
                splits_in_unit=len(texts),
                seed=seed,
                deduplicate=by_text,
                chunks=CHUNKS,
                cells=64,
            )
            found[by_text, seed] = Order(
                np.array([ranks[name] for name in done.order]),
                np.array([files[name.partition("#")[0]] for name in done.order]),
                np.repeat(np.arange(CHUNKS), list(map(len, done.chunks))),
            )
    return found


def test_it_is_a_permutation(orders):
    for order in orders.values():
        assert np.array_equal(np.sort(order.ranks_P), np.arange(20_000))


def test_nothing_is_left_of_the_order_of_the_corpus(orders):
    for (by_text, seed), order in orders.items():
        for test, p in order.p_values():
            assert p > RARE, f"{test}, seed {seed}, keys of texts: {by_text}"


def test_what_chance_does_is_neither_rare_nor_missing(orders):
    """The same probabilities are spread evenly: an order that is too even would not be random."""
    found = [p for order in orders.values() for _, p in order.p_values()]
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert max(found) < 1 - RARE


def test_seeds_and_rules_for_keys_give_unlike_orders(orders):
    positions = [np.argsort(order.ranks_P) for order in orders.values()]
    for i, first in enumerate(positions):
        for second in positions[:i]:
            assert stats.spearmanr(first, second).pvalue > RARE
            # Nor are there documents that stay neighbours.
            after_D = np.argsort(first)[1:]
            steps = second[after_D] - second[np.argsort(first)[:-1]]
            assert (steps == 1).sum() <= 9  # Poisson of mean 1


def test_the_tests_find_an_order_that_is_not_random(orders):
    """Shuffling whole files, or one file after another, or dealing out evenly, is told."""
    random = np.random.default_rng(0)
    files_D = np.sort(orders[False, 0].files_P)
    chunks_P = np.arange(20_000) * CHUNKS // 20_000
    shuffled_files = np.argsort(random.permutation(150)[files_D], kind="stable")
    within = np.lexsort((random.random(20_000), files_D))
    buffered = np.argsort(np.arange(20_000) + 4000 * random.random(20_000))
    strided = np.argsort(np.arange(20_000) % 141, kind="stable")
    for ranks_P in (shuffled_files, within, buffered, strided):
        order = Order(ranks_P, files_D[ranks_P], chunks_P)
        assert min(p for _, p in order.p_values()) < RARE
