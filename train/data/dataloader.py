"""torchtitan's dataloader over patch shards: a rank's microbatches, made in a thread, and a state.

:mod:`train.data.microbatches` says which rows a rank takes. The state has a key per lane, which the
ranks that read the lane write, and one for what they all know; a checkpoint holds the union. The
state is that of the last microbatch that was yielded, not of those that the thread has made. A run
that resumes on another number of ranks, or with other microbatches, continues with the next row.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.tools.logging import logger

from pipeline.errors import ConfigError
from pipeline.prefetch import prefetch
from train.data.groups import Groups
from train.data.lanes import Cursor, lane_from_json, lane_to_json
from train.data.microbatches import Microbatch, filled, microbatches
from train.data.provenance import compare_sets
from train.data.ranks import RankShare
from train.data.row_settings import LANES, RowSettings, RuleSettings
from train.data.row_stream import RowStream
from train.data.tokenizer import TitanTokenizer

COMMON_KEY, LANE_KEY = "rows", "lane "
_EXCLUDE = "--checkpoint.exclude_from_loading dataloader"
MUCH_TEXT = 1.5
"""Text that a rank reads, relative to its share, from which on the log says so."""


class ShardDataLoader(BaseDataLoader):
    """Yields each :data:`~train.data.microbatches.Microbatch` of a rank."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        shards: list[str] = field(default_factory=list)
        """Shard sets: directories or URLs that jobs/patch_corpus.py wrote."""
        weights: tuple[float, ...] = ()
        """Share of the text of each shard set; default: every document once per epoch."""
        seed: int = 0
        """Seed of the order of shards, documents and rows."""
        rule: str | None = None
        """Re-patch documents by this boundary rule; default: as the shard sets are patched."""
        threshold: float | None = None
        """Re-patch the stored entropies with this threshold (nats)."""
        threshold_add: float | None = None
        """Re-patch with this second threshold of the combined rule (nats)."""
        patch_size: float | None = None
        """Re-patch with this size (tokens), for the rules static and top-k."""
        max_patch_length: int | None = None
        """Re-patch with at most so many tokens per patch."""
        patch_tokenizer: str | None = None
        """For the rule bpe: the byte-level tokenizer (a tokenizer.json, a directory that holds one,
        or a hub id) whose tokens become patches; default: that of the shard set."""
        patches_per_row: int | None = None
        """Most patches per row; default: as many as the text of the shard sets needs."""
        lanes: int = LANES
        """Parts of the text that are read side by side; fewer if the text is small. R ranks read
        no more than they need if R divides it. A checkpoint's number stays."""
        shuffle_bytes: int | None = None
        """Bytes of text that all ranks together hold in memory, and shuffle, at a time; default: 8
        MiB per lane and shard set (of 4 sets at most)."""
        prefetch: int = 4
        """Microbatches that are made ahead of training."""
        infinite: bool = True
        """Start the next epoch when one ends; otherwise stop after the first."""
        patches: bool = True
        """Yield patch lengths. Without them, as entropy models read rows, rows end at any byte."""
        change_on_resume: bool = False
        """Let a resumed run have other shard sets, weights, rules or rows than its checkpoint; each
        set goes on at its place."""
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
        by: str | None = None,
        tokenizer: TitanTokenizer | None = None,
        **unused: object,
    ):
        """
        Args:
            tokenizer: the one whose ids rows hold; None: that of bytes.
            by: a column of metadata: microbatches also hold ``groups``, [B, S] int32, the number of
                the value that the column has in the document of each label; ``stream.groups`` has
                the values.
            unused: torchtitan's further arguments, such as the checkpoint interval.

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
            rule=RuleSettings(
                rule=config.rule,
                threshold=config.threshold,
                threshold_add=config.threshold_add,
                patch_size=config.patch_size,
                max_patch_length=config.max_patch_length,
                tokenizer=config.patch_tokenizer,
            ),
            patches=config.patches,
            patches_per_row=config.patches_per_row,
            shuffle_bytes=config.shuffle_bytes,
            lanes=config.lanes,
        )
        bpe = None if tokenizer is None else tokenizer.bpe
        self.stream = RowStream(config.shards, settings, None if by is None else Groups(by), bpe)
        self.notes: list[str] = []
        """Sentences about the shard sets that the log should hold."""
        if config.patches:
            sets, allowed = self.stream.provenance, config.allow_mixed_patches
            self.notes = compare_sets(sets, allowed=allowed)
        self.share = RankShare(dp_rank, dp_world_size, local_batch_size)
        self._next = self._start()
        self._resumed = False
        factor = self.share.text_factor(self.stream.lanes)
        # The lanes of a small set are fewer, whatever the flag says, and reading it costs little.
        if factor > MUCH_TEXT and self.stream.lanes == config.lanes and dp_rank == 0:
            more = math.ceil(config.lanes / dp_world_size) * dp_world_size
            logger.warning(
                f"dataloader: each of the {dp_world_size} ranks reads {factor:.1f} times its share "
                f"of the text, as their number does not divide {config.lanes} lanes; a new run "
                f"reads just its share with --dataloader.lanes {more}"
            )

    def _start(self) -> Cursor:
        return self.stream.start(self.share.lanes(self.stream.lanes))

    def __iter__(self) -> Iterator[Microbatch]:
        """Start from the state that was loaded last, once; otherwise from the first row."""
        if not self._resumed:
            self._next = self._start()
        self._resumed = False
        batches = microbatches(self.stream, self._next, self.share, infinite=self.config.infinite)
        # One core is enough, and all that the model may leave.
        with closing(prefetch(batches, self.config.prefetch, cores=1)) as ahead:
            for batch, rows, opened in ahead:
                self._next = Cursor(rows, {**self._next.lanes, **opened})
                yield batch

    def empty_batch(self) -> Microbatch:
        """A microbatch that no loss depends on."""
        return filled(self.stream, self.share.batch, [])

    @property
    def rows_read(self) -> int:
        """Rows, over all ranks, before the next microbatch."""
        return self._next.rows

    @property
    def last_rows(self) -> Sequence[int]:
        """Numbers, in the sequence of all rows, of this rank's rows in the last microbatch."""
        first = self.rows_read - self.share.ranks * self.share.batch
        return [int(row) for row in self.share.rows(first, self.stream.lanes)]

    def state_dict(self) -> dict[str, Any]:
        """The cursor of the row after the last microbatch that was yielded, as JSON strings.

        One key is the same on all ranks, and one per lane is the same on all ranks that have it. A
        loader that stops after an epoch has no state: its ranks are not at the same row.
        """
        if not self.config.infinite:
            return {}
        common = {
            "rows": self._next.rows,
            "lanes": self.stream.lanes,
            "made from": self.stream.fingerprint(),
        }
        # A string is a leaf for torch.distributed.checkpoint.
        lanes = {
            f"{LANE_KEY}{lane}": json.dumps(lane_to_json(cursor))
            for lane, cursor in self._next.lanes.items()
        }
        return {COMMON_KEY: json.dumps(common), **lanes}

    def expect(self, keys: Collection[str]) -> None:
        """Prepare for loading: let :meth:`state_dict` have keys that a checkpoint holds.

        Args:
            keys: those of the dataloader's state in the checkpoint.

        Raises:
            ConfigError: it is a checkpoint of an earlier release.
        """
        lanes = sum(key.startswith(LANE_KEY) for key in keys)
        if COMMON_KEY in keys and not lanes:
            raise ConfigError(
                "dataloader: the checkpoint was made by an earlier release, which ordered rows in "
                "another way; finish the run with that release, or start from the first row (leave "
                f"the dataloader's state out: {_EXCLUDE})"
            )
        if lanes and lanes != self.stream.lanes:
            self.stream.set_lanes(lanes)
            self._next = self._start()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next iteration continue from a state of any number of ranks and batch size.

        Args:
            state_dict: with the keys of at least the lanes that this rank reads.

        Raises:
            ConfigError: the state belongs to other shards or settings; names what differs.
        """
        if not state_dict:
            return
        common = json.loads(state_dict[COMMON_KEY])
        saved, own = common["made from"], self.stream.fingerprint()
        changed = [name for name in {**own, "tokenizer": None} if own.get(name) != saved.get(name)]
        fixed = [name for name in changed if name in ("seed", "packing version", "tokenizer")]
        if changed and (fixed or not self.config.change_on_resume):
            values = [f"{name} (was {saved.get(name)}, is {own.get(name)})" for name in changed]
            way_on = "resume with the same shards and settings, or "
            if not fixed:
                way_on += (
                    "let each set go on at its place with other ones "
                    "(--dataloader.change-on-resume), or "
                )
            raise ConfigError(
                f"dataloader: the checkpoint was made with other rows: {', '.join(values)}; "
                f"{way_on}leave the dataloader's state out ({_EXCLUDE}) to start from the first row"
            )
        self.stream.set_lanes(common["lanes"])
        lanes = {
            lane: lane_from_json(json.loads(state_dict[f"{LANE_KEY}{lane}"]))
            for lane in self.share.lanes(self.stream.lanes)
        }
        self._next = Cursor(common["rows"], lanes)
        if changed:
            self._next = self.stream.continued(common["rows"], lanes, saved["shards"])
            logger.warning(f"dataloader: from row {common['rows']} on {', '.join(changed)} change")
        self._resumed = True
