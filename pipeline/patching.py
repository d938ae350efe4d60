"""The Ray stage: a corpus → committed patch shards, on all devices of a cluster.

Ray Data runs an actor pool over the splits; it schedules, scales the pool and repeats what a lost
node had not committed. The driver plans, shows progress, and writes the manifest.
"""

import logging
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

import model as model_package
import pipeline as pipeline_package
from model.checkpoint import (
    CheckpointError,
    fingerprint,
    load_entropy_model,
    save_entropy_model,
    to_device,
)
from model.entropy_model import EntropyModel
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE
from pipeline.calibration import calibrate, fit_ngram, sample_documents
from pipeline.config import NGRAM, PatchCorpusConfig
from pipeline.documents import SUFFIXES, FilePlan, Split, file_format, plan_file
from pipeline.errors import ConfigError, PipelineError, UnreachableFileError
from pipeline.progress import Board, Reporter, shown
from pipeline.run import (
    MODEL_DIRECTORY,
    Run,
    is_complete,
    remove_run,
    source_records,
)
from pipeline.scoring import Scorer
from pipeline.shards import ShardEntry, ShardSet, shard_schema, write_manifest
from pipeline.statistics import PatchStatistics
from pipeline.storage import InputFile, OutputDirectory, list_inputs
from pipeline.worker import patch_split

Model = EntropyModel | NGramEntropyModel
MOST_BLOCKS = 4096
"""Blocks that Ray Data keeps account of; beyond that a block is several splits."""


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
    files = list_inputs(config.input, suffixes=tuple(SUFFIXES))
    for file in files:
        if file_format(file, config.format) is None:
            raise ConfigError(f"--format: cannot tell what {file.url} holds from its name")
    output = OutputDirectory(config.output)
    if config.overwrite:
        remove_run(output)
    output.remove_temporary()
    run = Run.load(output)
    given_model = None if config.entropy_model == NGRAM else _load_model(config.entropy_model)
    connect(config)
    if run is None:
        run, model = _begin(config, files, given_model, output, console)
    else:
        run, model = _go_on(run, config, files, given_model, output, console)
    scorer = Scorer(model, Patcher(**run.made_with["patcher"]), config.reset_at_newline)
    return _patch(run, config, scorer, output, console)


def connect(config: PatchCorpusConfig) -> None:
    """Join the cluster of ``RAY_ADDRESS`` (a submitted job has one), or start a local Ray."""
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if os.environ.get("RAY_ADDRESS"):
        # Inside a submitted job the working directory holds the code already.
        submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
        packages = [
            str(Path(cast(str, p.__file__)).parent) for p in (model_package, pipeline_package)
        ]
        ray.init(
            logging_level=logging.WARNING,
            runtime_env=None if submitted else {"py_modules": packages},
        )
    else:
        cpus = max(os.cpu_count() or 1, config.num_workers or 1)
        ray.init(
            address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING
        )


def _begin(
    config: PatchCorpusConfig,
    files: list[InputFile],
    model: Model | None,
    output: OutputDirectory,
    console: Console,
) -> tuple[Run, Model]:
    """Plan a new run, fit and calibrate what it needs, and record it."""
    splits = _plan(files, config)
    if model is None:
        console.print(f"fitting an n-gram entropy model on up to {config.ngram_bytes / 1e6:.0f} MB")
        model = _in_ray(_fit, 0, splits, config)
        _save_model(model, output)
    patcher = config.patcher(0.0 if config.calibrates else config.threshold)
    if config.calibrates:
        scorer = Scorer(model, patcher, config.reset_at_newline)
        patcher = _in_ray(_calibrate, gpus_per_worker(config, model), scorer, splits, config)
        console.print(
            f"threshold {patcher.threshold!r} nats gives {config.target_patch_size} bytes a patch"
            " on the sample"
        )
    schema = shard_schema(config.keep_columns, entropies=config.keep_entropies)
    made_with = {
        "tokenizer": {
            "offset": BYTE_OFFSET,
            "bos": BOS_ID,
            "eos": EOS_ID,
            "vocabulary": VOCAB_SIZE,
        },
        "entropy_model": _describe(model, config),
        "patcher": _patcher_settings(patcher),
        "columns": schema.names,
        "sources": source_records(files),
        "configuration": config.content(),
    }
    run = Run(files, splits, _content(config, model), made_with)
    run.save(output)
    return run, model


