"""The plan of a run: its units of work, its entropy model and its threshold.

A new run is planned, fitted and calibrated, then recorded; a rerun is checked against the record.
"""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import ray
import torch
from rich.console import Console

from model.checkpoints.entropy_model import (
    CheckpointError,
    fingerprint,
    load_entropy_model,
    save_entropy_model,
)
from model.device import same_rounding
from model.entropy_model import EntropyModel
from model.flops import entropy_model_flops
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.provenance import EntropyModelIdentity
from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE
from pipeline.cli.progress_bar import amount_text
from pipeline.cluster.connect import in_ray
from pipeline.cluster.plan_splits import plan_files, splits_of, text_bytes
from pipeline.corpus.ids import Ids
from pipeline.corpus.splits import Split, size_of_splits, units_of
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.calibrate import Calibration, calibrate
from pipeline.patch.collect import committed_shards
from pipeline.patch.config import NGRAM, PatchCorpusConfig
from pipeline.patch.devices import gpus_per_worker, workers_compute_in
from pipeline.patch.fit_ngram import fit_ngram, sample_documents
from pipeline.patch.patch_split import AnyScorer, Source
from pipeline.patch.printed import (
    print_calibration,
    print_columns,
    print_largest,
    print_left_out,
    print_threshold,
)
from pipeline.patch.record import MODEL_DIRECTORY, PatchRun, source_records
from pipeline.patch.scoring import AnyEntropyModel, Scorer
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.stored import StoredEntropies, StoredScorer
from pipeline.shards.format import shard_schema
from pipeline.shards.manifest import validation_of
from pipeline.shards.shard_set import TOKENIZER_FILE
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory

COMPUTED_IN = "device and dtype"
"""The setting that holds what :func:`model.device.computing_in` returns."""
SPLIT_FLOPS = 250e9
"""FLOPs that are worth a split of their own: some ten seconds of a CPU core."""
LEAST_SPLIT, LARGEST_LEAST = 128 << 10, 8 << 20
"""Bounds of the bytes of text that are worth a split of their own."""
COSTLY_FLOPS, MOST_CALIBRATIONS = 1e6, 8
"""FLOPs per byte up to which a calibration may score more than --calibration-bytes, in proportion,
and how many times as much, at most."""


def load_fitted_model(output: OutputDirectory) -> AnyEntropyModel:
    """The n-gram model that was fitted for a run.

    Raises:
        ConfigError: it cannot be loaded.
    """
    return _load(output.locate(MODEL_DIRECTORY))


def load_given_model(config: PatchCorpusConfig) -> AnyEntropyModel | None:
    """The entropy model that was asked for; None if one is to be fitted.

    Raises:
        ConfigError: it cannot be loaded.
    """
    return None if config.scored_with == NGRAM else _load(config.scored_with)


def _load(source: str) -> AnyEntropyModel:
    try:
        return load_entropy_model(source, device="cpu", dtype=torch.float32)
    except CheckpointError as error:
        raise ConfigError(f"--entropy-model: {error}") from error


