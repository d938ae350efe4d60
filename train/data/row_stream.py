"""Shard sets → an endless, seeded sequence of rows. No torch, no threads, no ranks.

The sequence is a function of the shards, the seed and the settings alone. It is made *window* by
window: a window takes the next record batches of every shard set, together about ``shuffle_bytes``
of text, shuffles their documents, packs them into rows and shuffles the rows. Every set is in every
window, in its share, because rows are packed best from text of all kinds.

**Windows.** Window w reads each shard set until at least ``_until(set, w)`` tokens of it have been
read since the start of the run. That limit depends on w alone, not on where earlier windows ended,
so overshoot does not add up. Example: a set of 100 tokens in record batches of 30, 30, 30 and 10,
with two windows per epoch, has the limits 50, 100, 150, ... Window 0 reads 60 tokens and window 1
the other 40, so an epoch ends exactly where window 1 ends. Without weights an epoch is always a
whole number of windows, in which each document is read once. With weights each set starts its own
next epoch whenever its share of the text requires it.

**Cursors.** A :class:`Cursor` names the next row: the number of its window, the place in each shard
set where that window begins, and the row's number in the window. A checkpoint holds this cursor and
nothing else about the data. To resume, the window is read and packed again, which gives the same
rows, and the rows before the cursor are skipped: no row is lost or repeated.

**Ranks.** Rows are numbered without regard to ranks, and all ranks hold the same cursor. Ranks only
divide the rows from the cursor on: R ranks with B rows each take the next R * B rows at once (see
:mod:`train.data.dataloader`). Example: 2 ranks with 2 rows each take rows 0-3 (rank 0 rows 0 and 1,
rank 1 rows 2 and 3), then rows 4-7. The run stops, and the cursor names row 8. It resumes on 3
ranks with 1 row each: they take rows 8, 9 and 10, then 11, 12 and 13.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from model.provenance import PatchProvenance
from pipeline.errors import ConfigError
from pipeline.shards.provenance import provenance_of
from pipeline.shards.shard_set import ShardSet
from train.data.packing import Rows, pack_rows
from train.data.shard_source import Position, ShardSource
from train.data.window import DocumentArrays, WindowBuilder

PACKING_VERSION = 2
"""Changes when the same shards, seed and settings give other rows than before."""
SLACK = 1.005
"""Patches per row, relative to what the text needs on average. The surplus pays for rows that the
packing cannot fill exactly."""
MOST_REPEATS = 100
"""How often one window may hold all of a weighted set."""
LEAST_TOKENS = 8
LEAST_PATCHES = 4
READ_AHEAD = 4 << 20
"""Tokens by which a window is expected to exceed its limit, because record batches are not cut."""
SAMPLE_TOKENS = 4 << 20
"""Tokens of each set that are re-patched to estimate the patches that another threshold gives."""


@dataclass(frozen=True)
class RowSettings:
    """The settings that, with the shards, determine the rows."""

    seq_len: int
    """Tokens per row."""
    seed: int = 0
    weights: tuple[float, ...] = ()
    """Share of the text of each shard set; empty: every document once per epoch."""
    threshold: float | None = None
    """Nats; re-patch the stored entropies with it. None: patches as stored."""
    patches: bool = True
    """True if rows end where patches do."""
    patches_per_row: int | None = None
    """Most patches per row; None: as many as the text of the shards needs."""
    shuffle_bytes: int = 64 << 20
    """Bytes of text per shuffle window."""


class Cursor(NamedTuple):
    """The row that is read next."""

    window: int
    """Number of its window, counted over all epochs."""
    positions: tuple[Position, ...]
    """The place in each shard set where its window begins."""
    row: int
    """Its number in the window."""
    rows: int
    """Rows before it, in all windows."""

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "Cursor":
        """The cursor that ``json.dumps`` wrote as nested lists."""
        window, positions, row, rows = values
        return cls(window, tuple(Position(*position) for position in positions), row, rows)


class PackedWindow(NamedTuple):
    """Documents of a shuffle window, and the rows that they are packed into."""

    documents: DocumentArrays
    rows: Rows


class RowStream:
    """The sequence of rows, which can be read from any cursor on."""

    def __init__(self, urls: Sequence[str], settings: RowSettings):
        """
        Raises:
            ConfigError: a setting is wrong; names it.
            PipelineError: a shard set cannot be used; names it.
        """
        _check(urls, settings)
        self.settings = settings
        self.sources = [
            ShardSource(ShardSet(url), (settings.seed, 2, i), settings.threshold, settings.patches)
            for i, url in enumerate(urls)
        ]
        tokens = np.array([source.tokens for source in self.sources], float)
        parts = np.array(settings.weights) if settings.weights else tokens
        self.share = parts / parts.sum()
        _check_repeats(urls, self.share * settings.shuffle_bytes, tokens, settings)
        self.windows_per_epoch = math.ceil(tokens.sum() / settings.shuffle_bytes)
        self.patches_per_row = self._patches_per_row() if settings.patches else None

    @property
    def provenance(self) -> list[PatchProvenance]:
        """How the patches of each shard set were made, with the rule that is used."""
        return [provenance_of(source.shards, source.patcher) for source in self.sources]

    def _patches_per_row(self) -> int:
        if self.settings.patches_per_row is not None:
            return self.settings.patches_per_row
        rates = [source.patches_per_token(SAMPLE_TOKENS) for source in self.sources]
        rate = float(self.share @ rates)
        # Most rows begin within two documents, each with a token and a patch of context.
        patches = math.ceil(rate * (self.settings.seq_len - 2) * SLACK) + 2
        return min(max(patches, LEAST_PATCHES), self.settings.seq_len)

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that have to be equal for a cursor to mean the same row."""
        values = {name: getattr(self.settings, name) for name in RowSettings.__dataclass_fields__}
        values["weights"] = list(self.settings.weights)
        values["patches_per_row"] = self.patches_per_row
        values["shards"] = [source.fingerprint for source in self.sources]
        return values | {"packing version": PACKING_VERSION}

    def start(self) -> Cursor:
        """The cursor of the first row."""
        return Cursor(0, tuple(Position() for _ in self.sources), 0, 0)

    def windows(self, cursor: Cursor, *, infinite: bool) -> Iterator[tuple[PackedWindow, Cursor]]:
        """Yield windows from ``cursor`` on, each with the cursor of its first row to be read.

        Args:
            infinite: continue after the first epoch.

        Raises:
            PipelineError: a shard cannot be read, or is not what its manifest says.
        """
        while infinite or cursor.window < self.windows_per_epoch:
            window, positions = self._load(cursor)
            if cursor.row < len(window.rows):
                yield window, cursor
            rows = cursor.rows + len(window.rows) - cursor.row
            cursor = Cursor(cursor.window + 1, positions, 0, rows)

    def _load(self, cursor: Cursor) -> tuple[PackedWindow, tuple[Position, ...]]:
        until = [self._until(i, cursor.window) for i in range(len(self.sources))]
        expected = sum(until) - sum(position.tokens for position in cursor.positions)
        builder = WindowBuilder(
            max(expected, 0) + READ_AHEAD,
            self.settings.seq_len - 2,
            patches=self.settings.patches,
        )
        positions = []
        for source, position, stop in zip(self.sources, cursor.positions, until, strict=True):
            for documents, after in source.read(position, stop):
                builder.add(documents)
                position = after
            positions.append(position)
        bits = np.random.PCG64(np.random.SeedSequence([self.settings.seed, 1, cursor.window]))
        window = PackedWindow(
            *pack_rows(builder.documents(), bits, self.settings.seq_len, self.patches_per_row)
        )
        return window, tuple(positions)

    def _until(self, source: int, window: int) -> int:
        """Tokens of a source that are read by the end of a window, counted from the very first."""
        if self.settings.weights:
            return int(self.share[source] * self.settings.shuffle_bytes * (window + 1))
        return self.sources[source].tokens * (window + 1) // self.windows_per_epoch


