"""The work of ``prepare_corpus.py``'s workers: one step on one piece, then the piece's entry.

Each function is the ``work`` of a stage: see :func:`pipeline.cluster.stage.run_stage`. All pieces
of a stage share a tuple, which the driver makes in :mod:`pipeline.prepare.run`.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.cluster.packed import Packed
from pipeline.cluster.progress import Reporter
from pipeline.corpus.documents import read_split
from pipeline.corpus.prepared import EXCHANGE
from pipeline.corpus.splits import Split
from pipeline.errors import BadFileError
from pipeline.prepare.config import ChunkFormat
from pipeline.prepare.key_ranges import Range
from pipeline.prepare.plan import commit_piece
from pipeline.prepare.shuffle import Shuffle, Slice, merge_runs, write_chunk
from pipeline.prepare.sort_unit import Deadly, readable, sort_unit
from pipeline.prepare.sorted_runs import Grid, SortedRun
from pipeline.storage.download import local_copy
from pipeline.storage.hub import download_path
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory


def download_file(
    number: int, shared: tuple[Sequence[InputFile], OutputDirectory, Path], report: Reporter
) -> None:
    """Keep a file of the hub among the downloads."""
    files, downloads, scratch = shared
    file = files[number]
    with (
        local_copy(file, scratch, report) as copy,
        downloads.committing(download_path(file)) as target,
    ):
        shutil.move(copy, target)


def sort_piece(
    number: int,
    shared: tuple[Packed[Sequence[Split]], Deadly, Shuffle, OutputDirectory, Path],
    report: Reporter,
) -> None:
    """Sort a unit of the input into runs."""
    units, deadly, shuffle, output, scratch = shared
    made = sort_unit(number, units[number], shuffle, output, scratch, report, deadly, report.count)
    commit_piece(output, "units", number, made)


def read_piece(
    number: int, shared: tuple[Sequence[Split], Shuffle, Path], report: Reporter
) -> None:
    """Read a split and do nothing with it, to see whether its content ends the process."""
    splits, shuffle, scratch = shared
    with readable(splits[number], scratch, report) as split, suppress(BadFileError):
        for _ in read_split(split, shuffle.columns, shuffle.max_document_bytes):
            pass


def merge_piece(
    number: int,
    shared: tuple[Packed[Sequence[SortedRun]], Shuffle, OutputDirectory],
    report: Reporter,
) -> None:
    """Merge what a group of runs holds in one cell; the pieces of a group are neighbours."""
    groups, shuffle, output = shared
    group, cell = divmod(number, shuffle.cells)
    name = f"{EXCHANGE}/merged/{number:06d}.run"
    made = merge_runs(name, groups[group], cell, shuffle, output, report)
    commit_piece(output, "merges", number, made)


def write_piece(
    number: int,
    shared: tuple[
        Mapping[int, Range],
        Sequence[Grid],
        Packed[Slice],
        Shuffle,
        ChunkFormat,
        OutputDirectory,
    ],
    report: Reporter,
) -> None:
    """Write a chunk, or the validation set."""
    ranges, grids, slices, shuffle, chunk_format, output = shared
    name, keys = ranges[number]
    needed = [slices[i] for i, grid in enumerate(grids) if grid.cells_of(keys)]
    made = write_chunk(name, keys, needed, shuffle, chunk_format, output, report)
    commit_piece(output, "chunks", number, made)
