"""Bits per byte of a model on text or shards, in all and by source, with bootstrap intervals.

One process, on a GPU if there is one; no Ray. The hot path is :mod:`pipeline.evaluate.likelihood`.
"""

import time
from array import array
from dataclasses import dataclass
from functools import partial
from math import log

import numpy as np
from rich.console import Console

from model.blt import BLT
from model.entropy_model import EntropyModel
from pipeline.cli.progress_bar import metered
from pipeline.cli.results import print_line
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import Batch, Problems, ShardData, TextData
from pipeline.evaluate.likelihood import Predictor
from pipeline.evaluate.models import (
    PatchFlags,
    Patching,
    fetched,
    load_model,
    load_patching,
)
from pipeline.evaluate.provenance import Say, compare_with_training
from pipeline.prefetch import prefetch
from pipeline.statistics.bootstrap import RESAMPLES, percentile_interval, resampled_sums


@dataclass(frozen=True)
class BitsPerByte:
    """The bits that a model needs per byte of some documents."""

    documents: int
    bytes: int
    """UTF-8 bytes of text."""
    patches: int
    """Patches of the documents; 0 for a model that reads none."""
    bits_per_byte: float | None
    """None if there is no text."""
    interval: tuple[float, float] | None
    """None if there is no text, or less than two documents, which do not tell how far documents
    vary."""

    @property
    def mean_patch_bytes(self) -> float | None:
        return self.bytes / self.patches if self.patches else None


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation; ``problems.failures`` says what was not done."""

    total: BitsPerByte
    sources: dict[str, BitsPerByte]
    problems: Problems
    seconds: float
    """Time of reading, patching and scoring."""

    @property
    def complete(self) -> bool:
        return not self.problems.failures and self.total.bits_per_byte is not None


class Tally:
    """Nats, bytes and patches of each document: 28 bytes of memory for each."""

    def __init__(self) -> None:
        self._sources: dict[str, int] = {}
        self._source, self._bytes, self._patches = array("i"), array("q"), array("q")
        self._nats = array("d")

    def add(self, batch: Batch, nats_D: np.ndarray) -> None:
        numbers = self._sources
        self._source.extend(numbers.setdefault(name, len(numbers)) for name in batch.sources)
        self._bytes.frombytes(batch.text_bytes.astype(np.int64).tobytes())
        self._patches.frombytes(batch.patch_counts.astype(np.int64).tobytes())
        self._nats.frombytes(nats_D.astype(np.float64).tobytes())

    def results(self, confidence: float, seed: int) -> tuple[BitsPerByte, dict[str, BitsPerByte]]:
        """The results of all documents together, and of each source's, by its name."""
        source_D, bytes_D, patches_D, nats_D = (
            np.array(values) for values in (self._source, self._bytes, self._patches, self._nats)
        )

        def result(at: np.ndarray | slice) -> BitsPerByte:
            return BitsPerByte(
                documents=len(bytes_D[at]),
                bytes=int(bytes_D[at].sum()),
                patches=int(patches_D[at].sum()),
                bits_per_byte=bits_per_byte(nats_D[at], bytes_D[at]),
                interval=bootstrap_interval(nats_D[at], bytes_D[at], confidence, seed),
            )

        order_D = np.argsort(source_D, kind="stable")
        ends = np.searchsorted(source_D[order_D], range(len(self._sources)), side="right")
        of_source = np.split(order_D, ends[:-1]) if len(ends) else []
        sources = {name: result(of_source[i]) for name, i in sorted(self._sources.items())}
        return result(slice(None)), sources


def bits_per_byte(nats_D: np.ndarray, bytes_D: np.ndarray) -> float | None:
    """Bits per byte of documents together; None if they hold no text."""
    total = int(bytes_D.sum())
    return float(nats_D.sum()) / (total * log(2)) if total else None