def _go_on(
    run: Run,
    config: PatchCorpusConfig,
    files: list[InputFile],
    model: Model | None,
    output: OutputDirectory,
    console: Console,
) -> tuple[Run, Model]:
    """Check that this is the run that was begun."""
    if model is None:
        model = _load_model(output.locate(MODEL_DIRECTORY))
    run.check_same(_content(config, model), files, output)
    console.print(f"going on with the run in {output.url}")
    if config.calibrates:
        console.print(
            f"threshold {run.made_with['patcher']['threshold']!r} nats, as calibrated then"
        )
    return run, model


def _content(config: PatchCorpusConfig, model: Model) -> dict[str, Any]:
    described = _describe(model, config)
    return config.content() | {
        "entropy_model fingerprint": described["fingerprint"],
        "entropy_model device and dtype": described["computed_in"],
    }


def _describe(model: Model, config: PatchCorpusConfig) -> dict[str, Any]:
    on_gpu = gpus_per_worker(config, model) > 0
    return {
        "source": config.entropy_model,
        "fingerprint": fingerprint(model),
        "computed_in": "cuda bfloat16" if on_gpu else "cpu float32",
        "reset_at_newline": config.reset_at_newline,
    }


def _patcher_settings(patcher: Patcher) -> dict[str, Any]:
    return {name: value for name, value in vars(patcher).items() if value is not None}


def _load_model(source: str) -> Model:
    try:
        return load_entropy_model(source, device="cpu", dtype=torch.float32)
    except CheckpointError as error:
        raise ConfigError(f"--entropy-model: {error}") from error


def _save_model(model: Model, output: OutputDirectory) -> None:
    with tempfile.TemporaryDirectory() as directory:
        save_entropy_model(model, directory)
        for path in sorted(Path(directory).iterdir()):
            output.write(f"{MODEL_DIRECTORY}/{path.name}", path.read_bytes())


def gpus_per_worker(config: PatchCorpusConfig, model: Model) -> float:
    """GPUs that each worker gets: none for an n-gram model or where there are none."""
    if isinstance(model, NGramEntropyModel):
        return 0
    if config.gpus_per_worker is not None:
        return config.gpus_per_worker
    return 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0


