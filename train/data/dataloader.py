"""torchtitan's dataloader over patch shards: each rank's microbatches of rows, made in a thread.

The rows of all ranks are one sequence (:mod:`train.data.row_stream`). Microbatch m of R ranks with
B rows each holds rows ``m*B*R`` to ``(m+1)*B*R``, and rank r gets the r-th B of them. A run that
resumes on another number of ranks, or with another B, continues with the next row.

Every rank reads and packs each window, but fills the arrays of its own rows only. The state is the
cursor after the last microbatch that was yielded, not after those that the thread has made.
"""

import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchtitan.components.dataloader import BaseDataLoader

from pipeline.errors import ConfigError
from pipeline.prefetch import prefetch
from train.data.filling import empty_rows, fill_rows
from train.data.provenance import compare_sets
from train.data.row_stream import Cursor, PackedWindow, RowSettings, RowStream

Microbatch = tuple[dict[str, Tensor], Tensor]
"""Inputs by name, and labels; see :class:`ShardDataLoader`."""


class ShardDataLoader(BaseDataLoader):
    """Microbatches of packed rows; :mod:`train.data.packing` describes a row.

    Yields ``({"input": [B, S], "patch_lengths": [B, P]}, labels [B, S])``, all int32, padded with
    -1, 0 and -100.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        shards: list[str] = field(default_factory=list)
        """Shard sets: directories or URLs that jobs/patch_corpus.py wrote."""
        weights: tuple[float, ...] = ()
        """Share of the text of each shard set; default: every document once per epoch."""
        seed: int = 0
        """Seed of the order of shards, documents and rows."""
        threshold: float | None = None
        """Re-patch the stored entropies with the set's own rule and this threshold (nats)."""
        patches_per_row: int | None = None
        """Most patches per row; default: as many as the text of the shard sets needs."""
        shuffle_bytes: int = 64 << 20
        """Bytes of text that are shuffled, and held in memory, at a time."""
        prefetch: int = 4
        """Microbatches that are made ahead of training."""
        infinite: bool = True
        """Start the next epoch when one ends; otherwise stop after the first."""
        patches: bool = True
        """Yield patch lengths. Without them, as entropy models read rows, rows end at any byte."""
        allow_mixed_patches: bool = False
        """Train on, resume from and validate with patches of different rules or entropy models."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        seq_len: int,
        local_batch_size: int,
        **unused: object,
    ):
        """
        Args:
            unused: torchtitan's further arguments, a tokenizer and the checkpoint interval.

        Raises:
            ConfigError: a setting is wrong; the message names it.
            PipelineError: a shard set cannot be used; the message names it.
        """
        if config.prefetch < 1:
            raise ConfigError(f"dataloader.prefetch: must be at least 1, got {config.prefetch}")
        if config.weights and not config.infinite:
            raise ConfigError(
                "dataloader.weights: weighted sets have no common end; leave the weights out to "
                "read every document once"
            )
        self.config = config
        settings = RowSettings(
            seq_len=seq_len,
            seed=config.seed,
            weights=tuple(config.weights),
            threshold=config.threshold,
            patches=config.patches,
            patches_per_row=config.patches_per_row,
            shuffle_bytes=config.shuffle_bytes,
        )
        self.stream = RowStream(config.shards, settings)
        self.notes: list[str] = []
        """Sentences about the shard sets that the log should hold."""
        if config.patches:
            sets, allowed = self.stream.provenance, config.allow_mixed_patches
            self.notes = compare_sets(sets, allowed=allowed)
        self.share = RankShare(dp_rank, dp_world_size, local_batch_size)
        self._next = self.stream.start()
        self._resumed = False

    def __iter__(self) -> Iterator[Microbatch]:
        """Start from the state that was loaded last, once; otherwise from the first row."""
        if not self._resumed:
            self._next = self.stream.start()
        self._resumed = False
        batches = microbatches(self.stream, self._next, self.share, infinite=self.config.infinite)
        # One core is enough, and all that the model may leave.
        with closing(prefetch(batches, self.config.prefetch, cores=1)) as ahead:
            for batch, cursor in ahead:
                self._next = cursor
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """The cursor of the row after the last microbatch that was yielded, as JSON; the same on
        all ranks."""
        state = {"cursor": self._next, "made from": self.stream.fingerprint()}
        # A string is a leaf for torch.distributed.checkpoint.
        return {"rows": json.dumps(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration continue from a state of any number of ranks and batch size.

        Raises:
            ConfigError: the state belongs to other shards or settings; names what differs.
        """
        if not state_dict:
            return
        state = json.loads(state_dict["rows"])
        saved, own = state["made from"], self.stream.fingerprint()
        changed = [name for name in own if own[name] != saved.get(name)]
        if changed:
            values = [f"{name} (was {saved.get(name)}, is {own[name]})" for name in changed]
            raise ConfigError(
                f"dataloader: the checkpoint was made with other rows: {', '.join(values)}; resume "
                "with the same shards and settings, or leave the dataloader's state out "
                "(--checkpoint.exclude_from_loading dataloader) to start from the first row"
            )
        self._next = Cursor.from_json(state["cursor"])
        self._resumed = True


