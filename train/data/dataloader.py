"""torchtitan's dataloader over patch shards: batches of rows for each rank, made ahead in a thread.

The rows of all ranks are one sequence (:mod:`train.data.row_stream`). Microbatch m of R ranks with
B rows each holds rows ``m*B*R`` to ``(m+1)*B*R``, rank r the r-th B of them: a run that is resumed
on another number of ranks, or with other batches, goes on with the next row.
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
from train.data.row_stream import Cursor, RowSettings, RowStream, Window

Batch = tuple[dict[str, Tensor], Tensor]


class ShardDataLoader(BaseDataLoader):
    """Batches of packed rows; see :mod:`train.data.packing` for what is in a row.

    Yields ``({"input": [B, S], "patch_lengths": [B, P]}, labels [B, S])``, all int32; padding is
    -1, 0 and -100.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        shards: list[str] = field(default_factory=list)
        """Shard sets: directories or URLs that jobs/patch_corpus.py wrote."""
        weights: tuple[float, ...] = ()
        """Share of the text of each shard set; none: every document once an epoch."""
        seed: int = 0
        """Of the order of shards, documents and rows."""
        threshold: float | None = None
        """Nats. Patch anew from the stored entropies, with the set's own rule and this."""
        patches_per_row: int | None = None
        """Most patches of a row; by default as many as the text of the shard sets needs."""
        shuffle_bytes: int = 64 << 20
        """Text that is shuffled, and held in memory, at a time."""
        prefetch: int = 4
        """Microbatches that are made ahead."""
        infinite: bool = True
        """Start the next epoch when one ends; otherwise stop after the first."""
        patches: bool = True
        """Give patch lengths. Entropy models read bytes only: rows then end at any byte."""

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
            unused: what torchtitan also gives, and bytes do not need: a tokenizer, and how often
                there is a checkpoint.

        Raises:
            ConfigError: a setting is wrong; names it.
            PipelineError: a shard set cannot be used; names it.
        """
        if config.prefetch < 1:
            raise ConfigError(f"dataloader.prefetch: must be at least 1, got {config.prefetch}")
        if config.weights and not config.infinite:
            raise ConfigError(
                "dataloader.weights: sets that are weighted have no common end; leave the weights "
                "out where all is to be read once"
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
        self.share = RankShare(dp_rank, dp_world_size, local_batch_size)
        self._next = self.stream.start()
        self._resumed = False

    def __iter__(self) -> Iterator[Batch]:
        """From where a state was loaded, the first time after that; otherwise from the start."""
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
        """Where the row after those of the last batch given is; the same on all ranks."""
        state = {"cursor": self._next, "made from": self.stream.fingerprint()}
        # A string is a leaf for torch.distributed.checkpoint.
        return {"rows": json.dumps(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next iteration goes on there. Any number of ranks, any batch size.

        Raises:
            ConfigError: the state is of other shards or settings.
        """
        if not state_dict:
            return
        state = json.loads(state_dict["rows"])
        saved, own = state["made from"], self.stream.fingerprint()
        changed = [name for name in own if own[name] != saved.get(name)]
        if changed:
            told = ", ".join(f"{name} (was {saved.get(name)}, is {own[name]})" for name in changed)
            raise ConfigError(
                f"dataloader: the checkpoint was made with other rows: {told}; resume with what it "
                "was made with, or leave the dataloader's state out (--checkpoint."
                "exclude_from_loading dataloader) to start the data anew"
            )
        self._next = Cursor.of_json(state["cursor"])
        self._resumed = True


class RankShare(NamedTuple):
    """Which rows of a microbatch a rank gets."""

    rank: int
    ranks: int
    batch: int


def microbatches(
    stream: RowStream, cursor: Cursor, share: RankShare, *, infinite: bool
) -> Generator[tuple[Batch, Cursor], None, None]:
    """A rank's microbatches from ``cursor`` on, each with the cursor after those of all ranks.

    Where the rows end, rows that teach nothing fill the last one up, so that all ranks have the
    same number of microbatches.
    """
    builder = _BatchBuilder(stream, share)
    # The next window is read and packed while this one is used.
    windows = prefetch(stream.windows(cursor, infinite=infinite))
    for window, cursor in windows:
        while cursor.row < len(window.rows):
            taken = builder.add(window, cursor.row)
            cursor = cursor._replace(row=cursor.row + taken, rows=cursor.rows + taken)
            if builder.full:
                yield builder.finish(), cursor
    if builder.filled:
        yield builder.finish(), cursor


class _BatchBuilder:
    """Gathers the rank's part of a microbatch from one window or several."""

    def __init__(self, stream: RowStream, share: RankShare):
        self.share, self.patches = share, stream.patches_per_row
        self.seq_len = stream.settings.seq_len
        self.filled = 0
        """Rows of the microbatch, of all ranks, that have been passed."""

    @property
    def full(self) -> bool:
        return self.filled == self.share.ranks * self.share.batch

    def add(self, window: Window, row: int) -> int:
        """Go on with the rows of a window from ``row`` on; gives how many were passed."""
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

    def finish(self) -> Batch:
        """The microbatch, filled up with empty rows."""
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
        """Rows of the microbatch, which have to be this rank's."""
        first = self.share.rank * self.share.batch
        own = slice(begin - first, end - first)
        patch_lengths = self.patch_lengths_BP
        return (
            self.input_BS[own].numpy(),
            self.labels_BS[own].numpy(),
            None if patch_lengths is None else patch_lengths[own].numpy(),
        )
