"""One shard set, read by ranges of tokens of a seeded order of its shards.

Each epoch has an order of its own, a function of the seed, the set's content and the epoch's number
alone (see :func:`_order`). In that order the set is one line of tokens, and a range of tokens
stands for the record batches whose first token lies in it. Ranges that lie end to end, however they
are cut, therefore hold every record batch exactly once. These tokens are bytes, BOS and EOS, also
where documents become tokens of a tokenizer as they are read.

Example: two shards of 70 and 30 tokens, in record batches of 30, 40 and 30 tokens, and an order
that puts the second first. Record batches begin at tokens 0 (of the second shard), 30 and 60 (of
the first). The range 0 to 50 holds the first two, 50 to 100 the third.

Opening a set reads totals of shards; where record batches lie in a shard is looked up when a range
first touches it. Shards are checked as far as training depends on them: every error names the file.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from model.patcher import Patcher
from pipeline.bpe.byte_level import BPE
from pipeline.errors import PipelineError
from pipeline.patches import recut
from pipeline.shards.format import (
    ENTROPIES,
    PATCH_LENGTHS,
    TEXT,
    read_entropies,
    read_patch_lengths,
    read_text,
    read_texts,
)
from pipeline.shards.shard_set import ShardSet
from train.data.groups import Groups
from train.data.packing import permutation
from train.data.window import DocumentArrays

CACHED_ORDERS = 4
"""Epochs whose order is kept: lanes are in neighbouring epochs."""


class _Order(NamedTuple):
    """The shards of an epoch, in their order."""

    shard_I: np.ndarray
    first_I: np.ndarray
    """The token of the epoch with which each begins, and the number of tokens."""


class ShardSource:
    """A shard set and the settings with which it is read."""

    seed: tuple[int, ...] = ()
    """Seed of the order of the shards."""

    def __init__(
        self,
        shards: ShardSet,
        patcher: Patcher | None,
        patches: bool,
        groups: Groups | None = None,
        bpe: BPE | None = None,
        patch_bpe: BPE | None = None,
    ):
        """
        Args:
            patcher: the rule that patches documents anew; None: patches as stored.
            patches: whether documents get patches at all.
            groups: gives documents a group.
            bpe: cuts texts into tokens; None: bytes.
            patch_bpe: the tokenizer whose tokens are the patches of the bpe rule.

        Raises:
            ConfigError: the shards lack the column of the groups.
            PipelineError: the shard set holds no document.
        """
        if groups is not None:
            groups.check(shards)
        self.groups, self.bpe, self.patch_bpe = groups, bpe, patch_bpe
        self.shards, self.wants_patches, self.patcher = shards, patches, patcher
        arrays = shards.shards
        self.tokens = int(arrays.tokens.sum())
        self._stored_patches = int(arrays.patches.sum())
        if not self.tokens:
            raise PipelineError(f"{shards.output.url}: holds no documents; nothing to train on")
        content = "\n".join(map(" ".join, zip(arrays.name, arrays.sha256, strict=True)))
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        """A hash of the content of all shards, wherever they lie."""
        self._orders: OrderedDict[int, _Order] = OrderedDict()

    def patches_per_token(self, sample_tokens: int) -> float:
        """Patches per token of the whole set. With another rule, an estimate from about
        ``sample_tokens`` tokens at the beginning of the first epoch."""
        if self.patcher is None:
            return self._stored_patches / self.tokens
        tokens = patches = 0
        for documents in self.read(0, 0, min(sample_tokens, self.tokens)):
            assert documents.patches_D is not None
            tokens += int(documents.lengths_D.sum())
            patches += int(documents.patches_D.sum())
        return patches / tokens

    def read(self, epoch: int, start: int, stop: int) -> Iterator[DocumentArrays]:
        """Yield the record batches whose first token is one of ``start`` to ``stop`` of an epoch.

        Raises:
            PipelineError: a shard cannot be read, or is not what its manifest says.
        """
        order = self._order(epoch)
        place = int(np.searchsorted(order.first_I, start, side="right")) - 1
        while place < len(order.shard_I) and order.first_I[place] < stop:
            shard = int(order.shard_I[place])
            stop_N = self.shards.batch_index(shard).tokens.cumsum()
            first_N = order.first_I[place] + np.append(0, stop_N[:-1])
            first, last = np.searchsorted(first_N, (start, stop)).tolist()
            if first < last:
                yield from self._batches(shard, first, last)
            place += 1

    def _order(self, epoch: int) -> _Order:
        if epoch not in self._orders:
            tokens_I = self.shards.shards.tokens
            shard_I = _order(len(tokens_I), self.seed, epoch)
            self._orders[epoch] = _Order(shard_I, np.append(0, tokens_I[shard_I].cumsum()))
            if len(self._orders) > CACHED_ORDERS:
                self._orders.popitem(last=False)
        self._orders.move_to_end(epoch)
        return self._orders[epoch]

    def _batches(self, shard: int, first: int, last: int) -> Iterator[DocumentArrays]:
        """Record batches of a shard."""
        columns = [TEXT]
        if self.wants_patches and self.patcher is None:
            columns.append(PATCH_LENGTHS)
        elif self.patcher is not None and self.patcher.reads_entropies:
            columns.append(ENTROPIES)
        if self.groups is not None:
            columns.append(self.groups.column)
        batches = self.shards.shard_batches(shard, columns, start=first, stop=last)
        for number, batch in enumerate(batches, first):
            try:
                documents = self._documents(batch)
                if self.groups is not None:
                    documents = documents._replace(groups_D=self.groups.of(batch))
                yield documents
            except ValueError as error:
                raise PipelineError(
                    f"{self.shards.path(shard)}: cannot be read (record batch {number}): {error}; "
                    "restore it, or make the shards again"
                ) from error

    def _documents(self, batch: pa.RecordBatch) -> DocumentArrays:
        """
        Raises:
            ValueError: the columns do not fit together.
        """
        text, lengths_D = read_text(batch)
        if self.bpe is not None:
            ids, counts_D = self.bpe.encode(batch[TEXT].to_pylist())
            return DocumentArrays(ids, counts_D + 2, None, None)
        if not self.wants_patches:
            return DocumentArrays(text, lengths_D, None, None)
        if self.patcher is None:
            lengths_P, patches_D = read_patch_lengths(batch)
        else:
            lengths_P, patches_D = self._recut(self.patcher, batch, lengths_D)
        _check_patches(lengths_P, patches_D, lengths_D)
        return DocumentArrays(text, lengths_D, lengths_P, patches_D)

    def _recut(
        self, patcher: Patcher, batch: pa.RecordBatch, lengths_D: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Patch lengths by another rule, and how many each document has."""
        h_T = np.zeros(int(lengths_D.sum()), np.float16)  # a rule without entropies needs no values
        if patcher.reads_entropies:
            h_T, counts_D = read_entropies(batch)
            if not np.array_equal(counts_D, lengths_D):
                raise ValueError("there is not one entropy for each token")
        texts, ends_T = read_texts(batch) if patcher.reads_tokens else (), None
        if patcher.tokenizer is not None and self.patch_bpe is not None:
            ends_T = self.patch_bpe.ends(batch[TEXT].to_pylist())
        patched = recut(patcher, h_T, lengths_D, texts, ends_T)
        return patched.patch_lengths_P.astype(np.int32), patched.patches_D


