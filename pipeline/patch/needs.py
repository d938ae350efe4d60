"""The needs of patching a corpus: hours, GPUs or cores, storage; nothing is read or run.

Time is work over rate. The work of an entropy model is its FLOPs per byte of text
(:mod:`model.flops`); what a GPU or a core does of them within a second was measured
(tests/benchmarks/RESULTS.md). The cheap models of CPUs spend their time elsewhere, so that their
rates are taken as they were measured.
"""

from dataclasses import dataclass

from model.checkpoints.entropy_model import load_entropy_model
from model.checkpoints.files import CheckpointError
from model.checkpoints.names import PUBLISHED_ENTROPY_MODEL
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.flops import entropy_model_flops
from pipeline.errors import ConfigError

MEASURED_CORE_GFLOPS = 38.0
"""GFLOP/s in float32 of one core that patches with entropy-1m: 20 kB/s."""
MEASURED_CORE_RATES = {"entropy-conv": 0.396e6, "ngram": 24e6, "none": 35e6}
"""Bytes of text per second of one core with models whose time is not in matrix products; "none":
rules that look at no entropies."""
CHUNK_SIZE, SHARD_SIZE, DROPPED_SIZE = 0.28, 2.24, 0.44
"""Bytes on disk per byte of text: chunks of prepare_corpus.py, shards, shards without entropies.
Measured on Python's documentation and sources; texts that zstd shrinks less take more."""
WORKER_MEMORY = 5 * 2**30
"""Bytes of memory per worker, at most (docs/memory.md)."""


@dataclass(frozen=True)
class PatchingPlan:
    """The needs of patching a corpus with a number of devices."""

    devices: int
    """GPUs, or cores."""
    rate: float
    """Bytes of text per second, of all devices."""
    hours: float
    device_hours: float
    cost: float | None
    """``device_hours`` times the price of one, where that is known."""
    memory: int
    """Bytes of memory of all workers."""


@dataclass(frozen=True)
class Storage:
    """Bytes that a corpus takes on disk, at each stage."""

    chunks: float
    shards: float
    without_entropies: float


def storage_of(corpus_bytes: float) -> Storage:
    """The storage that a corpus of ``corpus_bytes`` bytes of text takes."""
    return Storage(*(corpus_bytes * size for size in (CHUNK_SIZE, SHARD_SIZE, DROPPED_SIZE)))


def runs_on_gpus(model: str) -> bool:
    """True if the entropy model of that name, directory or hub id runs on GPUs."""
    return model not in MEASURED_CORE_RATES


def device_rate(model: str, *, gpu_tflops: float, mfu: float, gpu: bool) -> float:
    """Bytes of text per second that one device patches.

    Args:
        model: entropy model, as ``patch_corpus.py`` takes it, or "none".
        gpu_tflops: peak of dense bfloat16 products of a GPU, in TFLOP/s.
        mfu: share of the peak that a worker reaches.
        gpu: the device is a GPU, not a core.

    Raises:
        ConfigError: there is no such model, or it runs on CPUs alone.
    """
    if not runs_on_gpus(model):
        if gpu:
            raise ConfigError(f"--entropy-model {model}: it runs on CPUs; give --cores, not --gpus")
        return MEASURED_CORE_RATES[model]
    flops_per_second = gpu_tflops * 1e12 * mfu if gpu else MEASURED_CORE_GFLOPS * 1e9
    return flops_per_second / entropy_model_flops(_shape(model))


def _shape(model: str) -> EntropyModelConfig:
    if model == PUBLISHED_ENTROPY_MODEL:  # gated, and its shape is known
        return EntropyModelConfig()
    try:
        loaded = load_entropy_model(model, device="cpu", dtype="stored")
    except CheckpointError as error:
        raise ConfigError(f"--entropy-model: {error}") from error
    if not isinstance(loaded, EntropyModel):
        raise ConfigError(f"--entropy-model {model}: its rate was not measured")
    return loaded.config


def plan_patching(
    corpus_bytes: float, rate: float, devices: int, price: float | None
) -> PatchingPlan:
    """Plan to patch a corpus.

    Args:
        corpus_bytes: bytes of text.
        rate: bytes per second of one device.
        devices: GPUs or cores.
        price: of a device for an hour.
    """
    hours = corpus_bytes / (rate * devices) / 3600
    cost = None if price is None else hours * devices * price
    memory = WORKER_MEMORY * devices
    return PatchingPlan(devices, rate * devices, hours, hours * devices, cost, memory)