def begin_run(
    config: ShardsConfig,
    files: list[InputFile],
    model: Source | None,
    output: OutputDirectory,
    console: Console,
) -> tuple[PatchRun, Source]:
    """Plan a new run, fit and calibrate what it needs, and record it.

    Args:
        model: what entropies come from; None: an n-gram model that is to be fitted.
    """
    split_bytes = _split_bytes(config, files, model)
    plans = plan_files(files, config.format, config.columns, split_bytes)
    splits, units = splits_of(plans), units_of(plans, split_bytes)
    ids = Ids(config.id_column) if config.id_column else Ids.choose(plans, config.columns)
    config = replace(config, usual_id=None if config.id_column else ids.column)
    output.check_writable()
    computed_in = workers_compute_in(config, model, console)
    if config.overwrite:  # only now: a wrong flag must not cost the earlier result
        for made in (OutputDirectory(validation_of(output.url)), output):
            PatchRun.remove(made)
    print_columns(config, plans, ids, console)
    print_largest(units, split_bytes, console)
    if model is None or config.calibrates:
        sent = ray.put(splits)  # once: of many small files they are many megabytes
    if model is None:
        assert isinstance(config, PatchCorpusConfig)
        console.print(f"fitting an n-gram entropy model on up to {amount_text(config.ngram_bytes)}")
        model, left_out = in_ray(_fit, 0, sent, config)
        print_left_out("fitted", left_out, console)
    if isinstance(config, PatchCorpusConfig) and config.scored_with == NGRAM:
        assert isinstance(model, AnyEntropyModel)
        _save(model, output)
    described = _describe(model, config, computed_in)
    patcher = config.patcher
    if config.calibrates:
        gpus = gpus_per_worker(config, model)
        scorer = scorer_of(model, patcher, config)
        calibration: Calibration = in_ray(_calibrate, gpus, scorer, gpus, computed_in, sent, config)
        patcher = calibration.patcher
        print_left_out("calibrated", calibration.left_out, console)
        print_calibration(calibration, cast(float, config.target_patch_size), console)
    if config.bpe is not None:
        output.write(TOKENIZER_FILE, config.bpe.content)
    tokenizer = {"offset": BYTE_OFFSET, "bos": BOS_ID, "eos": EOS_ID, "vocabulary": VOCAB_SIZE}
    provenance = {
        "tokenizer": tokenizer,
        "entropy_model": described,
        "patcher": patcher.to_json(),
        "columns": shard_schema(config.keep_columns, entropies=config.keep_entropies).names,
        "ids": {"column": ids.column, "others": list(ids.others)},
        "sources": source_records(files),
        "configuration": config.content(),
    }
    run = PatchRun(files, units, _content(config, described), provenance, split_bytes)
    run.begin(output)
    print_threshold(config, run, console)
    return run, model


def _split_bytes(config: ShardsConfig, files: list[InputFile], model: Source | None) -> int:
    """Bytes of text per split. They follow from the input and the settings alone: workers and
    devices have no say, so that others find the same splits.

    A split should be worth some seconds of a CPU core: of a costly model, a short text is.
    """
    flops = _forward_flops(model) if isinstance(model, AnyEntropyModel) else 0
    least = int(min(max(SPLIT_FLOPS / max(flops, 1), LEAST_SPLIT), LARGEST_LEAST))
    estimate = text_bytes(files, config.format)
    return size_of_splits(estimate, len(files), least, config.split_bytes)


def scorer_of(model: Source, patcher: Patcher, config: ShardsConfig) -> AnyScorer:
    """Choose the scorer that gives documents their entropies and patches."""
    if isinstance(model, StoredEntropies):
        return StoredScorer(patcher, config.bpe)
    return Scorer(model, patcher, config.reset_at_newline, config.bpe)