def _check_patches(lengths_P: np.ndarray, patches_D: np.ndarray, lengths_D: np.ndarray) -> None:
    stops_D = patches_D.cumsum()
    if patches_D.min(initial=2) < 2 or stops_D[-1] != len(lengths_P) or lengths_P.min() < 1:
        raise ValueError("patch lengths: a document has fewer than 2, or a patch has no token")
    ends_P = lengths_P.cumsum(dtype=np.int64)
    if not np.array_equal(ends_P[stops_D - 1], lengths_D.cumsum()):
        row = int(np.argmax(ends_P[stops_D - 1] != lengths_D.cumsum()))
        raise ValueError(
            f"patch lengths of row {row} do not sum to the {lengths_D[row]} tokens of its text"
        )
    if (lengths_P[stops_D - patches_D] != 1).any():
        raise ValueError(
            "patch lengths: a document's first patch has more than the one token BOS, which no BLT "
            "reads; patch the corpus again without the published variant of the static rule, or "
            "choose another rule for training (--dataloader.rule)"
        )


def _order(count: int, seed: tuple[int, ...], epoch: int) -> np.ndarray:
    """The order of the shards in an epoch.

    >>> [_order(5, (7, 2, 0), epoch).tolist() for epoch in range(3)]
    [[4, 0, 1, 3, 2], [0, 4, 2, 1, 3], [0, 2, 3, 1, 4]]
    """
    return permutation(np.random.PCG64(np.random.SeedSequence([*seed, epoch])), count)
