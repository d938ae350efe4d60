"""The Ray stage: a corpus → committed patch shards, on all devices of a cluster.

Ray Data runs an actor pool over the splits (see pipeline/cluster/stage.py). The driver plans, shows
progress, and writes the manifest.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import ray
from rich.console import Console

from model.patcher import Patcher
from pipeline.cli.command import refuse_lost_output
from pipeline.cluster.connect import connect
from pipeline.cluster.memory import bound_memory
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import actor_pool, attempt, new_board, work_off
from pipeline.corpus.documents import SUFFIXES
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.devices import Model, gpus_per_worker, on_device
from pipeline.patch.patch_split import patch_split
from pipeline.patch.plan import begin_run, load_model, resume_run
from pipeline.patch.run import Run, is_complete, log_run
from pipeline.patch.scoring import Scorer
from pipeline.prepare.manifest import ID_COLUMN, prepared_chunks
from pipeline.shards.shard_set import ShardEntry, ShardSet, write_manifest
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.listing import list_inputs
from pipeline.storage.output import OutputDirectory, refuse_credentials


@dataclass
class PatchCorpusResult:
    """What a run did; ``complete`` is false if anything asked for was not done."""

    output: str
    complete: bool
    threshold: float | None
    statistics: PatchStatistics
    shards: int
    rejects: int
    failures: list[str]
    """Files that could not be read (to their end), and why."""
    problems: list[str]
    """What verification found, if it was asked for."""
    seconds: float
    """Spent on patching, without planning and calibration."""
    bytes_patched: int
    """Text patched by this run; what an earlier one did is not counted."""


def patch_corpus(config: PatchCorpusConfig, console: Console) -> PatchCorpusResult:
    """Patch a corpus, or what is left of it.

    Raises:
        PipelineError: the job cannot begin or go on; what is committed stays.
    """
    config.check()
    refuse_credentials("--output", config.output)
    refuse_lost_output(config.output)
    try:
        output = OutputDirectory(config.output)
        run = None if config.overwrite else Run.load(output)
    except PipelineError as error:
        raise ConfigError(f"--output: {error}") from error
    config = _with_prepared(config)
    files = list_inputs(config.input, suffixes=tuple(SUFFIXES), output=output.url)
    model = load_model(config)
    output.remove_temporary()
    connect(config.num_workers)
    if run is None:
        run, model = begin_run(config, files, model, output, console)
    else:
        run, model = resume_run(run, config, files, model, output, console)
    scorer = Scorer(model, Patcher.from_json(run.made_with["patcher"]), config.reset_at_newline)
    result = _patch(run, config, scorer, output, console)
    output.remove_temporary()
    return result


def _with_prepared(config: PatchCorpusConfig) -> PatchCorpusConfig:
    """The configuration with prepared corpora as their chunks, which have ids."""
    for url in config.input:
        refuse_credentials("--input", url)
    chunks = [prepared_chunks(url) for url in config.input]
    if not any(chunks):
        return config
    inputs = [found or [url] for url, found in zip(config.input, chunks, strict=True)]
    id_column = config.id_column or (ID_COLUMN if all(chunks) else None)
    return replace(config, input=tuple(chain.from_iterable(inputs)), id_column=id_column)


class PatchWorker:
    """One actor of the pool: holds the model, patches splits."""

    def __init__(
        self,
        shared: Any,
        config: PatchCorpusConfig,
        output: OutputDirectory,
        gpus: float,
        board: Any,
    ):
        bound_memory()
        scorer, run = ray.get(shared)  # a reference: fetched once for each node, not each worker
        self.scorer = on_device(scorer, gpus)
        self.numbers = {file: i for i, file in enumerate(run.files)}
        self.splits, self.config, self.board = run.splits, config, board
        self.output = output

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return attempt(row, self.board, self.patch)

    def patch(self, place: int, report: Reporter) -> None:
        split = self.splits[place]
        number = self.numbers[split.file]
        patch_split(split, number, self.config, self.scorer, self.output, report)


def _patch(
    run: Run, config: PatchCorpusConfig, scorer: Scorer, output: OutputDirectory, console: Console
) -> PatchCorpusResult:
    committed = run.committed(output)
    done = {place: _text_bytes(e) for place, e in enumerate(committed) if is_complete(e)}
    waiting = [place for place in range(len(run.splits)) if place not in done]
    bytes_before = sum(map(_text_bytes, committed))
    before = ray.cluster_resources()  # nodes may come, and go
    began = time.monotonic()
    unreachable = _run_pool(waiting, done, run, config, scorer, output, console) if waiting else []
    seconds = time.monotonic() - began
    committed = run.committed(output)
    entries = [entry for of_split in committed for entry in of_split]
    unfinished = not all(map(is_complete, committed))
    if unfinished and not unreachable:
        raise PipelineError(
            f"--output {output.url}: shards that workers committed cannot be seen from here; "
            "is it on storage that all nodes share?"
        )
    if not unfinished:
        write_manifest(output, run.made_with, entries)
    failures = unreachable + [f"{e.source}: {e.error}" for e in entries if e.error]
    statistics = sum((entry.patch_statistics for entry in entries), PatchStatistics())
    if statistics.bytes > bytes_before:
        resources = {k: max(v, before.get(k, 0)) for k, v in ray.cluster_resources().items()}
        used = _devices(config, cast(Model, scorer.model), len(waiting), before | resources)
        log_run(output, statistics.bytes - bytes_before, seconds, *used)
    return PatchCorpusResult(
        output=output.url,
        complete=not failures,
        threshold=scorer.patcher.threshold,
        statistics=statistics,
        shards=sum(entry.sha256 is not None for entry in entries),
        rejects=sum(entry.rejects for entry in entries),
        failures=failures,
        problems=list(ShardSet(output.url).verify()) if config.verify and not unfinished else [],
        seconds=seconds,
        bytes_patched=statistics.bytes - bytes_before,
    )


def _devices(
    config: PatchCorpusConfig, model: Model, pieces: int, resources: Mapping[str, float]
) -> tuple[float, float]:
    """CPUs and GPUs that workers had, at most; each of them has a CPU."""
    gpus = gpus_per_worker(config, model)
    room = resources.get("CPU", 0)
    if gpus:
        room = min(room, round(resources.get("GPU", 0) / gpus, 3))
    workers = int(min(config.num_workers or room, room, pieces))
    return workers, round(workers * gpus, 3)


def _text_bytes(entries: list[ShardEntry]) -> int:
    return sum(entry.statistics["bytes"] for entry in entries)


def _run_pool(
    waiting: list[int],
    done: dict[int, int],
    run: Run,
    config: PatchCorpusConfig,
    scorer: Scorer,
    output: OutputDirectory,
    console: Console,
) -> list[str]:
    """Patch the waiting splits on an actor pool; returns what is said of unreachable files."""
    board = new_board()
    gpus = gpus_per_worker(config, cast(Model, scorer.model))
    return work_off(
        {place: run.splits[place].size for place in waiting},
        done,
        console,
        "patching",
        board,
        PatchWorker,
        fn_constructor_args=(ray.put((scorer, run)), config, output, gpus, board),
        compute=actor_pool(config.num_workers, len(waiting)),
        num_gpus=gpus or None,
    )