def resume_run(
    run: PatchRun,
    config: ShardsConfig,
    files: list[InputFile],
    model: Source | None,
    output: OutputDirectory,
    console: Console,
) -> tuple[PatchRun, Source]:
    """Check that this is the run that was begun.

    Files that were broken and have changed since are planned again; with ``--retry-failed`` all
    that were broken.

    Raises:
        PipelineError: something else differs.
    """
    if model is None:
        model = load_fitted_model(output)
        if fingerprint(model) != run.provenance["entropy_model"]["fingerprint"]:
            raise PipelineError(
                f"{output.locate(MODEL_DIRECTORY)}: is damaged: it is not the model that this run "
                "was begun with; restore it, or start anew with --overwrite"
            )
    content = _content(config, _describe(model, config, workers_compute_in(config, model, console)))
    content[COMPUTED_IN] = _begun_in(run, content[COMPUTED_IN], output, console)
    mended, broken = run.changed_files(content, files, output), set[str]()
    if mended or config.retry_failed:
        shards = committed_shards(output, None, console, config.num_workers).values()
        broken = {shard.source for shard in shards if shard.error}
    run.check_broken(mended, broken, output)
    console.print(f"continuing the run in {output.url}", highlight=False)
    if output.read_json(run.path)["format_version"] != run.format_version:
        run.begin(output)  # from now on no earlier release may continue it
    reason = "was broken and has changed"
    if config.retry_failed:
        mended, reason = [file for file in files if file.name in broken], "was broken"
    if mended:
        for file in mended:
            console.print(f"{file.url} {reason}: reading it again", highlight=False, markup=False)
        # A run of an earlier release has no size of its own; splits were as large as shards then.
        split_bytes = run.split_bytes or config.split_bytes
        plans = plan_files(mended, config.format, config.columns, split_bytes)
        run = run.with_files(mended, plans, output)
    if config.bpe is not None and not output.exists(TOKENIZER_FILE):
        output.write(TOKENIZER_FILE, config.bpe.content)
    print_threshold(config, run, console)
    return run, model


def _begun_in(
    run: PatchRun, computed_in: str | None, output: OutputDirectory, console: Console
) -> str | None:
    """The device that the run was begun in, if the one of now may be the same kind; else the one
    of now."""
    begun_in = run.settings.get(COMPUTED_IN)
    if begun_in in (None, computed_in) or not same_rounding(begun_in, computed_in):
        return computed_in
    console.print(
        f"{output.url} was begun in {begun_in}, on a GPU that its record does not name; if it "
        f"was of another kind than {computed_in}, entropies are rounded differently "
        "from here on",
        highlight=False,
        markup=False,
    )
    return begun_in


def _content(config: ShardsConfig, described: dict[str, Any]) -> dict[str, Any]:
    return config.content() | {
        "entropy-model fingerprint": described.get("fingerprint"),
        COMPUTED_IN: described.get("computed_in"),
    }


def _describe(model: Source, config: ShardsConfig, computed_in: str | None) -> dict[str, Any]:
    if isinstance(model, StoredEntropies):
        known = asdict(model.identity) | {"flops_per_byte": model.flops_per_byte}
        return {"column": model.column} | {k: v for k, v in known.items() if v is not None}
    assert isinstance(config, PatchCorpusConfig)
    identity = EntropyModelIdentity(
        config.scored_with, fingerprint(model), computed_in, config.reset_at_newline
    )
    return asdict(identity) | {"flops_per_byte": _forward_flops(model)}


def _forward_flops(model: AnyEntropyModel) -> float:
    """FLOPs per byte."""
    return entropy_model_flops(model.config) if isinstance(model, EntropyModel) else model.flops


def _save(model: AnyEntropyModel, output: OutputDirectory) -> None:
    with tempfile.TemporaryDirectory() as directory:
        save_entropy_model(model, directory)
        for path in sorted(Path(directory).iterdir()):
            output.write(f"{MODEL_DIRECTORY}/{path.name}", path.read_bytes())


@ray.remote(num_cpus=1)
def _fit(splits: list[Split], config: PatchCorpusConfig) -> tuple[NGramEntropyModel, list[str]]:
    failures: list[str] = []
    documents = sample_documents(splits, config, config.ngram_bytes, failures)
    return fit_ngram(documents, config, failures), failures


@ray.remote(num_cpus=1)
def _calibrate(
    scorer: AnyScorer, gpus: float, computed_in: str, splits: list[Split], config: ShardsConfig
) -> Calibration:
    flops = _forward_flops(scorer.model) if isinstance(scorer, Scorer) else 0
    cheaper = int(min(max(COSTLY_FLOPS / max(flops, 1), 1), MOST_CALIBRATIONS))
    scorer = scorer.on_device(gpus)
    scorer.check_device(computed_in)
    target = cast(float, config.target_patch_size)
    return calibrate(scorer, splits, config, target, cheaper * config.calibration_bytes)
