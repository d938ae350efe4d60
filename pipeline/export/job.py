"""The Ray stage of ``export_shards.py``: a shard set → files of another layout, each committed."""

import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from rich.console import Console

from pipeline.cli.command import refuse_lost_output
from pipeline.cluster.connect import connect
from pipeline.cluster.memory import bound_memory
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import attempt, new_board, work_off
from pipeline.errors import ConfigError, DamagedShardError, PipelineError
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import Piece, export_shard, plan_export, verify_file
from pipeline.export.exported_file import ExportedFile
from pipeline.export.layouts import LAYOUTS, Layout
from pipeline.export.manifest import write_manifest
from pipeline.export.run import ExportRun, committed_files
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory, refuse_credentials
from pipeline.storage.run_record import MANIFEST


@dataclass
class ExportShardsResult:
    """What a run did; ``complete`` is false if anything asked for was not done."""

    output: str
    complete: bool
    files: int
    rows: int
    bytes: int
    """Of the files."""
    exported: int
    """Files written by this run; those of an earlier one are not counted."""
    pushed: int
    """Files that went to the hub in this run."""
    failures: list[str]
    """Damaged shards: they are not exported."""
    problems: list[str]
    """What verification found, if it was asked for."""
    seconds: float


def export_shards(config: ExportShardsConfig, console: Console) -> ExportShardsResult:
    """Export a shard set, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or go on; what is committed stays.
    """
    config.check()
    layout = LAYOUTS[config.format]
    flag = layout.output_flag
    shards, output = _open(layout, config)
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
    done = committed_files(layout, output)
    waiting = [i for i, piece in enumerate(pieces) if piece.entry.name not in done]
    failures: list[str] = []
    if waiting:
        failures = _run_pool(waiting, pieces, shards, layout, config, output, console)
        done = committed_files(layout, output)
    files = [done[piece.entry.name] for piece in pieces if piece.entry.name in done]
    complete = len(files) == len(pieces)
    if not complete and not failures:
        raise PipelineError(
            f"{flag} {output.url}: files that workers committed cannot be seen from here; is it on "
            "storage that all nodes share?"
        )
    last = (MANIFEST, *layout.card_files[:1])
    if complete and (waiting or not all(map(output.exists, last))):
        write_manifest(files, shards, layout, config, output)
    problems = _verify(files, layout, config, output, console) if config.verify else []
    pushed = 0
    if complete and not problems:
        sizes = output.sizes()
        beside = [name for name in (MANIFEST, *layout.card_files) if name in sizes]
        pushed = layout.publish(files, beside, output, config, console)
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


def _open(layout: Layout, config: ExportShardsConfig) -> tuple[ShardSet, OutputDirectory]:
    """The shard set, and the directory that takes its export.

    Raises:
        ConfigError: one of them cannot be used; names the flag.
    """
    flag = layout.output_flag
    refuse_credentials("--shards", config.shards)
    try:
        shards = ShardSet(config.shards)
    except PipelineError as error:
        raise ConfigError(f"--shards {error}") from error
    config.check_shards(shards)
    directory = layout.directory(shards, config)
    refuse_credentials(flag, directory)
    refuse_lost_output(directory, flag)
    output = OutputDirectory(directory)
    if f"{output.url}/".startswith(f"{shards.output.url}/"):
        raise ConfigError(f"{flag} {directory}: lies in the shard set; choose another place")
    return shards, output


def _run_pool(
    waiting: list[int],
    pieces: list[Piece],
    shards: ShardSet,
    layout: Layout,
    config: ExportShardsConfig,
    output: OutputDirectory,
    console: Console,
) -> list[str]:
    """Export the waiting shards; returns what is said of damaged ones."""
    connect(config.num_workers)
    board = new_board()
    said: dict[int, str] = {}
    work_off(
        {i: pieces[i].bytes for i in waiting},
        {i: pieces[i].bytes for i in set(range(len(pieces))).difference(waiting)},
        console,
        "exporting",
        board,
        _export_piece,
        receive=said.__setitem__,
        fn_args=(ray.put((shards.light(), pieces, layout)), config, output, board),
        concurrency=config.num_workers,
    )
    return [said[i] for i in sorted(said) if said[i]]


def _export_piece(
    row: dict[str, Any],
    shared: Any,
    config: ExportShardsConfig,
    output: OutputDirectory,
    board: Any,
) -> dict[str, Any]:
    bound_memory()

    def export(number: int, report: Reporter) -> str:
        """What is wrong with the shard, if anything."""
        shards, pieces, layout = ray.get(shared)
        try:
            export_shard(shards, pieces[number], layout, config, output)
        except DamagedShardError as error:
            return str(error)
        report(pieces[number].bytes)
        return ""

    return attempt(row, board, export)


def _verify(
    files: list[ExportedFile],
    layout: Layout,
    config: ExportShardsConfig,
    output: OutputDirectory,
    console: Console,
) -> list[str]:
    """Read all files back on Ray; returns what is wrong with them."""
    if not files:
        return []
    connect(config.num_workers)
    board = new_board()
    said: dict[int, str] = {}
    work_off(
        {i: file.bytes for i, file in enumerate(files)},
        {},
        console,
        "verifying",
        board,
        _verify_file,
        receive=said.__setitem__,
        fn_args=(
            ray.put((layout, [replace(file, statistics={}) for file in files])),
            output,
            board,
        ),
        concurrency=config.num_workers,
    )
    wrong = [i for i in sorted(said) if said[i]]
    if wrong:  # the next run writes them anew; until then nobody should take them for good
        entries = [files[i].entry_path for i in wrong]
        marks = [mark for i in wrong for mark in layout.marks(files[i].path)]
        output.remove_files([MANIFEST, *marks, *entries])
    return [f"{said[i]}; run the same command again to write it anew" for i in wrong]


def _verify_file(
    row: dict[str, Any], shared: Any, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    bound_memory()

    def verify(number: int, report: Reporter) -> str:
        layout, files = ray.get(shared)
        problem = verify_file(files[number], layout, output)
        report(files[number].bytes)
        return problem or ""

    return attempt(row, board, verify)
