"""The driver of ``export_shards.py``: a shard set → files of another layout, each committed."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.cli.progress_json import progress_lines
from pipeline.cli.results import print_line
from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import run_stage, unshared_storage
from pipeline.errors import ConfigError, DamagedShardError
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import Piece, export_shard, plan_export, verify_file
from pipeline.export.exported_file import ExportedFile
from pipeline.export.layout import Layout
from pipeline.export.layouts import LAYOUTS
from pipeline.export.manifest import write_export_manifest
from pipeline.export.record import ExportRun, committed_files
from pipeline.shards.manifest import validation_of
from pipeline.shards.named import named_set
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import as_shards, shard_rows
from pipeline.storage.lease import held
from pipeline.storage.output import OutputDirectory
from pipeline.storage.places import refuse_credentials
from pipeline.storage.run_record import MANIFEST


@dataclass
class ExportShardsResult:
    """The result of a run; ``complete`` is false if anything asked for was not done."""

    output: str
    complete: bool
    files: int
    rows: int
    bytes: int
    """Size of the files."""
    exported: int
    """Files written by this run; those of an earlier one are not counted."""
    pushed: int
    """Files that went to the hub in this run."""
    failures: list[str]
    """Damaged shards: they are not exported."""
    problems: list[str]
    """One message for each file that verification, if it was asked for, finds damaged."""
    seconds: float


class _Export(NamedTuple):
    """A shard set, and how and where it is exported."""

    shards: ShardSet
    layout: Layout
    config: ExportShardsConfig
    output: OutputDirectory


class _Shared(NamedTuple):
    """Values that all pieces of an export need."""

    rows: pa.RecordBatch
    """The pieces' shards. The workers of a node share the memory of columns."""
    paths: pa.Array
    export: _Export
    """Its shard set lacks the entries."""


def export_shards(config: ExportShardsConfig, console: Console) -> ExportShardsResult:
    """Export a shard set, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """
    config.check()
    export = _open(config)
    held_out = validation_of(export.shards.output.url)
    if OutputDirectory(held_out).exists(MANIFEST):
        note = f"not exported: the validation set, which --shards {held_out} exports"
        print_line(console, note)
    flag = export.layout.output_flag
    with progress_lines(config.progress_json), held(export.output, flag, console):
        return _export_shards(export, console)


def _export_shards(export: _Export, console: Console) -> ExportShardsResult:
    shards, layout, config, output = export
    flag = layout.output_flag
    pieces = plan_export(shards, layout, config)
    run = ExportRun.plan(pieces, shards, config)
    run.check_begun(output, flag, overwrite=config.overwrite)
    layout.begin(output, config)
    if config.overwrite:
        ExportRun.remove(output, flag)
    if not output.exists(ExportRun.path):
        output.check_writable()
        run.begin(output)
    began = time.monotonic()
    names = {piece.entry.name for piece in pieces}
    done, statistics = committed_files(names, layout, output)
    waiting = [i for i, piece in enumerate(pieces) if piece.entry.name not in done]
    failures = _export_pieces(export, pieces, waiting, console)
    if waiting:
        done, statistics = committed_files(names, layout, output)
    files = [done[piece.entry.name] for piece in pieces if piece.entry.name in done]
    complete = len(files) == len(pieces)
    if not complete and not failures:
        raise unshared_storage(f"{flag} {output.url}")
    beside = layout.companions([file.path for file in files])
    last = {MANIFEST, *layout.card_files[:1], *beside}
    if complete and (waiting or not last <= output.sizes().keys()):
        write_export_manifest(files, statistics, shards, layout, config, output)
    problems = _verify(export, files, console) if config.verify else []
    pushed = 0
    if complete and not problems:
        sizes = output.sizes()
        with_files = [name for name in (MANIFEST, *layout.card_files) if name in sizes]
        pushed = layout.publish(files, with_files, output, config, console)
    output.remove_temporary()
    return ExportShardsResult(
        output=layout.destination(output, config),
        complete=complete and not problems,
        files=len(files),
        rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        exported=len(files) - len(pieces) + len(waiting),
        pushed=pushed,
        failures=failures,
        problems=problems,
        seconds=time.monotonic() - began,
    )


def _open(config: ExportShardsConfig) -> _Export:
    """The shard set, and the directory that takes its export.

    Raises:
        ConfigError: one of them cannot be used; names the flag.
    """
    layout = LAYOUTS[config.format]
    flag = layout.output_flag
    shards = named_set(config.shards)
    config.check_shards(shards)
    directory = layout.directory(shards, config)
    refuse_credentials(flag, directory)
    refuse_lost_output(directory, flag)
    output = OutputDirectory(directory)
    if f"{output.url}/".startswith(f"{shards.output.url}/"):
        raise ConfigError(f"{flag} {directory}: lies in the shard set; choose another place")
    return _Export(shards, layout, config, output)


def _export_pieces(
    export: _Export, pieces: list[Piece], waiting: list[int], console: Console
) -> list[str]:
    """Export the waiting shards; returns what is wrong with damaged ones."""
    outcome = run_stage(
        "exporting",
        _export_piece,
        {i: pieces[i].entry.bytes for i in waiting},
        _Shared(
            shard_rows([piece.entry for piece in pieces]),
            pa.array([piece.path for piece in pieces], pa.string()),
            export._replace(shards=export.shards.without_entries()),
        ),
        console,
        done={i: pieces[i].entry.bytes for i in set(range(len(pieces))).difference(waiting)},
        workers=export.config.num_workers,
    )
    return list(outcome.messages.values())


def _export_piece(number: int, shared: _Shared, report: Reporter) -> str | None:
    """Export one shard; returns what is wrong with it if it is damaged."""
    (entry,) = as_shards(shared.rows.slice(number, 1))
    piece = Piece(entry, shared.paths[number].as_py())
    shards, layout, config, output = shared.export
    try:
        export_shard(shards, piece, layout, config, output)
    except DamagedShardError as error:
        return str(error)
    report.count(WorkCounts(entry.bytes, entry.documents))
    return None


def _verify(export: _Export, files: list[ExportedFile], console: Console) -> list[str]:
    """Read all files back; returns what is wrong with them."""
    _, layout, config, output = export
    outcome = run_stage(
        "verifying",
        _verify_file,
        {i: file.bytes for i, file in enumerate(files)},
        (files, layout, output),
        console,
        workers=config.num_workers,
    )
    wrong = [files[i] for i in outcome.messages]
    if wrong:  # the next run writes them again; until then nobody should take them for good
        entries = [file.entry_path for file in wrong]
        marks = [mark for file in wrong for mark in layout.marks(file.path)]
        output.remove_files([MANIFEST, *marks, *entries])
    again = "run the same command again to write it again"
    return outcome.unreachable + [f"{problem}; {again}" for problem in outcome.messages.values()]


def _verify_file(
    number: int, shared: tuple[list[ExportedFile], Layout, OutputDirectory], report: Reporter
) -> str | None:
    """Read one file back; returns what is wrong with it."""
    files, layout, output = shared
    problem = verify_file(files[number], layout, output)
    report(files[number].bytes)
    return problem