def _in_ray(task: Any, gpus: float, *arguments: Any) -> Any:
    """The result of a task that runs where a worker could, with its errors as they were raised."""
    try:
        return ray.get(task.options(num_gpus=gpus).remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


@ray.remote(num_cpus=1)
def _plan_files(files: list[tuple[InputFile, Any]], split_bytes: int) -> list[FilePlan]:
    return [plan_file(file, kind, split_bytes) for file, kind in files]


@ray.remote(num_cpus=1)
def _fit(splits: list[Split], config: PatchCorpusConfig) -> NGramEntropyModel:
    return fit_ngram(sample_documents(splits, config, config.ngram_bytes), config)


@ray.remote(num_cpus=1)
def _calibrate(scorer: Scorer, splits: list[Split], config: PatchCorpusConfig) -> Patcher:
    documents = sample_documents(splits, config, config.calibration_bytes)
    return calibrate(_on_device(scorer), documents, cast(float, config.target_patch_size))


def _on_device(scorer: Scorer) -> Scorer:
    """The scorer with its model where this process computes, in one thread on a CPU.

    One thread, because each worker has one core, and because results must not depend on how many
    cores a machine has.
    """
    torch.set_num_threads(1)
    return replace(scorer, model=to_device(cast(Model, scorer.model)))


def _plan(files: list[InputFile], config: PatchCorpusConfig) -> list[Split]:
    """Splits of all files, in order.

    Raises:
        ConfigError: a column is missing in every file.
    """
    known = [(file, file_format(file, config.format)) for file in files]
    parts = [known[i : i + 64] for i in range(0, len(known), 64)]
    pending = [_plan_files.remote(part, config.shard_bytes) for part in parts]
    plans = [plan for part in ray.get(pending) for plan in part]
    offered = [plan.columns for plan in plans if plan.columns is not None]
    wanted = [("--text-column", config.text_column), ("--id-column", config.id_column)]
    wanted += [("--keep-columns", name) for name in config.keep_columns]
    for flag, name in wanted:
        if name and len(offered) == len(plans) and not any(name in names for names in offered):
            there = ", ".join(dict.fromkeys(name for names in offered for name in names))
            raise ConfigError(f"{flag}: no input file has a column {name!r}; there are {there}")
    return [split for plan in plans for split in plan.splits]


class PatchWorker:
    """One actor of the pool: holds the model, patches splits."""

    def __init__(self, shared: Any, config: PatchCorpusConfig, board: Any):
        scorer, run = ray.get(shared)  # a reference: fetched once for each node, not each worker
        self.scorer = _on_device(scorer)
        self.numbers = {file: i for i, file in enumerate(run.files)}
        self.splits, self.config, self.board = run.splits, config, board
        self.output = OutputDirectory(config.output)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        place = int(row["item"])
        split = self.splits[place]
        report = Reporter(self.board, place)
        outcome = {"split": place, "unreachable": "", "fatal": ""}
        try:
            number = self.numbers[split.file]
            patch_split(split, number, self.config, self.scorer, self.output, report)
        except UnreachableFileError as error:
            outcome["unreachable"] = str(error)
        except PipelineError as error:
            outcome["fatal"] = str(error)
        return outcome | {"bytes": report.done}


def _patch(
    run: Run, config: PatchCorpusConfig, scorer: Scorer, output: OutputDirectory, console: Console
) -> PatchCorpusResult:
    committed = run.committed(output)
    done = {place: _text_bytes(e) for place, e in committed.items() if is_complete(e)}
    waiting = [place for place in range(len(run.splits)) if place not in done]
    bytes_before = sum(map(_text_bytes, committed.values()))
    began = time.monotonic()
    unreachable = _run_pool(waiting, done, run, config, scorer, output, console) if waiting else []
    seconds = time.monotonic() - began
    committed = run.committed(output)
    entries = [entry for place in range(len(run.splits)) for entry in committed[place]]
    unfinished = [p for p in range(len(run.splits)) if not is_complete(committed[p])]
    if unfinished and not unreachable:
        raise PipelineError(
            f"--output {output.url}: shards that workers committed cannot be seen from here; "
            "is it on storage that all nodes share?"
        )
    if not unfinished:
        write_manifest(output, run.made_with, entries)
    failures = unreachable + [f"{e.source}: {e.error}" for e in entries if e.error]
    statistics = sum((entry.patch_statistics for entry in entries), PatchStatistics())
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
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # The board must live as long as the driver does: keep it off nodes that may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    board = Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    blocks = min(len(waiting), MOST_BLOCKS)
    outcomes = ray.data.from_items(waiting, override_num_blocks=blocks).map(
        PatchWorker,  # type: ignore[arg-type]  # a class is what makes it an actor pool
        fn_constructor_args=(ray.put((scorer, run)), config, board),
        compute=_pool(config, len(waiting)),
        num_cpus=1,
        num_gpus=gpus_per_worker(config, cast(Model, scorer.model)) or None,
    )
    unreachable = []
    estimates = {place: split.size for place, split in enumerate(run.splits)}
    with shown(console, estimates, done, board) as finished:
        for outcome in outcomes.iter_rows():
            if outcome["fatal"]:
                raise PipelineError(outcome["fatal"])
            if outcome["unreachable"]:
                unreachable.append(outcome["unreachable"])
            finished(outcome["split"], outcome["bytes"])
    return unreachable


def _pool(config: PatchCorpusConfig, splits: int) -> ray.data.ActorPoolStrategy:
    if config.num_workers is not None:
        return ray.data.ActorPoolStrategy(size=min(config.num_workers, splits))
    return ray.data.ActorPoolStrategy(min_size=1, max_size=splits)
