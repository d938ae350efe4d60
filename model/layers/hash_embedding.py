"""Hash n-gram embeddings: what a byte is called in the light of those before it.

arXiv 2412.09871, section 3.2.1. The n-gram that ends at a byte is hashed by a rolling polynomial
and looked up in one table for each n-gram size and hash function; the rows are summed.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

PRIMES = (
    *(1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899),
    *(9576890767, 3628273133, 2860486313, 5463458053, 3367900313),
)
"""One for each hash function, in order."""


def hash_ngrams(tokens_T: Tensor, position_T: Tensor, size: int, prime: int, rows: int) -> Tensor:
    """Table row of the n-gram that ends at each token.

    ``sum_j t[i - size + 1 + j] * prime ** j`` over token ids, in int64 arithmetic that wraps, then
    the (non-negative) remainder by ``rows``. Missing tokens count as 0.

    Args:
        tokens_T: int64 ids of sequences laid end to end.
        position_T: of each token within its sequence, beyond whose start n-grams don't reach.
    """
    hash_T = torch.zeros_like(tokens_T)
    for back in range(size):
        earlier_T = tokens_T.roll(back).where(position_T >= back, 0) if back else tokens_T
        hash_T = hash_T + earlier_T * _wrapped(prime ** (size - 1 - back))
    return hash_T.remainder(rows)


def _wrapped(value: int) -> int:
    """What is left of ``value`` in a signed integer of 64 bits."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


class HashEmbedding(nn.ModuleList):
    """Tables by hash function, then by n-gram size; a list, for the published parameter names."""

    def __init__(self, sizes: Sequence[int], functions: int, rows: int, dim: int):
        """
        Args:
            rows: of each table.

        Raises:
            ValueError: more hash functions than there are primes.
        """
        if functions > len(PRIMES):
            raise ValueError(f"at most {len(PRIMES)} hash functions, got {functions}")
        super().__init__(nn.Embedding(rows, dim) for _ in range(functions * len(sizes)))
        self.ngrams = [(size, prime) for prime in PRIMES[:functions] for size in sizes]
        self.rows = rows

    def forward(self, tokens_T: Tensor, position_T: Tensor) -> Tensor:
        """Sum over all tables, ``[tokens, dim]``; arguments as for :func:`hash_ngrams`."""
        looked_up = (
            table(hash_ngrams(tokens_T, position_T, size, prime, self.rows))
            for table, (size, prime) in zip(self, self.ngrams, strict=True)
        )
        return functools.reduce(torch.add, looked_up)
