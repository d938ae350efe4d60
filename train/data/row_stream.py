"""Shard sets → an endless, seeded sequence of rows. No torch, no threads, no ranks.

The sequence is a function of the shards, the seed and the settings alone. It is an interleaving of
lanes (:mod:`train.data.lanes`), and each lane is made *window* by window: a window takes the next
record batches of every shard set on the lane's line, together about ``window_bytes`` of text,
shuffles their documents, packs them into rows and shuffles the rows. Every set is in every window,
in its share, because rows are packed best from text of all kinds.

**Windows.** Window w of a lane ends ``_units(set, w + 1)`` units behind the lane's origin in each
set. That limit depends on w alone, not on where record batches end, so overshoot does not add up.
Example: a lane whose part of each epoch is 400 tokens, each strand of 100 in record batches of 30,
30, 30 and 10 tokens, with two windows per epoch. Window 0 has the record batches that begin at
tokens 0 to 49 of each strand, which are 60 tokens, window 1 those at 50 to 99, 40 tokens, and
window 2 begins the next epoch.
Without weights an epoch is a whole number of windows, in which each document is read once. With
weights each set begins its own next epoch whenever its share of the text requires it.

**Cursors.** A lane's :class:`~train.data.lanes.LaneCursor` names its window in progress. A
checkpoint holds one for each lane and the number of rows that have been passed, and nothing else
about the data. To resume, those windows are read and packed again, which gives the same rows, and
the rows that were passed are skipped: no row is lost or repeated. How the ranks divide the rows is
the business of :mod:`train.data.ranks`.
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from model.provenance import PatchProvenance
from pipeline.bpe.byte_level import BPE
from pipeline.errors import ConfigError
from pipeline.shards.provenance import entropy_model_place, provenance_of
from pipeline.shards.shard_set import ShardSet
from train.data.groups import Groups
from train.data.lanes import Cursor, LaneCursor, Line, Place, number_of_lanes, rows_passed
from train.data.packing import PackedWindow, pack_rows
from train.data.row_settings import LEAST_PATCHES, RowSettings, check
from train.data.shard_source import ShardSource
from train.data.window import DocumentArrays, join_documents

PACKING_VERSION = 3
"""Changes when the same shards, seed and settings give other rows than before."""
SLACK = 1.005
"""Patches per row, relative to what the text needs on average. The surplus pays for rows that the
packing cannot fill exactly."""
MOST_REPEATS = 100
"""How often one window may hold all of a weighted set."""
SAMPLE_TOKENS = 4 << 20
"""Tokens of each set that are re-patched to estimate the patches that another rule gives."""


class LaneWindow(NamedTuple):
    """The next window of a lane."""

    lane: int
    cursor: LaneCursor
    window: PackedWindow | None
    """None where the lane ends."""


class RowStream:
    """The sequence of rows, which can be read from any cursor on."""

    def __init__(
        self,
        urls: Sequence[str],
        settings: RowSettings,
        groups: Groups | None = None,
        bpe: BPE | None = None,
    ):
        """
        Args:
            groups: gives documents a group; it changes no row.
            bpe: the tokenizer whose ids rows hold; None: those of bytes.

        Raises:
            ConfigError: a setting is wrong; names it.
            PipelineError: a shard set cannot be used; names it.
        """
        check(urls, settings)
        if bpe is not None and settings.patches:
            raise ConfigError(
                "dataloader.patches: a tokenizer's tokens have no patches; leave them out "
                "(--dataloader.no-patches)"
            )
        self.settings, self.groups, self.bpe = settings, groups, bpe
        self.sources: list[ShardSource] = []
        for url in urls:
            shards = ShardSet(url)
            patcher = settings.rule.patcher(shards)
            reads_tokenizer = patcher is not None and patcher.tokenizer is not None
            ends = (settings.rule.bpe or shards.bpe) if reads_tokenizer else None
            source = ShardSource(shards, patcher, settings.patches, groups, bpe, ends)
            same = sum(other.fingerprint == source.fingerprint for other in self.sources)
            source.seed = (settings.seed, 2, int(source.fingerprint, 16), same)
            self.sources.append(source)
        tokens = [source.tokens for source in self.sources]
        parts = [Fraction(part) for part in settings.weights or tokens]
        self.shares = [part / sum(parts) for part in parts]
        self.window_bytes = settings.window_bytes(len(urls))
        if settings.weights:
            self._check_repeats(urls)
        self.patches_per_row = self._patches_per_row() if settings.patches else None
        self.lanes = self.windows_per_epoch = 0
        self.set_lanes(number_of_lanes(settings.lanes, sum(tokens), self.window_bytes))

    def set_lanes(self, lanes: int) -> None:
        """Interleave so many lanes: those of a checkpoint, or as many as the text has."""
        self.lanes = lanes
        tokens = sum(source.tokens for source in self.sources)
        self.windows_per_epoch = math.ceil(tokens / (self.window_bytes * lanes))

    @property
    def provenance(self) -> list[PatchProvenance]:
        """How the patches of each shard set were made, with the rule that is used."""
        return [provenance_of(source.shards, source.patcher) for source in self.sources]

    @property
    def entropy_models(self) -> dict[str, str | None]:
        """Where the models lie whose entropies place the patches, by fingerprint; None for a place
        that is not recorded."""
        places: dict[str, str | None] = {}
        for source in self.sources:
            model = provenance_of(source.shards, source.patcher).entropy_model
            if model and model.fingerprint:
                places[model.fingerprint] = entropy_model_place(source.shards)
        return places

    def _check_repeats(self, urls: Sequence[str]) -> None:
        """
        Raises:
            ConfigError: a window would hold a whole set too often.
        """
        for url, share, source in zip(urls, self.shares, self.sources, strict=True):
            wanted = share * self.window_bytes / source.tokens
            if wanted > MOST_REPEATS:
                raise ConfigError(
                    f"dataloader.weights: {url} would be in each shuffle window "
                    f"{float(wanted):,.0f} times, all of its {source.tokens:,} tokens; lower its "
                    "weight or dataloader.shuffle_bytes"
                )

    def _patches_per_row(self) -> int:
        if self.settings.patches_per_row is not None:
            return self.settings.patches_per_row
        rates = [source.patches_per_token(SAMPLE_TOKENS) for source in self.sources]
        rate = float(np.array(self.shares, float) @ rates)
        # Most rows begin within two documents, each with a token and a patch of context.
        patches = math.ceil(rate * (self.settings.seq_len - 2) * SLACK) + 2
        return min(max(patches, LEAST_PATCHES), self.settings.seq_len)

    def fingerprint(self) -> dict[str, Any]:
        """JSON values that have to be equal for a cursor to mean the same row."""
        settings = self.settings
        return {
            "seq_len": settings.seq_len,
            "seed": settings.seed,
            "weights": list(settings.weights),
            "rule": settings.rule.recorded(),
            "patches": settings.patches,
            "patches_per_row": self.patches_per_row,
            "window_bytes": self.window_bytes,
            "shards": [source.fingerprint for source in self.sources],
            "packing version": PACKING_VERSION,
            **({} if self.bpe is None else {"tokenizer": self.bpe.sha256}),
        }

    def start(self, lanes: Sequence[int]) -> Cursor:
        """The cursor of the first row, for a rank that reads these lanes."""
        places = (Place(),) * len(self.sources)
        return Cursor(0, {lane: LaneCursor(0, 0, places, places) for lane in lanes})

    def windows(self, cursor: Cursor, *, infinite: bool) -> Iterator[LaneWindow]:
        """Yield windows of the cursor's lanes in the order in which their rows come, from those in
        progress on.

        Args:
            infinite: continue after the first epoch.

        Raises:
            PipelineError: a shard cannot be read, or is not what its manifest says.
        """
        rows = {lane: rows_passed(cursor.rows, lane, self.lanes) for lane in cursor.lanes}
        waiting = [(row * self.lanes + lane, lane) for lane, row in rows.items()]
        heapq.heapify(waiting)
        cursors = dict(cursor.lanes)
        while waiting:
            _, lane = heapq.heappop(waiting)
            ends = not infinite and cursors[lane].window >= self.windows_per_epoch
            window = None if ends else self._load(lane, cursors[lane])
            if window is None or _end(cursors[lane], window) > max(cursors[lane].first, rows[lane]):
                yield LaneWindow(lane, cursors[lane], window)
            if window is not None:
                cursors[lane] = self._after(lane, cursors[lane], len(window.rows))
                next_row = max(rows[lane], cursors[lane].first)
                heapq.heappush(waiting, (next_row * self.lanes + lane, lane))

    def _after(self, lane: int, cursor: LaneCursor, rows: int) -> LaneCursor:
        """The cursor of the next window, after one with so many rows."""
        number = cursor.window + 1
        begin = tuple(
            self._line(i, lane).after(place, self._units(i, number))
            for i, place in enumerate(cursor.origin)
        )
        return LaneCursor(number, cursor.first + rows, cursor.origin, begin)

    def _load(self, lane: int, cursor: LaneCursor) -> PackedWindow:
        batches: list[DocumentArrays] = []
        for i, (source, origin) in enumerate(zip(self.sources, cursor.origin, strict=True)):
            limits = (self._units(i, cursor.window), self._units(i, cursor.window + 1))
            for span in self._line(i, lane).spans(origin, *limits):
                batches += source.read(*span)
        settings = self.settings
        documents = join_documents(batches, settings.seq_len - 2, patches=settings.patches)
        bits = np.random.PCG64(np.random.SeedSequence([settings.seed, 1, lane, cursor.first]))
        return pack_rows(documents, bits, settings.seq_len, self.patches_per_row)

    def _line(self, source: int, lane: int) -> Line:
        tokens = self.sources[source].tokens
        # A part of a small set may hold no record batch, but each lane has to have its share.
        small = number_of_lanes(self.lanes, tokens, self.window_bytes) < self.lanes
        return Line(tokens, self.lanes, lane, whole=small and bool(self.settings.weights))

    def _units(self, source: int, window: int) -> int:
        """Units of a source on a lane's line before a window, counted from its origin."""
        if self.settings.weights:
            return int(self.shares[source] * self.window_bytes * self.lanes * window)
        return self.sources[source].tokens * window // self.windows_per_epoch

    def continued(
        self, rows: int, lanes: Mapping[int, LaneCursor], shards: Sequence[str]
    ) -> Cursor:
        """The cursor of this stream where a run with other settings or shard sets has stopped.

        Each set that is still there goes on where the lane's window in progress began, and the
        others begin. So no document is left out; those of the windows in progress, of which some
        rows were read, are read again.

        Args:
            rows: rows that the run has passed.
            lanes: its cursors.
            shards: fingerprints of its shard sets.
        """
        cursors = {}
        for lane, old in lanes.items():
            left = list(zip(shards, old.begin, strict=True))
            places = []
            for source in self.sources:
                same = next((n for n, (one, _) in enumerate(left) if one == source.fingerprint), -1)
                places.append(Place() if same < 0 else left.pop(same)[1])
            first = rows_passed(rows, lane, self.lanes)
            cursors[lane] = LaneCursor(0, first, tuple(places), tuple(places))
        return Cursor(rows, cursors)


def _end(cursor: LaneCursor, window: PackedWindow) -> int:
    """Rows of the lane up to the end of a window."""
    return cursor.first + len(window.rows)