def _check_repeats(
    urls: Sequence[str], in_window: np.ndarray, tokens: np.ndarray, settings: RowSettings
) -> None:
    """
    Raises:
        ConfigError: a window would hold a whole set too often.
    """
    for url, wanted, total in zip(urls, in_window, tokens, strict=True):
        if settings.weights and wanted > MOST_REPEATS * total:
            raise ConfigError(
                f"dataloader.weights: {url} would be in each shuffle window {wanted / total:,.0f} "
                f"times, all of its {total:,.0f} tokens; lower its weight or "
                "dataloader.shuffle_bytes"
            )


def _check(urls: Sequence[str], settings: RowSettings) -> None:
    """
    Raises:
        ConfigError: a setting is wrong.
    """
    weights, patches = settings.weights, settings.patches_per_row
    if not urls:
        raise ConfigError("dataloader.shards: name at least one shard set that patch_corpus wrote")
    if weights and len(weights) != len(urls):
        raise ConfigError(
            f"dataloader.weights: {len(weights)} for {len(urls)} shard sets; one each, or none"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(f"dataloader.weights: must be positive numbers, got {weights}")
    if settings.seq_len < LEAST_TOKENS:
        raise ConfigError(
            f"training.seq_len: must be at least {LEAST_TOKENS}, got {settings.seq_len}"
        )
    if settings.shuffle_bytes < 1:
        raise ConfigError(
            f"dataloader.shuffle_bytes: must be at least 1, got {settings.shuffle_bytes}"
        )
    if settings.seed < 0:
        raise ConfigError(f"dataloader.seed: must not be negative, got {settings.seed}")
    if patches is not None and not LEAST_PATCHES <= patches <= settings.seq_len:
        raise ConfigError(
            f"dataloader.patches_per_row: must be {LEAST_PATCHES} to {settings.seq_len}, the "
            f"tokens of a row, got {patches}"
        )
    if not settings.patches and (patches is not None or settings.threshold is not None):
        raise ConfigError(
            "dataloader.patches: without patches there is neither a threshold nor patches_per_row"
        )
