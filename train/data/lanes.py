"""Lanes: the sequence of rows is dealt out to V lanes, each of which reads a part of the text.

Row n of the sequence is row ``n // V`` of lane ``n % V``. A rank that takes the rows of a few lanes
reads those lanes' text alone. V does not depend on the number of ranks, and neither does the
sequence.

**The line of a lane.** Each epoch of a shard set is a line of T tokens, the shards in that epoch's
order (:mod:`train.data.shard_source`). It is cut into V equal parts; in epoch e lane l reads part
``(l + e) % V``. Record batches are not cut: one belongs to the part in which its first token lies.
So in each epoch every document is in one part, and all lanes together read it once.

**Strands.** Neighbouring documents are often of one kind, and rows are packed best from text of
many. So a lane reads its part at S places at once: the part is cut into S equal strands, and each
window takes a piece of every strand.

**Units.** Progress in an epoch is counted in V-ths of a token, so that every part has a whole
number, T. Of S strands each then proceeds by S-ths of these units.

A set whose share is prescribed (``weights``) may be too small to be cut into V parts. Then a lane
reads *all* of it in each epoch, going round from a place of its own. Every lane so has its share of
the set, and lanes are at different places of it.

Example: T = 100 tokens and V = 4. In epoch 0 lane 1 reads the record batches that begin at tokens
25 to 49, in epoch 1 those at 50 to 74 of another order. Half of a part is 50 quarters of a token,
12.5 tokens:

>>> line = Line(tokens=100, lanes=4, lane=1, whole=False, strands=1)
>>> line.spans(Place(0, 0), 0, 50)
[(0, 25, 38)]
>>> line.spans(Place(0, 50), 0, 100)
[(0, 38, 50), (1, 50, 63)]
>>> line._replace(strands=2).spans(Place(0, 0), 0, 50)
[(0, 25, 32), (0, 38, 44)]
>>> line._replace(whole=True).spans(Place(0, 200), 0, 200)
[(0, 75, 100), (0, 0, 25)]
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

STRANDS = 4
"""Places of its part that a lane reads at once. With more of them than a window has record batches
of a set, the set's share would change from window to window."""
LEAST_WINDOWS = 4
"""Windows per lane in each epoch, at least: with fewer, the parts of an epoch would hold so few
record batches that they differ much in length."""


def number_of_lanes(most: int, tokens: int, window: int) -> int:
    """``most``, halved until each lane has LEAST_WINDOWS windows in ``tokens`` tokens.

    >>> [number_of_lanes(512, tokens, window=4) for tokens in (10**6, 1000, 100, 1)]
    [512, 32, 4, 1]
    """
    lanes = most
    while lanes > 1 and lanes * window * LEAST_WINDOWS > tokens:
        lanes //= 2
    return lanes


class Place(NamedTuple):
    """A place on the line of a lane through one shard set."""

    epoch: int = 0
    offset: int = 0
    """Units of that epoch that the lane has read; a unit is the V-th of a token."""


class Line(NamedTuple):
    """The line of one lane through one shard set."""

    tokens: int
    """Tokens of the set."""
    lanes: int
    lane: int
    whole: bool
    """True if the lane reads the whole set in each epoch instead of its part."""
    strands: int = STRANDS

    @property
    def epoch_units(self) -> int:
        """Units that the lane reads in an epoch."""
        return self.tokens * self.lanes if self.whole else self.tokens

    def after(self, place: Place, units: int) -> Place:
        """The place so many units behind another one."""
        # A place of a run with other weights may lie behind the part that this line reads.
        epoch, offset = place if place.offset < self.epoch_units else (place.epoch + 1, 0)
        behind, offset = divmod(offset + units, self.epoch_units)
        return Place(epoch + behind, offset)

    def spans(self, place: Place, begin: int, end: int) -> list[tuple[int, int, int]]:
        """The tokens from ``begin`` to ``end`` units behind a place, as ranges of epochs.

        Returns:
            Epoch, first token and the token after the last one, of the epoch's order.
        """
        spans = []
        place, left = self.after(place, begin), end - begin
        while left > 0:
            units = min(left, self.epoch_units - place.offset)
            part = (self.lane + place.epoch) % self.lanes
            # Lanes that read a whole set begin at places of each strand of it.
            own = part * self.tokens * (1 if self.whole else self.strands) + place.offset
            for strand in range(self.strands):
                start = own + strand * self.epoch_units
                spans += [(place.epoch, *span) for span in self._tokens(start, start + units)]
            place, left = self.after(place, units), left - units
        return spans

    def _tokens(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The tokens of an epoch between two places that are counted in S-ths of units, and lie
        on a circle."""
        per_token = self.lanes * self.strands
        circle = self.tokens * per_token
        start, stop = start % circle, start % circle + stop - start
        parts = [(start, min(stop, circle)), (0, stop - circle)]
        spans = [(-(-first // per_token), -(-last // per_token)) for first, last in parts]
        return [(first, last) for first, last in spans if first < last]


class LaneCursor(NamedTuple):
    """The window of a lane that is being read. Its row that is read next follows from the number of
    rows of the whole sequence before it."""

    window: int
    """Number of the window, counted from ``origin``."""
    first: int
    """Rows of the lane before the window's first."""
    origin: tuple[Place, ...]
    """The place in each shard set where window 0 begins: the start of the first epoch, unless a
    resumed run has changed the mixture."""
    begin: tuple[Place, ...] = ()
    """The place in each shard set where the window begins: for runs that change the mixture."""


@dataclass(frozen=True)
class Cursor:
    """The next row of the sequence, as far as a rank knows it."""

    rows: int
    """Rows before it."""
    lanes: Mapping[int, LaneCursor] = field(default_factory=dict)
    """The lanes that the rank reads, by number."""


def rows_passed(rows: int, lane: int, lanes: int) -> int:
    """Rows of a lane among the first ``rows`` rows of the sequence.

    >>> [rows_passed(6, lane, 4) for lane in range(4)]
    [2, 2, 1, 1]
    """
    return (rows - lane + lanes - 1) // lanes


def lane_from_json(values: Mapping[str, Any]) -> LaneCursor:
    """The cursor that :func:`lane_to_json` wrote."""
    origin, begin = (tuple(Place(*place) for place in values[name]) for name in ("origin", "begin"))
    return LaneCursor(values["window"], values["first"], origin, begin)


def lane_to_json(cursor: LaneCursor) -> dict[str, Any]:
    return cursor._asdict()
