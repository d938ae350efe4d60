"""One shard set, read epoch after epoch in a seeded order of its shards, from any record batch on.

Each epoch has an order of its own, a function of the seed and the epoch's number alone (see
:func:`_order`), so a :class:`Position` of four numbers is all that a resumed run needs: no order is
stored, and no shard is read twice or left out. Within a shard, record batches keep their order;
:mod:`train.data.packing` shuffles the documents of a window.

Shards are checked as far as training depends on them: every error names the file.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from model.patcher import Patcher
from pipeline.errors import ConfigError, PipelineError
from pipeline.patches import recut
from pipeline.shards.format import (
    ENTROPIES,
    PATCH_LENGTHS,
    TEXT,
    read_entropies,
    read_patch_lengths,
    read_text,
)
from pipeline.shards.shard_set import ShardSet
from train.data.packing import permutation
from train.data.window import DocumentArrays


class Position(NamedTuple):
    """The record batch of a shard set that is read next."""

    epoch: int = 0
    shard: int = 0
    """Its place in the epoch's order."""
    batch: int = 0
    tokens: int = 0
    """Tokens that were read before it, in all epochs."""


class ShardSource:
    """A shard set and the settings with which it is read."""

    def __init__(
        self, shards: ShardSet, seed: tuple[int, ...], threshold: float | None, patches: bool
    ):
        """
        Args:
            seed: of the order of the shards.
            threshold: nats; re-patch the stored entropies with it. None: patches as stored.
            patches: whether documents get patches at all.

        Raises:
            ConfigError: the shards cannot be patched with another threshold.
            PipelineError: the shard set holds no document.
        """
        self.shards, self.seed, self.wants_patches = shards, seed, patches
        self.arrays = shards.shards
        statistics = shards.statistics
        self.tokens, self.stored_patches = statistics.tokens, statistics.patches
        if not statistics.documents:
            raise PipelineError(f"{shards.output.url}: holds no documents; nothing to train on")
        self.patcher = None if threshold is None else self._patcher(threshold)

    def _patcher(self, threshold: float) -> Patcher:
        what = f"dataloader.threshold: {self.shards.output.url}"
        if not self.shards.has_entropies:
            raise ConfigError(
                f"{what} was made without entropies; make it with them, or leave the threshold out"
            )
        try:
            return replace(self.shards.patcher, threshold=threshold)
        except ValueError as error:
            raise ConfigError(
                f"{what} cannot be patched with one: {error}; leave the threshold out"
            ) from error

    @property
    def fingerprint(self) -> str:
        """A hash of the content of all shards, wherever they lie."""
        content = list(zip(self.arrays.name, self.arrays.sha256, strict=True))
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def patches_per_token(self, sample_tokens: int) -> float:
        """Patches per token of the whole set. With another threshold, an estimate from about
        ``sample_tokens`` tokens at the beginning of the set."""
        if self.patcher is None:
            return self.stored_patches / self.tokens
        tokens = patches = 0
        for number in range(len(self.arrays.name)):
            for documents, _ in self._batches(number, 0):
                assert documents.patches_D is not None
                tokens += int(documents.lengths_D.sum())
                patches += int(documents.patches_D.sum())
                if tokens >= sample_tokens:
                    return patches / tokens
        return patches / tokens

    def read(self, position: Position, tokens: int) -> Iterator[tuple[DocumentArrays, Position]]:
        """Yield record batches, each with the position after it, until ``tokens`` tokens have been
        read, including those before ``position``. Record batches are not cut: the last one may go
        beyond ``tokens``.

        Raises:
            PipelineError: a shard cannot be read, or is not what its manifest says.
        """
        epoch, shard, batch, read = position
        while read < tokens:
            order = _order(len(self.arrays.name), self.seed, epoch)
            if shard == len(order):
                epoch, shard = epoch + 1, 0
                continue
            for documents, is_last in self._batches(int(order[shard]), batch):
                batch += 1
                read += int(documents.lengths_D.sum())
                if is_last:
                    self._check_read(read, epoch, order[: shard + 1])
                    shard, batch = shard + 1, 0
                yield documents, Position(epoch, shard, batch, read)
                if read >= tokens:
                    return

    def _check_read(self, read: int, epoch: int, order: np.ndarray) -> None:
        """Compare the tokens read up to the end of a shard, the last one of ``order``, with the
        manifest's."""
        expected = epoch * self.tokens + int(self.arrays.tokens[order].sum())
        if read != expected:
            where = self.shards.path(int(order[-1]))
            raise PipelineError(
                f"{where}: holds other text than its manifest says ({read - expected:+} tokens); "
                "restore it, or make the shards again"
            )

    def _batches(self, shard: int, first: int) -> Iterator[tuple[DocumentArrays, bool]]:
        """The record batches of a shard from number ``first`` on, and whether each is the last."""
        where, number = self.shards.path(shard), first
        columns = [TEXT]
        if self.wants_patches:
            columns.append(PATCH_LENGTHS if self.patcher is None else ENTROPIES)
        try:
            count = len(self.shards.batch_index(shard).rows)
            if first >= count:
                raise ValueError(f"there are only {count} record batches")
            for batch in self.shards.shard_batches(shard, columns, start=first):
                yield self._documents(batch), number + 1 == count
                number += 1
        except PipelineError:
            raise
        except Exception as error:  # each filesystem has its own; all mean the same here
            raise PipelineError(
                f"{where}: cannot be read (record batch {number}): {error}; restore it, or make "
                "the shards again"
            ) from error

    def _documents(self, batch: pa.RecordBatch) -> DocumentArrays:
        """
        Raises:
            ValueError: the columns do not fit together.
        """
        text, lengths_D = read_text(batch)
        if not self.wants_patches:
            return DocumentArrays(text, lengths_D, None, None)
        if self.patcher is None:
            lengths_P, patches_D = read_patch_lengths(batch)
        else:
            h_T, counts_D = read_entropies(batch)
            if not np.array_equal(counts_D, lengths_D):
                raise ValueError("there is not one entropy for each token")
            patched = recut(self.patcher, h_T, lengths_D)
            lengths_P, patches_D = patched.patch_lengths_P.astype(np.int32), patched.patches_D
        _check_patches(lengths_P, patches_D, lengths_D)
        return DocumentArrays(text, lengths_D, lengths_P, patches_D)


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
            "reads; patch the corpus again without the published variant of the static rule"
        )


def _order(count: int, seed: tuple[int, ...], epoch: int) -> np.ndarray:
    """The order of the shards in an epoch.

    >>> [_order(5, (7, 2, 0), epoch).tolist() for epoch in range(3)]
    [[4, 0, 1, 3, 2], [0, 4, 2, 1, 3], [0, 2, 3, 1, 4]]
    """
    return permutation(np.random.PCG64(np.random.SeedSequence([*seed, epoch])), count)
