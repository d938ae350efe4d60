"""The Ray stage of ``export_shards.py``: a shard set → files of another layout, each committed."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import ray
from rich.console import Console

from pipeline.cluster import connect, refuse_lost_output
from pipeline.dataset_card import CARD, PICTURES, write_card
from pipeline.errors import ConfigError, DamagedShardError, PipelineError
from pipeline.export import (
    ENTRIES,
    ExportedFile,
    Piece,
    corpus_name,
    export_shard,
    plan_export,
    verify_file,
)
from pipeline.export_config import ExportShardsConfig
from pipeline.hub_upload import open_repository, push
from pipeline.memory import bound_memory
from pipeline.pool import attempt, new_board, work_off
from pipeline.progress import Reporter
from pipeline.resuming import check_command
from pipeline.shards import MANIFEST, ShardSet
from pipeline.statistics import PatchStatistics
from pipeline.storage import OutputDirectory, refuse_credentials, to_json

RECORD = "run.json"
STAGE = "export"
WRITTEN = (MANIFEST, RECORD, ENTRIES, CARD, PICTURES, "data")


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
    if config.on_hub:  # first of all, so that a wrong token costs no work
        open_repository(config)
    _begin(pieces, shards, config, output, flag)
    began = time.monotonic()
    done = _committed(output)
    waiting = [i for i, piece in enumerate(pieces) if piece.entry.name not in done]
    failures: list[str] = []
    if waiting or config.verify or config.on_hub:
        connect(config.num_workers)
    if waiting:
        failures = _run_pool(waiting, pieces, shards, config, output, console)
    files = _in_order(pieces, _committed(output))
    complete = len(files) == len(pieces)
    if not complete and not failures:
        raise PipelineError(
            f"{flag} {output.url}: files that workers committed cannot be seen from here; is it on "
            "storage that all nodes share?"
        )
    if complete:
        _finish(files, shards, config, output)
    problems = _verify(files, config, output, console) if config.verify else []
    pushed = 0
    if config.on_hub and complete and not problems:
        beside = [f"{PICTURES}/{name}" for name in output.names(PICTURES)]
        pushed = push(files, [MANIFEST, *beside, CARD], config, output, console)
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
    return f"{config.output.rstrip('/')}/{corpus_name(shards, config)}/{model}"


def _begin(
    pieces: list[Piece],
    shards: ShardSet,
    config: ExportShardsConfig,
    output: OutputDirectory,
    flag: str,
) -> None:
    """Record a new export, or check that this is the one that was begun."""
    where = f"{flag} {output.url}"
    manifest = hashlib.sha256(shards.output.read(MANIFEST)).hexdigest()
    content = config.content() | {"shards (sha256 of the manifest)": manifest}
    if output.exists(RECORD):
        record = output.read_json(RECORD)
        if record.get("stage") != STAGE:
            raise ConfigError(f"{where}: holds something else; choose another directory")
        if not config.overwrite:
            check_command(where, record["content"], content)
            return
        for name in (*WRITTEN, *(file["path"] for file in record["files"])):
            output.remove(name)
            output.remove(f"{name}.complete")
    elif output.names():
        raise ConfigError(f"{where}: is not empty, and was not begun by an export")
    output.check_writable()
    files = [{"name": piece.entry.name, "path": piece.path} for piece in pieces]
    output.write(RECORD, to_json({"stage": STAGE, "content": content, "files": files}))


def _committed(output: OutputDirectory) -> dict[str, ExportedFile]:
    entries = output.read_all_json(ENTRIES).values()
    return {values["name"]: ExportedFile(**values) for values in entries}


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
        fn_args=(ray.put((shards.light(), pieces)), config, output, board),
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
    for i in wrong:  # the next run writes it anew
        output.remove(f"{ENTRIES}/{files[i].name}.json")
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


def _finish(
    files: list[ExportedFile],
    shards: ShardSet,
    config: ExportShardsConfig,
    output: OutputDirectory,
) -> None:
    """Write the card, where there is one, and the manifest."""
    statistics = PatchStatistics()
    for file in files:
        statistics += PatchStatistics.from_json(file.statistics)
    kept = ("tokenizer", "entropy_model", "patcher", "sources")
    made = {name: shards.manifest[name] for name in kept if name in shards.manifest}
    if config.threshold is not None:
        made["patcher"] = made["patcher"] | {"threshold": config.threshold}
    if config.format in ("datasets", "hub"):
        name = config.output.rstrip("/").rpartition("/")[2]
        write_card(name, files, made, statistics, shards, output)
    manifest = {
        "stage": STAGE,
        "format": config.format,
        **made,
        "statistics": statistics.to_json(),
        "files": [asdict(file) for file in files],
    }
    output.write(MANIFEST, to_json(manifest))
