"""The bytes that token ids stand for: how many labels hold, and which they are.

Models are compared in bits per byte, so their labels have to be the same bytes, whatever cut the
text into tokens and packed these into rows. The *hash of the labels' bytes* tells: it is a sum over
all pairs of neighbouring bytes, BOS and EOS included, of a random number for each pair. A label
adds the pairs within its token, and the pair of its first byte with the last byte of the token
before it, which is the input at its position. So neither the order of rows, nor the ranks that
count them, nor the places where documents are cut change the sum, and a byte that is left out or
counted twice does.

Example: ``hi`` as bytes has the labels ``h``, ``i`` and EOS, which add (BOS, h), (h, i) and
(i, EOS); as one token it has the labels ``hi`` and EOS, which add (BOS, h) + (h, i), and (i, EOS):

>>> bytewise, tokens = TokenBytes(bytes_of_bytes()), TokenBytes([b""] * 4 + [b"hi"])
>>> h, i = 104 + 4, 105 + 4
>>> bytewise.hash(np.array([1, h, i]), np.array([h, i, 2])) == tokens.hash(
...     np.array([1, 4]), np.array([4, 2])
... )
True
>>> bytewise.count(np.array([h, i, 2])), tokens.count(np.array([4, 2, -100]))
(2, 2)
"""

from collections.abc import Sequence

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE

BOS, EOS = 256, 257
"""Symbols beside the 256 bytes."""
HASH_BITS = 48
"""A hash is a number of so many bits, which a float64, as metrics are, holds exactly."""


def bytes_of_bytes() -> list[bytes]:
    """The bytes of each id of byte models."""
    return [bytes([i - BYTE_OFFSET]) if i >= BYTE_OFFSET else b"" for i in range(VOCAB_SIZE)]


class TokenBytes:
    """The bytes of each id of a vocabulary."""

    def __init__(self, bytes_V: Sequence[bytes]):
        """
        Args:
            bytes_V: the bytes of each id; none for those that mark structure.
        """
        self.bytes_V = bytes_V
        self.count_V = np.fromiter(map(len, bytes_V), np.int64, len(bytes_V))
        """Bytes of each id."""
        symbols = np.frombuffer(b"".join(bytes_V), np.uint8)
        end_V = self.count_V.cumsum()
        start_V = end_V - self.count_V
        self._first_V = np.full(len(bytes_V), EOS)
        self._last_V = np.full(len(bytes_V), BOS)
        filled = self.count_V > 0
        self._first_V[filled] = symbols[start_V[filled]]
        self._last_V[filled] = symbols[end_V[filled] - 1]
        random = np.random.PCG64(np.random.SeedSequence(20)).random_raw((EOS + 1) ** 2)
        self._pairs = random.reshape(EOS + 1, EOS + 1)
        # Sums wrap around at 2^64; so do their differences.
        sums = np.zeros(len(symbols) + 1, np.uint64)
        sums[2:] = self._pairs[symbols[:-1], symbols[1:]].cumsum(dtype=np.uint64)
        self._inner_V = np.zeros(len(bytes_V), np.uint64)
        self._inner_V[filled] = sums[end_V[filled]] - sums[start_V[filled] + 1]

    def count(self, labels: np.ndarray) -> int:
        """Bytes of the labels; negative ones, which no loss counts, and EOS have none."""
        return int(self.count_V[labels[labels >= 0]].sum())

    def hash(self, inputs: np.ndarray, labels: np.ndarray) -> int:
        """The hash of the labels' bytes. Hashes of disjoint labels add up to that of them all, up
        to a multiple of ``2 ** HASH_BITS``.

        Args:
            inputs: the token before each label.
        """
        counted = labels >= 0
        inputs, labels = inputs[counted], labels[counted]
        numbers = self._pairs[self._last_V[inputs], self._first_V[labels]] + self._inner_V[labels]
        return int(numbers.sum(dtype=np.uint64)) % 2**HASH_BITS


BYTES = TokenBytes(bytes_of_bytes())
"""The bytes of byte models' ids."""
assert BYTES._first_V[EOS_ID] == EOS and BYTES._last_V[BOS_ID] == BOS
