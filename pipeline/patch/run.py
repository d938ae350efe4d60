"""The work of a patching run: its stage on the cluster, and the closing of its set.

:mod:`pipeline.patch.job` begins or resumes the run; here its workers hold the model and commit the
shards of splits (see :mod:`pipeline.cluster.stage`), and the driver writes the manifest.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import ray
from rich.console import Console

from pipeline.cli.results import print_line
from pipeline.cluster.packed import Packed
from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import StageOutcome, run_stage, unshared_storage
from pipeline.corpus.documents import rejected_before
from pipeline.corpus.splits import Unit
from pipeline.patch.collect import closed_set, committed_shards, damaged_shards, sum_shards
from pipeline.patch.devices import gpus_per_worker, record_software
from pipeline.patch.patch_split import AnyScorer, Source, give_up, patch_unit
from pipeline.patch.record import PatchRun, is_complete, log_run
from pipeline.patch.result import PatchCorpusResult
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.stored import StoredScorer
from pipeline.patch.verify import verify_set
from pipeline.shards.closing import Closing, Part
from pipeline.shards.entries import Shard, committed_names
from pipeline.shards.format import shard_schema
from pipeline.shards.tables import as_shards
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.output import OutputDirectory


class _Shared(NamedTuple):
    """Values that all units of a run need."""

    units: Packed[tuple[Unit, int] | None]
    """With the number of its first file each; None for those that are done."""
    config: ShardsConfig
    scorer: AnyScorer
    gpus: float
    """GPUs per worker."""
    computed_in: str | None
    """The device that all workers must have; None if nothing is computed."""
    output: OutputDirectory


def _hold_model(shared: _Shared) -> _Shared:
    return shared._replace(scorer=shared.scorer.on_device(shared.gpus))


def _patch_unit(number: int, shared: _Shared, report: Reporter) -> None:
    shared.scorer.check_device(shared.computed_in)
    unit = shared.units[number]
    assert unit is not None
    arguments = (*unit, shared.config, shared.scorer, shared.output)
    patch_unit(*arguments, report, report.count)


def patch_left(
    run: PatchRun,
    config: ShardsConfig,
    source: Source,
    scorer: AnyScorer,
    output: OutputDirectory,
    console: Console,
) -> PatchCorpusResult:
    """Patch what is left of a run, and close its set.

    Raises:
        PipelineError: the job cannot continue; what is committed stays.
    """
    closed = closed_set(output, console)
    present = committed_shards(output, closed, console, config.num_workers)
    damaged: dict[str, str] = {}
    if config.verify:
        damaged = damaged_shards(output, list(present.values()), console, config.num_workers)
    for message in run.discard_lost(present, output, damaged):
        console.print(message, highlight=False)
    waiting, done, bytes_before = _left(run, present)
    before = ray.cluster_resources()  # nodes may come, and go
    began = time.monotonic()
    gpus = gpus_per_worker(config, source)
    if waiting and gpus:
        record_software(run, gpus, output, console)
    computed_in = run.provenance["entropy_model"].get("computed_in")
    shared = _Shared(Packed([]), config, scorer, gpus, computed_in, output)
    run, unreachable = _patch_units(run, waiting, done, shared, console)
    seconds = time.monotonic() - began
    if waiting or closed is None:
        finished = not unreachable
        entries, statistics = _collect(run, config, output, console, finished=finished)
    else:
        entries, statistics = closed.entries, closed.statistics
    verifies = config.verify and not unreachable
    failures = unreachable + [f"{e.source}: {e.error}" for e in entries if e.error]
    rejects = sum(entry.rejects for entry in entries)
    if rejects and config.on_bad_document == "fail":
        failures.append(rejected_before(rejects))
    if statistics.bytes > bytes_before:
        resources = {k: max(v, before.get(k, 0)) for k, v in ray.cluster_resources().items()}
        used = _devices(config.num_workers, gpus, len(waiting), before | resources)
        log_run(output, statistics.bytes - bytes_before, seconds, *used)
    return PatchCorpusResult(
        output=output.url,
        complete=not failures,
        threshold=scorer.patcher.threshold,
        target_patch_size=config.target_patch_size,
        statistics=statistics,
        shards=sum(entry.sha256 is not None for entry in entries),
        rejects=rejects,
        failures=failures,
        problems=verify_set(output, console, config.num_workers) if verifies else [],
        seconds=seconds,
        bytes_patched=statistics.bytes - bytes_before,
    )


def _left(
    run: PatchRun, present: Mapping[str, Shard]
) -> tuple[dict[int, int], dict[int, int], int]:
    """The estimated bytes of each unit that is left to do, the bytes of each that is done, and the
    bytes of all that is committed.

    Args:
        present: the committed shards, by name.
    """
    committed = run.committed(present)
    done = {i: _text_bytes(shards) for i, shards in enumerate(committed) if is_complete(shards)}
    sizes = (sum(split.size for split in unit) for unit in run.units)
    waiting = {i: size for i, size in enumerate(sizes) if i not in done}
    return waiting, done, sum(map(_text_bytes, committed))


def _patch_units(
    run: PatchRun,
    waiting: Mapping[int, int],
    done: Mapping[int, int],
    shared: _Shared,
    console: Console,
) -> tuple[PatchRun, list[str]]:
    """Patch all units that are left. A unit of several files that ends its workers is cut into
    smaller ones, until the file that does it is found and given up.

    Args:
        shared: without units.

    Returns:
        the run with the units that it has then, and why files could not be reached.
    """
    output, workers = shared.output, shared.config.num_workers
    while True:
        outcome = _run_units(run, waiting, done, shared, console)
        crowded = {n: how for n, how in outcome.deadly.items() if len(run.units[n]) > 1}
        if not crowded:
            break
        for number, how in crowded.items():
            first, last = (run.units[number][i].file.url for i in (0, -1))
            message = f"one of the files from {first} to {last} {how}: looking for it"
            print_line(console, message)
        run = run.with_smaller_units(crowded, output)
        waiting, done, _ = _left(run, committed_shards(output, None, console, workers))
    numbers = {file: i for i, file in enumerate(run.files)}
    for number, reason in outcome.deadly.items():
        unit = run.units[number]
        give_up(unit, numbers[unit[0].file], reason, output)
    return run, outcome.unreachable


def _run_units(
    run: PatchRun,
    waiting: Mapping[int, int],
    done: Mapping[int, int],
    shared: _Shared,
    console: Console,
) -> StageOutcome:
    numbers = {file: i for i, file in enumerate(run.files)}
    units = Packed(
        (unit, numbers[unit[0].file]) if i in waiting else None for i, unit in enumerate(run.units)
    )
    return run_stage(
        "adopting" if isinstance(shared.scorer, StoredScorer) else "patching",
        _patch_unit,
        waiting,
        shared._replace(units=units),
        console,
        done=done,
        workers=shared.config.num_workers,
        setup=_hold_model,
        gpus=shared.gpus,
        gives_up=True,
    )


def _collect(
    run: PatchRun,
    config: ShardsConfig,
    output: OutputDirectory,
    console: Console,
    *,
    finished: bool,
) -> tuple[list[Shard], PatchStatistics]:
    """All committed shards in order, and the sum of their statistics; close the set if it is
    finished.

    Raises:
        PipelineError: the storage does not show what workers committed.
    """
    schema = shard_schema(config.keep_columns, entropies=config.keep_entropies)
    there = {name: name for name in committed_names(output)}
    names = [name for of_split in run.committed(there) for name in of_split]
    shards: list[Shard] = []
    statistics = PatchStatistics()
    with ExitStack() as stack:
        closing = stack.enter_context(Closing(output, run.provenance)) if finished else None

        def receive(part: Part) -> None:
            nonlocal statistics
            shards.extend(as_shards(part.entries))
            statistics += part.statistics
            if closing is not None:
                closing.add(part)

        sum_shards(output, names, schema, receive, console, config.num_workers)
        by_name = {shard.name: shard for shard in shards}
        if finished and not all(map(is_complete, run.committed(by_name))):
            raise unshared_storage(f"--output {output.url}")
    return shards, statistics


def _devices(
    num_workers: int | None, gpus: float, pieces: int, resources: Mapping[str, float]
) -> tuple[float, float]:
    """CPUs and GPUs that all workers had, at most.

    Args:
        gpus: per worker, which also has one CPU.
    """
    room = resources.get("CPU", 0)
    if gpus:
        room = min(room, round(resources.get("GPU", 0) / gpus, 3))
    workers = int(min(num_workers or room, room, pieces))
    return workers, round(workers * gpus, 3)


def _text_bytes(shards: list[Shard]) -> int:
    return sum(shard.bytes for shard in shards)
