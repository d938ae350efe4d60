"""What workers of ``prepare_corpus.py`` do: a step on a piece of work, then its entry.

Each is a function for Ray Data's ``map``: see :func:`pipeline.cluster.stage.attempt`.
"""

import shutil
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ray

from pipeline.cluster.memory import bound_memory
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import attempt
from pipeline.corpus.prepared import EXCHANGE
from pipeline.prepare.plan import commit_entry
from pipeline.prepare.shuffle import merge_runs, write_chunk
from pipeline.prepare.sort_unit import sort_unit
from pipeline.storage.download import local_copy
from pipeline.storage.hub import download_path
from pipeline.storage.output import OutputDirectory


@lru_cache(maxsize=1)
def _get(shared: Any) -> Any:
    """What all pieces of a stage need: fetched once by each worker process."""
    bound_memory()
    return ray.get(shared)


def download(
    row: Mapping[str, Any], shared: Any, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    def work(piece: int, report: Reporter) -> None:
        files, downloads, scratch = _get(shared)
        file = files[piece]
        with (
            local_copy(file, scratch, report) as copy,
            downloads.committing(download_path(file)) as target,
        ):
            shutil.move(copy, target)

    return attempt(row, board, work)


def sort(
    row: Mapping[str, Any], shared: Any, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    def work(piece: int, report: Reporter) -> None:
        units, shuffle, scratch = _get(shared)
        made = sort_unit(piece, units[piece], shuffle, output, scratch, report)
        commit_entry(output, "units", piece, made)

    return attempt(row, board, work)


def merge(
    row: Mapping[str, Any], shared: Any, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    def work(piece: int, report: Reporter) -> None:
        pieces, shuffle = _get(shared)
        runs, cell = pieces[piece]
        name = f"{EXCHANGE}/merged/{piece:06d}.run"
        made = merge_runs(name, runs, cell, shuffle, output, report)
        commit_entry(output, "merges", piece, made)

    return attempt(row, board, work)


def write(
    row: Mapping[str, Any], shared: Any, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    def work(piece: int, report: Reporter) -> None:
        ranges, slices, shuffle, chunk_format = _get(shared)
        name, keys = ranges[piece]
        made = write_chunk(name, keys, slices, shuffle, chunk_format, output, report)
        commit_entry(output, "chunks", piece, made)

    return attempt(row, board, work)