class RankShare(NamedTuple):
    """The part of a microbatch that a rank gets: the ``rank``-th of ``ranks`` equal parts."""

    rank: int
    ranks: int
    batch: int
    """Rows per rank."""


def microbatches(
    stream: RowStream, cursor: Cursor, share: RankShare, *, infinite: bool
) -> Generator[tuple[Microbatch, Cursor], None, None]:
    """Yield a rank's microbatches from ``cursor`` on, each with the cursor after the rows of all
    ranks.

    When the rows end, empty rows fill the last microbatch up, so that all ranks have the same
    number of microbatches.
    """
    builder = _BatchBuilder(stream, share)
    # The next window is read and packed while this one is used.
    windows = prefetch(stream.windows(cursor, infinite=infinite))
    for window, cursor in windows:
        while cursor.row < len(window.rows):
            passed = builder.add(window, cursor.row)
            cursor = cursor._replace(row=cursor.row + passed, rows=cursor.rows + passed)
            if builder.full:
                yield builder.finish(), cursor
    if builder.filled:
        yield builder.finish(), cursor


class _BatchBuilder:
    """Collects a rank's part of a microbatch, whose rows may come from several windows."""

    def __init__(self, stream: RowStream, share: RankShare):
        self.share, self.patches = share, stream.patches_per_row
        self.seq_len = stream.settings.seq_len
        self.filled = 0
        """Rows of the microbatch, over all ranks, that have been passed so far."""

    @property
    def full(self) -> bool:
        return self.filled == self.share.ranks * self.share.batch

    def add(self, window: PackedWindow, row: int) -> int:
        """Take the rows of a window from ``row`` on; returns how many were passed, over all ranks.

        Example: rank 1 of 2 with 3 rows each needs rows 3-5 of a microbatch of 6. A window with 4
        rows left passes rows 0-3, of which row 3 is filled; the next window fills rows 4 and 5.
        """
        rank, ranks, batch = self.share
        if not self.filled:
            self._allocate()
        passed = min(ranks * batch - self.filled, len(window.rows) - row)
        begin = max(self.filled, rank * batch)
        end = min(self.filled + passed, (rank + 1) * batch)
        if begin < end:
            at = row + begin - self.filled
            fill_rows(window.documents, window.rows, at, *self._arrays(begin, end))
        self.filled += passed
        return passed

    def finish(self) -> Microbatch:
        """The rank's part of the microbatch, filled up with empty rows."""
        rank, _, batch = self.share
        begin = max(self.filled, rank * batch)
        if begin < (rank + 1) * batch:
            empty_rows(*self._arrays(begin, (rank + 1) * batch))
        self.filled = 0
        inputs = {"input": self.input_BS}
        if self.patch_lengths_BP is not None:
            inputs["patch_lengths"] = self.patch_lengths_BP
        return inputs, self.labels_BS

    def _allocate(self) -> None:
        def rows(width: int) -> Tensor:
            return torch.empty(self.share.batch, width, dtype=torch.int32)

        self.input_BS, self.labels_BS = rows(self.seq_len), rows(self.seq_len)
        self.patch_lengths_BP = None if self.patches is None else rows(self.patches)

    def _arrays(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Views of rows ``begin`` to ``end`` of the microbatch, which are this rank's."""
        first = self.share.rank * self.share.batch
        own = slice(begin - first, end - first)
        patch_lengths = self.patch_lengths_BP
        return (
            self.input_BS[own].numpy(),
            self.labels_BS[own].numpy(),
            None if patch_lengths is None else patch_lengths[own].numpy(),
        )
