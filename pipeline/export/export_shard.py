"""One shard → one file of another layout. No Ray in here."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import NamedTuple

import pyarrow as pa

from pipeline.errors import BadFileError, PipelineError, translated
from pipeline.export.config import ExportShardsConfig
from pipeline.export.exported_file import ExportedFile, RowsHash
from pipeline.export.layout import Layout
from pipeline.patches import recut
from pipeline.shards.entries import Shard
from pipeline.shards.format import read_patches, with_patches
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import sha256_of


class Piece(NamedTuple):
    """A shard, and the file that it becomes."""

    entry: Shard
    path: str
    """Path below the output."""


def plan_export(shards: ShardSet, layout: Layout, config: ExportShardsConfig) -> list[Piece]:
    """Every shard with documents, and where it goes."""
    entries = [entry for entry in shards.entries if entry.sha256 is not None]
    return [
        Piece(entry, path)
        for entry, path in zip(entries, layout.paths(entries, shards, config), strict=True)
    ]


def export_shard(
    shards: ShardSet,
    piece: Piece,
    layout: Layout,
    config: ExportShardsConfig,
    output: OutputDirectory,
) -> ExportedFile:
    """Write a shard's file and commit it.

    Raises:
        DamagedShardError: the shard is missing, or not the file that its manifest says.
        PipelineError: the output cannot be written.
    """
    exported = ExportedFile(piece.entry.name, piece.path)
    statistics, rows_hash = PatchStatistics(), RowsHash()
    with output.committing(piece.path) as temporary:
        with layout.writer(temporary) as write:
            for shard_rows in _patched_rows(shards, piece.entry, config):
                patches = read_patches(shard_rows)
                statistics += PatchStatistics.of(
                    patches.lengths_D, patches.patch_lengths_P, patches.entropies_T
                )
                batch = layout.rows(shard_rows, config)
                write(batch)
                rows_hash.update(batch)
                exported.rows += batch.num_rows
                exported.arrow_bytes += batch.nbytes
        exported.bytes = temporary.stat().st_size
        with temporary.open("rb") as file:
            exported.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    exported.content, exported.statistics = rows_hash.hexdigest(), statistics.to_json()
    for mark in layout.marks(piece.path):
        output.write(mark, b"")
    output.write(exported.entry_path, to_checked_json(asdict(exported)))
    return exported


def _patched_rows(
    shards: ShardSet, entry: Shard, config: ExportShardsConfig
) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, re-patched if another threshold is asked for."""
    patcher = replace(shards.patcher, threshold=config.threshold) if config.repatches else None
    for batch in shards.checked_batches(entry):
        if patcher is not None:
            patches = read_patches(batch)
            # Rules that have a threshold do not read text.
            batch = with_patches(batch, recut(patcher, patches.entropies_T, patches.lengths_D))
        yield batch


def verify_file(file: ExportedFile, layout: Layout, output: OutputDirectory) -> str | None:
    """The problem of an exported file, in a sentence; None if it is whole.

    Raises:
        UnreachableFileError: it cannot be read, which says nothing of what is in it.
    """
    where = output.locate(file.path)
    try:
        digest = sha256_of(where)
    except BadFileError as error:
        return str(error)
    if digest != file.sha256:
        return f"{where}: sha256 is {digest}, {file.sha256} was written"
    try:
        with translated(where):
            rows, rows_hash = 0, RowsHash()
            with output.open(file.path) as opened:
                for batch in layout.read(opened):
                    rows += batch.num_rows
                    rows_hash.update(batch)
    except PipelineError as error:
        return str(error)
    if (rows, rows_hash.hexdigest()) != (file.rows, file.content):
        return f"{where}: its rows are not those of the shard"
    return None
