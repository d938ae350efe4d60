"""Shard sets → an endless, seeded sequence of rows. No torch, no threads, no ranks.

The sequence is a function of the shards, the seed and the settings alone. It is read *window* by
window: from every shard set a run of record batches, together about ``shuffle_bytes`` of text,
whose documents are shuffled, packed into rows, and the rows shuffled. Every set is in every window,
in its share, because rows are packed best from text of all kinds.

Without weights an epoch is a whole number of windows, in which each document is read once. With
weights each set goes round on its own, as often as its share of the text asks for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from model.patcher import Patcher
from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet
from train.data.packing import Rows, pack_rows
from train.data.shard_source import Position, ShardSource
from train.data.window import Collector, Documents

PACKING_VERSION = 2
"""Changes when the same shards, seed and settings give other rows than before."""
SLACK = 1.005
"""Patches of a row beyond what text needs on average: so much can be lost without losing text."""
MOST_REPEATS = 100
"""Of a weighted set in one window."""
LEAST_TOKENS = 8
LEAST_PATCHES = 4
READ_AHEAD = 4 << 20
"""Tokens by which a window may become larger than was asked for: record batches are not cut."""
SAMPLE_TOKENS = 4 << 20
"""Of each set, to see how many patches another threshold gives."""


@dataclass(frozen=True)
class RowSettings:
    """What the rows are a function of, besides the shards."""

    seq_len: int
    """Tokens of a row."""
    seed: int = 0
    weights: tuple[float, ...] = ()
    """Share of the text of each shard set; none: every document once an epoch."""
    threshold: float | None = None
    """Nats; patch anew with it. None: patches as stored."""
    patches: bool = True
    """Whether rows end where patches do."""
    patches_per_row: int | None = None
    """Most patches of a row; None: as many as text of the shards needs."""
    shuffle_bytes: int = 64 << 20
    """Text of a shuffle window."""


class Cursor(NamedTuple):
    """The next row to be read."""

    window: int
    """Windows before this one, of all epochs."""
    positions: tuple[Position, ...]
    """Where this window begins in each shard set."""
    row: int
    """Of this window."""
    rows: int
    """Rows before this one, of all windows."""

    @classmethod
    def of_json(cls, values: Sequence[Any]) -> "Cursor":
        """The cursor that was written as JSON."""
        window, positions, row, rows = values
        return cls(window, tuple(Position(*position) for position in positions), row, rows)


class Window(NamedTuple):
    documents: Documents
    rows: Rows


class RowStream:
    """The sequence of rows, from any cursor on."""

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
    def patchers(self) -> list[Patcher]:
        """The rule of each shard set's patches, with the threshold that is used."""
        return [source.patcher or source.shards.patcher for source in self.sources]

    def _patches_per_row(self) -> int:
        if self.settings.patches_per_row is not None:
            return self.settings.patches_per_row
        rates = [source.patches_per_token(SAMPLE_TOKENS) for source in self.sources]
        rate = float(self.share @ rates)
        # Most rows begin two documents in the middle, with a token and a patch of context each.
        patches = math.ceil(rate * (self.settings.seq_len - 2) * SLACK) + 2
        return min(max(patches, LEAST_PATCHES), self.settings.seq_len)

    def fingerprint(self) -> dict[str, Any]:
        """What has to be the same for a cursor to mean the same row; JSON values."""
        values = {name: getattr(self.settings, name) for name in RowSettings.__dataclass_fields__}
        values["weights"] = list(self.settings.weights)
        values["patches_per_row"] = self.patches_per_row
        values["shards"] = [source.fingerprint for source in self.sources]
        return values | {"packing version": PACKING_VERSION}

    def start(self) -> Cursor:
        return Cursor(0, tuple(Position() for _ in self.sources), 0, 0)

    def windows(self, cursor: Cursor, *, infinite: bool) -> Iterator[tuple[Window, Cursor]]:
        """Windows from ``cursor`` on, each with the cursor of the first row to be read of it.

        Not infinite: up to the end of the first epoch.

        Raises:
            PipelineError: a shard cannot be read, or is not what its manifest says.
        """
        while infinite or cursor.window < self.windows_per_epoch:
            window, positions = self._load(cursor)
            if cursor.row < len(window.rows):
                yield window, cursor
            rows = cursor.rows + len(window.rows) - cursor.row
            cursor = Cursor(cursor.window + 1, positions, 0, rows)

    def _load(self, cursor: Cursor) -> tuple[Window, tuple[Position, ...]]:
        until = [self._until(i, cursor.window) for i in range(len(self.sources))]
        expected = sum(until) - sum(position.tokens for position in cursor.positions)
        collector = Collector(
            max(expected, 0) + READ_AHEAD,
            self.settings.seq_len - 2,
            patches=self.settings.patches,
        )
        positions = []
        for source, position, stop in zip(self.sources, cursor.positions, until, strict=True):
            for documents, after in source.read(position, stop):
                collector.add(documents)
                position = after
            positions.append(position)
        draws = np.random.PCG64(np.random.SeedSequence([self.settings.seed, 1, cursor.window]))
        window = Window(
            *pack_rows(collector.documents(), draws, self.settings.seq_len, self.patches_per_row)
        )
        return window, tuple(positions)

    def _until(self, source: int, window: int) -> int:
        """How many tokens of a source are read by the end of a window, from the very first on."""
        if self.settings.weights:
            return int(self.share[source] * self.settings.shuffle_bytes * (window + 1))
        return self.sources[source].tokens * (window + 1) // self.windows_per_epoch


def _check_repeats(
    urls: Sequence[str], in_window: np.ndarray, tokens: np.ndarray, settings: RowSettings
) -> None:
    """
    Raises:
        ConfigError: a window would hold a set too often.
    """
    for url, wanted, there in zip(urls, in_window, tokens, strict=True):
        if settings.weights and wanted > MOST_REPEATS * there:
            raise ConfigError(
                f"dataloader.weights: {url} would be in each shuffle window {wanted / there:,.0f} "
                f"times, all of its {there:,.0f} tokens; lower its weight or "
                "dataloader.shuffle_bytes"
            )


def _check(urls: Sequence[str], settings: RowSettings) -> None:
    """
    Raises:
        ConfigError: a setting is wrong.
    """
    weights, patches = settings.weights, settings.patches_per_row
    if not urls:
        raise ConfigError("dataloader.shards: name at least one shard set, as patch_corpus made it")
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
