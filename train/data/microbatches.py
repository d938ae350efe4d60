"""A rank's microbatches: rows that it takes of its lanes, in tensors.

The rows of all ranks are one sequence (:mod:`train.data.row_stream`). Microbatch m of R ranks with
B rows each holds rows ``m*B*R`` to ``(m+1)*B*R``, of which each rank takes B
(:mod:`train.data.ranks`); it reads and packs the windows of its own lanes.
"""

import math
from collections.abc import Generator

import torch
from torch import Tensor

from pipeline.prefetch import prefetch
from train.data.filling import empty_rows, fill_groups, fill_rows
from train.data.lanes import Cursor, LaneCursor, rows_passed
from train.data.packing import PackedWindow
from train.data.ranks import RankShare
from train.data.row_stream import LaneWindow, RowStream

Microbatch = tuple[dict[str, Tensor], Tensor]
"""Packed rows (:mod:`train.data.packing`): ``{"input": [B, S], "patch_lengths": [B, P]}`` and
labels ``[B, S]``, all int32, padded with -1, 0 and -100."""


def microbatches(
    stream: RowStream, cursor: Cursor, share: RankShare, *, infinite: bool
) -> Generator[tuple[Microbatch, int, dict[int, LaneCursor]], None, None]:
    """Yield a rank's microbatches from ``cursor`` on, each with the number of rows of all ranks up
    to its end and the cursors of lanes that have changed.

    When the rows end, each rank yields what its lanes hold, and fills its last microbatch up with
    empty rows: ranks then differ in their number of microbatches (:mod:`train.data.in_step`).
    """
    reader = _LaneReader(stream, cursor, share, infinite=infinite)
    rows = cursor.rows
    picked: list[tuple[PackedWindow, int]] = []
    while reader.reading:
        for number in share.rows(rows, stream.lanes):
            picked += reader.row(number)
        rows += share.ranks * share.batch
        reader.pass_rows(rows)
        if len(picked) >= share.batch:
            batch = filled(stream, share.batch, picked[: share.batch])
            del picked[: share.batch]
            yield batch, rows, reader.take_opened()
    if picked:
        yield filled(stream, share.batch, picked), rows, reader.take_opened()


class _LaneReader:
    """The windows in progress of the lanes that a rank reads."""

    def __init__(self, stream: RowStream, cursor: Cursor, share: RankShare, *, infinite: bool):
        self.lanes = stream.lanes
        # A microbatch may begin as many windows as it has rows.
        ahead = min(share.batch, len(cursor.lanes))
        self.windows = prefetch(stream.windows(cursor, infinite=infinite), ahead)
        self.held: dict[int, LaneWindow] = {}
        self.stops: dict[int, float] = {
            lane: rows_passed(cursor.rows, lane, self.lanes) for lane in cursor.lanes
        }
        """Rows of each lane up to the end of the window that is held."""
        self.common = share.common_lanes(self.lanes)
        self.reading = len(cursor.lanes)
        """Lanes that have not ended."""
        self.opened: dict[int, LaneCursor] = {}

    def row(self, number: int) -> list[tuple[PackedWindow, int]]:
        """The window that holds a row of the sequence, and the row's number there; empty if its
        lane has ended. Rows have to be asked for in rising order."""
        row, lane = divmod(number, self.lanes)
        while row >= self.stops[lane]:
            self._open()
        held = self.held[lane]
        return [] if held.window is None else [(held.window, row - held.cursor.first)]

    def pass_rows(self, rows: int) -> None:
        """Leave the rows of common lanes behind that other ranks took, of the first ``rows``."""
        for lane in self.common:
            while rows_passed(rows, lane, self.lanes) > self.stops[lane]:
                self._open()

    def _open(self) -> None:
        """Take the window that comes next, of whichever lane: all rows of the lane's window before
        it lie before the row that is asked for."""
        opened = next(self.windows)
        self.held[opened.lane] = opened
        if opened.window is None:
            self.stops[opened.lane] = math.inf
            self.reading -= 1
        else:
            self.stops[opened.lane] = opened.cursor.first + len(opened.window.rows)
            self.opened[opened.lane] = opened.cursor

    def take_opened(self) -> dict[int, LaneCursor]:
        """The cursors of windows that were opened since the last call."""
        opened, self.opened = self.opened, {}
        return opened


def filled(stream: RowStream, rows: int, picked: list[tuple[PackedWindow, int]]) -> Microbatch:
    """A microbatch of the picked rows, filled up with empty ones."""
    shape = (rows, stream.settings.seq_len)
    input_BS = torch.empty(shape, dtype=torch.int32)
    labels_BS = torch.empty(shape, dtype=torch.int32)
    tensors, inputs = [input_BS, labels_BS], {"input": input_BS}
    if stream.patches_per_row is not None:
        tensors.append(torch.empty(rows, stream.patches_per_row, dtype=torch.int32))
        inputs["patch_lengths"] = tensors[2]
    arrays = [tensor.numpy() for tensor in tensors]
    if stream.groups is not None:
        inputs["groups"] = torch.zeros(shape, dtype=torch.int32)
        fill_groups(picked, inputs["groups"].numpy()[: len(picked)])
    if picked:
        fill_rows(picked, *(array[: len(picked)] for array in arrays))
    if len(picked) < rows:
        empty_rows(*(array[len(picked) :] for array in arrays))
    return inputs, labels_BS
