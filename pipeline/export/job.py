"""The Ray stage of ``export_shards.py``: a shard set → files of another layout, each committed."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
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
from pipeline.export.dataset_card import CARD, CARD_PLOTS, PICTURES
from pipeline.export.export_shard import (
    ENTRIES,
    ExportedFile,
    Piece,
    complete_mark,
    corpus_name,
    export_shard,
    plan_export,
    verify_file,
)
from pipeline.export.hub_upload import PUSHED, open_repository, push
from pipeline.export.manifest import finish
from pipeline.shards.manifest import EXPORT, MANIFEST
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import TEMPORARY, OutputDirectory, refuse_credentials, to_json
from pipeline.storage.run_record import check_command

RECORD = "run.json"
CARD_FILES = (CARD, *(f"{PICTURES}/{name}.png" for name in CARD_PLOTS))
"""What an export that has a card writes beside its data."""


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
    refuse_credentials("--shards", config.shards)
    flag = "--staging" if config.on_hub else "--output"
    refuse_credentials(flag, config.directory)
    refuse_lost_output(config.directory, flag)
    try:
        shards = ShardSet(config.shards)
    except PipelineError as error:
        raise ConfigError(f"--shards {error}") from error
    config.check_shards(shards)
    output = OutputDirectory(_directory(shards, config))
    if f"{output.url}/".startswith(f"{shards.output.url}/"):
        raise ConfigError(f"{flag} {config.directory}: lies in the shard set; choose another place")
    pieces = plan_export(shards, config)
    _check_begun(shards, config, output, flag)
    if config.on_hub:  # before anything is written or removed, so that a wrong token costs nothing
        open_repository(config, output)
    _begin(pieces, shards, config, output)
    began = time.monotonic()
    done = _committed(config, output)
    waiting = [i for i, piece in enumerate(pieces) if piece.entry.name not in done]
    failures: list[str] = []
    if waiting:
        failures = _run_pool(waiting, pieces, shards, config, output, console)
    files = _in_order(pieces, _committed(config, output))
    complete = len(files) == len(pieces)
    if not complete and not failures:
        raise PipelineError(
            f"{flag} {output.url}: files that workers committed cannot be seen from here; is it on "
            "storage that all nodes share?"
        )
    told = (MANIFEST, CARD) if config.has_card else (MANIFEST,)
    if complete and (waiting or not all(map(output.exists, told))):
        finish(files, shards, config, output)
    problems = _verify(files, config, output, console) if config.verify else []
    pushed = 0
    if config.on_hub and complete and not problems:
        there = output.sizes()
        beside = [name for name in (MANIFEST, *CARD_FILES) if name in there]
        pushed = push(files, beside, config, output, console)
    output.remove_temporary()
    return ExportShardsResult(
        output=config.output if config.on_hub else output.url,
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


def _directory(shards: ShardSet, config: ExportShardsConfig) -> str:
    """Where the files and the record of the export lie."""
    if config.format != "reference":
        return config.directory
    source = str(shards.manifest["entropy_model"]["source"])
    model = config.entropy_model_name or PurePosixPath(source.rstrip("/")).name
    if model in ("", ".", ".."):
        raise ConfigError(f"--entropy-model-name: the set says {source!r}; name the model")
    return f"{config.output.rstrip('/')}/{corpus_name(shards, config)}/{model}"


def _content(shards: ShardSet, config: ExportShardsConfig) -> dict[str, Any]:
    """What decides what is written."""
    manifest = hashlib.sha256(shards.output.read(MANIFEST)).hexdigest()
    return config.content() | {"shards (sha256 of the manifest)": manifest}


def _check_begun(
    shards: ShardSet, config: ExportShardsConfig, output: OutputDirectory, flag: str
) -> None:
    """
    Raises:
        PipelineError: the output holds something else, or another export that is to stay.
    """
    where = f"{flag} {output.url}"
    if output.exists(RECORD):
        try:
            record = output.read_json(RECORD)
        except PipelineError as error:
            raise PipelineError(
                f"{where}: {RECORD} is damaged; remove the directory, or choose another"
            ) from error
        if not isinstance(record, dict) or record.get("stage") != EXPORT:
            raise ConfigError(f"{where}: holds something else; choose another directory")
        if not config.overwrite:
            check_command(where, record["content"], _content(shards, config))
    elif set(output.names()) - {TEMPORARY, PUSHED}:
        raise ConfigError(f"{where}: is not empty, and was not begun by an export")


def _begin(
    pieces: list[Piece], shards: ShardSet, config: ExportShardsConfig, output: OutputDirectory
) -> None:
    """Record a new export; go on with one that was begun, or remove it."""
    if output.exists(RECORD):
        if not config.overwrite:
            return
        _remove(output)
    output.check_writable()
    files = [{"name": piece.entry.name, "path": piece.path} for piece in pieces]
    content = _content(shards, config)
    output.write(RECORD, to_json({"stage": EXPORT, "content": content, "files": files}))


def _remove(output: OutputDirectory) -> None:
    """Remove what an export wrote, and nothing else; the record stays, which tells what that is."""
    record = output.read_json(RECORD)
    paths = [file["path"] for file in record["files"]]
    card = CARD_FILES if record["content"].get("format") == "datasets" else ()
    output.remove(ENTRIES)
    output.remove_files([MANIFEST, *card, *map(complete_mark, paths), *paths])


def _committed(config: ExportShardsConfig, output: OutputDirectory) -> dict[str, ExportedFile]:
    """Files that were written and are still there, by the name of their shard."""
    there = output.sizes()
    entries = (ExportedFile(**values) for values in output.read_all_json(ENTRIES).values())
    return {
        file.name: file
        for file in entries
        if there.get(file.path) == file.bytes
        and (config.format != "reference" or complete_mark(file.path) in there)
    }


def _in_order(pieces: list[Piece], done: Mapping[str, ExportedFile]) -> list[ExportedFile]:
    return [done[piece.entry.name] for piece in pieces if piece.entry.name in done]


def _run_pool(
    waiting: list[int],
    pieces: list[Piece],
    shards: ShardSet,
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
        fn_args=(ray.put((shards.without_entries(), pieces)), config, output, board),
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
        shards, pieces = ray.get(shared)
        try:
            export_shard(shards, pieces[number], config, output)
        except DamagedShardError as error:
            return str(error)
        report(pieces[number].bytes)
        return ""

    return attempt(row, board, export)


def _verify(
    files: list[ExportedFile], config: ExportShardsConfig, output: OutputDirectory, console: Console
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
        fn_args=(ray.put([replace(file, statistics={}) for file in files]), output, board),
        concurrency=config.num_workers,
    )
    wrong = [i for i in sorted(said) if said[i]]
    if wrong:  # the next run writes them anew; until then nobody should take them for good
        entries = [f"{ENTRIES}/{files[i].name}.json" for i in wrong]
        marks = [complete_mark(files[i].path) for i in wrong]
        output.remove_files([MANIFEST, *marks, *entries])
    return [f"{said[i]}; run the same command again to write it anew" for i in wrong]


def _verify_file(
    row: dict[str, Any], shared: Any, output: OutputDirectory, board: Any
) -> dict[str, Any]:
    bound_memory()

    def verify(number: int, report: Reporter) -> str:
        file = ray.get(shared)[number]
        problem = verify_file(file, output)
        report(file.bytes)
        return problem or ""

    return attempt(row, board, verify)
