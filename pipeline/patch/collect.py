"""The shards that workers have committed, read in parts: by workers again, if there are many.

A driver that read the entries and summaries of 100,000 shards by itself would need minutes and
gigabytes. Here it gets the sum of each part, and the part's entries in columns.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

import pyarrow as pa
from rich.console import Console

from pipeline.cluster.packed import Packed
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import run_stage
from pipeline.errors import BadFileError, PipelineError
from pipeline.shards.closing import Part, make_part
from pipeline.shards.entries import Shard, ShardEntry, committed_names, read_entries
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import SHARDS_PER_PART, as_shards, entry_rows
from pipeline.shards.upgrade import with_batches
from pipeline.shards.verify import table_problems
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import sha256_of
from pipeline.storage.run_record import MANIFEST

ENTRY_BYTES = 10_000
"""Bytes of an entry, about: what the progress counts."""
HASHED_TOGETHER = 16
"""Files that a worker hashes at a time."""


class _Shared(NamedTuple):
    output: OutputDirectory
    parts: list[list[str]]
    """Names of the shards of each part."""
    schema: pa.Schema
    """The shards' schema."""


def sum_shards(
    output: OutputDirectory,
    names: Sequence[str],
    schema: pa.Schema,
    receive: Callable[[Part], None],
    console: Console,
    workers: int | None,
) -> None:
    """Add up committed shards part by part.

    Args:
        schema: the shards' schema.
        receive: gets the parts in their order.

    Raises:
        PipelineError: an entry is damaged; names it.
    """
    shared = _Shared(output, _parts(names), schema)
    if len(shared.parts) <= 1:
        for part in shared.parts:
            receive(_sum_part(shared, part))
        return
    early: dict[int, str] = {}
    expected = 0

    def receive_message(number: int, message: str) -> None:
        nonlocal expected
        early[number] = message
        while expected in early:
            receive(Part.from_message(early.pop(expected)))
            expected += 1

    run_stage(
        "closing",
        _sum_piece,
        _sizes(shared.parts),
        shared,
        console,
        workers=workers,
        receive=receive_message,
    )


def _sum_piece(number: int, shared: _Shared, report: Reporter) -> str:
    message = _sum_part(shared, shared.parts[number]).to_message()
    report(ENTRY_BYTES * len(shared.parts[number]))
    return message


def _sum_part(shared: _Shared, names: list[str]) -> Part:
    entries = [
        with_batches(shared.output, entry, shared.schema)
        for entry in _entries(shared.output, names)
    ]
    return make_part(shared.output, entries)


def committed_shards(
    output: OutputDirectory, closed: ShardSet | None, console: Console, workers: int | None
) -> dict[str, Shard]:
    """All shards that are committed, by name.

    Args:
        closed: the set, if it is closed: its columns are read instead of the entries.

    Raises:
        PipelineError: an entry is damaged; names it.
    """
    names = committed_names(output)
    if closed is not None:
        known = {shard.name: shard for shard in closed.entries}
        if known.keys() >= set(names):
            return {name: known[name] for name in names}
    parts = _parts(names)
    if len(parts) <= 1:
        entries = _entries(output, names)
        return {entry.name: entry.row() for entry in entries}
    shared = _Shared(output, parts, pa.schema([]))
    outcome = run_stage(
        "reading entries", _read_piece, _sizes(parts), shared, console, workers=workers
    )
    found: dict[str, Shard] = {}
    for message in outcome.messages.values():
        batch = pa.ipc.open_stream(base64.b64decode(message)).read_next_batch()
        found |= {shard.name: shard for shard in as_shards(batch)}
    return found


def _read_piece(number: int, shared: _Shared, report: Reporter) -> str:
    rows = entry_rows(_entries(shared.output, shared.parts[number]))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    report(ENTRY_BYTES * rows.num_rows)
    return base64.b64encode(sink.getvalue()).decode()


def damaged_shards(
    output: OutputDirectory, shards: Sequence[Shard], console: Console, workers: int | None
) -> dict[str, str]:
    """How shards are damaged whose files do not have the hashes of what was written, by name.
    Workers read all files that are there."""
    sizes = output.sizes("shards")
    files = {
        output.locate(shard.path): (shard.sha256, sizes[f"{shard.name}.arrow"])
        for shard in shards
        if shard.sha256 and f"{shard.name}.arrow" in sizes
    }
    damaged = damaged_files(files, console, workers)
    return {PurePosixPath(url).stem: how for url, how in damaged.items()}


def damaged_files(
    files: Mapping[str, tuple[str, int]], console: Console, workers: int | None
) -> dict[str, str]:
    """How files are damaged, by URL, given the SHA-256 and bytes that each should have.

    Raises:
        PipelineError: one that is there cannot be read, as where a node does not have the directory
            or credentials have expired. That says nothing of the file: nobody should make it anew.
    """
    urls = list(files)
    starts = range(0, len(urls), HASHED_TOGETHER)
    parts = [{url: files[url] for url in urls[start : start + HASHED_TOGETHER]} for start in starts]
    pieces = {n: sum(size for _, size in part.values()) for n, part in enumerate(parts)}
    packed = Packed(parts)
    outcome = run_stage("looking for damage", _hash_piece, pieces, packed, console, workers=workers)
    for problem in outcome.unreachable:
        raise PipelineError(f"{problem}; what is committed stays, run the same command again")
    damaged: dict[str, str] = {}
    for message in outcome.messages.values():
        damaged |= json.loads(message)
    return damaged


def _hash_piece(
    number: int, parts: Packed[dict[str, tuple[str, int]]], report: Reporter
) -> str | None:
    damaged = {}
    for url, (sha256, size) in parts[number].items():
        try:
            if sha256_of(url) != sha256:
                damaged[url] = "is another file than was written, or damaged"
        except BadFileError as error:
            damaged[url] = str(error).removeprefix(f"{url}: ")
        report(size)
    return json.dumps(damaged) if damaged else None


def closed_set(output: OutputDirectory, console: Console) -> ShardSet | None:
    """The set, if it is closed and its manifest and columns are intact; None if it has to be closed
    (again)."""
    if not output.exists(MANIFEST):
        return None
    try:
        shards = ShardSet(output.url)
        problem = next(table_problems(shards), None)
    except PipelineError as error:
        problem = str(error)
    if problem is not None:
        console.print(f"{problem}: closing the set again", highlight=False)
        return None
    return shards if shards.is_checked else None


def _parts(names: Sequence[str]) -> list[list[str]]:
    starts = range(0, len(names), SHARDS_PER_PART)
    return [list(names[start : start + SHARDS_PER_PART]) for start in starts]


def _sizes(parts: list[list[str]]) -> dict[int, int]:
    return {i: ENTRY_BYTES * len(part) for i, part in enumerate(parts)}


def _entries(output: OutputDirectory, names: Sequence[str]) -> list[ShardEntry]:
    return list(read_entries(output, names).values())
