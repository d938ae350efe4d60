"""Hashes of n-grams against Python's exact integers; embeddings against one look-up at a time."""

import random

import pytest
import torch
from support.blt_dense import PRIMES, plain_hash

from model.layers.hash_embedding import PRIMES as OURS
from model.layers.hash_embedding import HashEmbedding, hash_ngrams

ROWS = 500_002
SIZES = range(1, 13)


def grams(sequences: list[list[int]], size: int) -> list[list[int]]:
    """The n-gram that ends at each token, filled up with zeros at the start of its sequence."""
    return [
        ([0] * size + sequence[: i + 1])[-size:]
        for sequence in sequences
        for i in range(len(sequence))
    ]


def sequences_of(seed: int) -> tuple[list[list[int]], torch.Tensor, torch.Tensor]:
    rng = random.Random(seed)
    sequences = [[rng.randrange(260) for _ in range(n)] for n in (1, 40, 2, 7, 1, 25)]
    position = torch.tensor([i for sequence in sequences for i in range(len(sequence))])
    return sequences, torch.tensor(sum(sequences, [])), position


@pytest.mark.parametrize("function", range(11))
def test_every_prime_and_size(function):
    assert OURS == PRIMES
    sequences, tokens, position = sequences_of(function)
    for size in SIZES:
        for rows in (ROWS, 1, 7, 2**31 + 11):
            expected = [plain_hash(gram, function, rows) for gram in grams(sequences, size)]
            actual = hash_ngrams(tokens, position, size, PRIMES[function], rows)
            assert actual.dtype == torch.int64
            assert actual.tolist() == expected


def test_worked_out_by_hand():
    tokens, position, p = torch.tensor([1, 2, 3]), torch.arange(3), 1000000007
    # 0 + 0 p + 1 p^2 = 1000000014000000049; 0 + 1 p + 2 p^2; 1 + 2 p + 3 p^2: nothing wraps.
    sums = [1000000014000000049, 2000000029000000105, 3000000044000000162]
    assert sums == [p**2, p + 2 * p**2, 1 + 2 * p + 3 * p**2]
    expected = [value % ROWS for value in sums]
    assert hash_ngrams(tokens, position, 3, p, ROWS).tolist() == expected
    # 10 p^2 is above 2^63, and so becomes 10000000140000000490 - 2^64 = -8446743933709551126,
    # of which the remainder is taken downwards.
    tokens = torch.tensor([10])
    wrapped = -8446743933709551126
    assert hash_ngrams(tokens, torch.tensor([0]), 3, p, 1 << 62).item() == wrapped + (2 << 62)
    assert hash_ngrams(tokens, torch.tensor([0]), 3, p, ROWS).item() == wrapped % ROWS
    assert wrapped % ROWS != abs(wrapped) % ROWS


def test_sequences_do_not_reach_into_one_another():
    tokens = torch.randint(4, 260, (30,), generator=torch.Generator().manual_seed(0))
    position = torch.tensor([*range(11), *range(19)])
    for size in SIZES:
        packed = hash_ngrams(tokens, position, size, PRIMES[0], ROWS)
        alone = hash_ngrams(tokens[11:], position[11:], size, PRIMES[0], ROWS)
        assert torch.equal(packed[11:], alone)
        reaching = hash_ngrams(tokens, torch.arange(30), size, PRIMES[0], ROWS)
        changed = (reaching != packed).nonzero()[:, 0].tolist()
        assert changed == list(range(11, 11 + size - 1))


def test_embedding_is_the_sum_of_its_tables():
    torch.manual_seed(0)
    sizes, functions, rows = (3, 8, 5), 3, 97
    embedding = HashEmbedding(sizes, functions, rows, dim=6)
    names = [f"{i}.weight" for i in range(9)]
    assert list(embedding.state_dict()) == names
    sequences, tokens, position = sequences_of(0)
    expected = torch.zeros(len(tokens), 6)
    for function in range(functions):
        for s, size in enumerate(sizes):
            table = embedding.state_dict()[names[function * len(sizes) + s]]
            for i, gram in enumerate(grams(sequences, size)):
                expected[i] += table[plain_hash(gram, function, rows)]
    torch.testing.assert_close(embedding(tokens, position), expected, rtol=0, atol=1e-5)