def bootstrap_interval(
    nats_D: np.ndarray,
    bytes_D: np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """Percentile interval of bits per byte over documents drawn with replacement.

    Args:
        nats_D, bytes_D: of each document.
        confidence: share of the resamples that lie within.

    Returns:
        the lower and the upper end; None if there is no text, or a single document: each resample
        would be that one, and the interval would have no width.
    """
    if len(bytes_D) < 2 or not bytes_D.sum():
        return None
    sums_R2 = resampled_sums(np.stack([nats_D, bytes_D], axis=1), seed, resamples)
    # A resample of empty documents alone says nothing.
    sums_R2 = sums_R2[sums_R2[:, 1] > 0]
    return percentile_interval(sums_R2[:, 0] / (sums_R2[:, 1] * log(2)), confidence)


def evaluate(config: EvaluateConfig, console: Console) -> Evaluation:
    """Score everything that was asked for.

    Raises:
        PipelineError: the job cannot begin or continue.
    """
    config.check()
    data = ShardData(config) if config.shards else TextData(config)
    if isinstance(data, TextData):
        data.inputs.print_unread(console)
    with fetched(config.model) as directory:
        model = load_model(directory)
        patching = _patching(config, model, directory, partial(print_line, console))
    if isinstance(data, ShardData) and isinstance(model, BLT):
        _check_readable(data)
        compare_with_training(
            model.config,
            data.provenance,
            "the shards",
            flag="--shards",
            allowed=config.allow_other_entropies,
            say=partial(print_line, console),
        )
    problems, tally = Problems(), Tally()
    predictor = Predictor(model, config.context)
    batches = data.batches() if isinstance(data, ShardData) else data.batches(problems)
    began = time.monotonic()
    with metered(console, "scoring", data.bytes) as report:
        for batch in prefetch(batches):
            if patching is not None:
                batch.patch_lengths_P = patching(batch.tokens_T, batch.lengths_D)
            if isinstance(model, EntropyModel):
                batch.patch_lengths_P = None
            said = predictor(
                batch.tokens_T,
                batch.lengths_D,
                batch.patch_lengths_P,
                config.context,
                report=report,
            )
            first_D = batch.lengths_D.cumsum() - batch.lengths_D
            nats_D = np.add.reduceat(said.nats_T, first_D, dtype=np.float64)
            _check_finite(nats_D, batch)
            tally.add(batch, nats_D)
    seconds = time.monotonic() - began
    return Evaluation(*tally.results(config.confidence, config.seed), problems, seconds)


def _patching(
    config: EvaluateConfig, model: BLT | EntropyModel, directory: str, say: Say
) -> Patching | None:
    """The rule that cuts text into patches for the model; None if it reads no patches."""
    if isinstance(model, EntropyModel):
        for name, value in (
            ("--entropy-model", config.entropy_model),
            ("--rule", config.rule),
            ("--threshold", config.threshold),
            ("--reset-at-newline", config.reset_at_newline or None),
            ("--allow-other-entropies", config.allow_other_entropies or None),
        ):
            if value is not None:
                raise ConfigError(
                    f"{name}: {config.model} is an entropy model, which reads bytes without "
                    "patches; leave it out"
                )
        return None
    if config.shards:
        return None
    return load_patching(model, config.model, directory, PatchFlags.of(config), say)


def _check_readable(data: ShardData) -> None:
    """
    Raises:
        ConfigError: the shards have patches that a BLT would be given otherwise.
    """
    if not data.patcher.boundary_rule.first_starts.get(1):
        raise ConfigError(
            f"--shards: {data.shards.output.url} has the {data.patcher.rule} rule as published: a "
            "document's first patch has more than the one token BOS, which no BLT reads; patch the "
            "corpus again without --published-rules"
        )


def _check_finite(nats_D: np.ndarray, batch: Batch) -> None:
    broken_D = ~np.isfinite(nats_D)
    if broken_D.any():
        raise PipelineError(
            f"--model: gave a probability that is not a number in document "
            f"{batch.ids[int(broken_D.argmax())]}; its weights are broken, or overflow in the "
            "dtype it is run in"
        )
