"""Hash n-gram embeddings: a byte's embedding depends on the bytes before it, too.

arXiv 2412.09871, section 3.2.1. The n-grams that end at a byte are hashed by a rolling polynomial.
Each n-gram size and hash function has a table; the rows that the hashes select are summed.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PRIMES = (
    *(1000000007, 5915587277, 1500450271, 3267000013, 5754853343, 4093082899),
    *(9576890767, 3628273133, 2860486313, 5463458053, 3367900313),
)
"""One for each hash function, in order."""


def hash_ngrams(tokens_T: Tensor, position_T: Tensor, size: int, prime: int, rows: int) -> Tensor:
    """The table row of the n-gram that ends at each token, int64.

    The hash is ``sum_j t[i - size + 1 + j] * prime ** j`` over token ids, in int64 arithmetic that
    wraps; the row is its non-negative remainder by ``rows``. Missing tokens count as 0. With ids
    5, 7 and 9, size 2 and prime 10, for example, the hashes are 50, 5 + 70 = 75 and 7 + 90 = 97.

    Args:
        tokens_T: int64 ids of sequences laid end to end.
        position_T: position of each token in its sequence; n-grams do not reach beyond its start.
    """
    hash_T = torch.zeros_like(tokens_T)
    for back in range(size):
        earlier_T = tokens_T.roll(back).where(position_T >= back, 0) if back else tokens_T
        hash_T = hash_T + earlier_T * _wrapped(prime ** (size - 1 - back))
    return hash_T.remainder(rows)


def _wrapped(value: int) -> int:
    """The signed integer of 64 bits that ``value`` wraps to."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


class HashEmbedding(nn.ModuleList):
    """Tables by hash function, then by n-gram size; a list, for the published parameter names."""

    def __init__(self, sizes: Sequence[int], functions: int, rows: int, dim: int):
        """
        Args:
            sizes: lengths of the n-grams.
            functions: how many hash functions there are.
            rows: rows of each table.
            dim: width of each row.

        Raises:
            ValueError: there are more hash functions than primes.
        """
        if functions > len(PRIMES):
            raise ValueError(f"at most {len(PRIMES)} hash functions, got {functions}")
        super().__init__(nn.Embedding(rows, dim) for _ in range(functions * len(sizes)))
        self.ngrams = [(size, prime) for prime in PRIMES[:functions] for size in sizes]
        self.rows = rows

    def row_ids(self, tokens_T: Tensor, position_T: Tensor) -> Tensor:
        """The row of each table that each token looks up, int64, ``[tables, tokens]``; arguments as
        for :func:`hash_ngrams`."""
        ids = [hash_ngrams(tokens_T, position_T, *ngram, self.rows) for ngram in self.ngrams]
        return torch.stack(ids)

    def forward(self, tokens_T: Tensor, position_T: Tensor) -> Tensor:
        """The sum over all tables, ``[tokens, dim]``; arguments as for :func:`hash_ngrams`."""
        ids_KT = self.row_ids(tokens_T, position_T)
        looked_up = (table(row_T) for table, row_T in zip(self, ids_KT, strict=True))
        summed_TD: Tensor = functools.reduce(torch.add, looked_up)
        return summed_TD

    def compile_parts(self, **options: Any) -> None:
        """Compile what computes and needs neither another rank nor a whole table; arguments as for
        ``torch.compile``."""
        self.row_ids = torch.compile(self.row_ids, **options)  # type: ignore[method-assign]
