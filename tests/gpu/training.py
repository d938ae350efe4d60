"""A training step as torchtitan makes it: time, share of the ceiling, memory, compilations."""

import gc
import logging
import shutil
from dataclasses import replace
from typing import Any

import torch
from common import short_documents, write_jsonl
from support import tiny

from gpu.measure import Run, compiled
from model import BLT_SIZES, NGramEntropyModel, Patcher
from model.tokenizer import encode_documents
from model.training_flops import training_flops
from pipeline.errors import ConfigError
from train.shim import prepare

prepare()

from bench_training import trainer_of

from train import config_registry
from train.shape_flags import ShapeFlags
from train.trainer import ByteTrainer

PATCH_SIZE = 4.5
STEPS, MICROBATCHES = 12, 16


def blt_1b(run: Run) -> None:
    """The published shape, compiled, with a profile."""
    _measure(run, "blt_1b", aim=0.5, profile=True)


def blt_1b_eager(run: Run) -> None:
    """The published shape, not compiled: what compiling is worth."""
    _measure(run, "blt_1b", compile_model=False)


def blt_1b_float8(run: Run) -> None:
    """The published shape with the latent transformer's products in float8."""
    _measure(run, "blt_1b_float8")


def entropy_100m(run: Run) -> None:
    """The published entropy model."""
    _measure(run, "entropy_100m", profile=True)


def _configuration(run: Run, name: str, compile_model: bool) -> ByteTrainer.Config:
    """A configuration without accumulation; on a CPU its tiny relative, with the same settings."""
    config: ByteTrainer.Config = getattr(config_registry, name)()
    config.training.global_batch_size = -1
    config.metrics.log_freq = 1_000_000
    config.compile.enable = compile_model and not run.tiny
    if run.tiny:
        shape = config_registry.entropy_debug().model_spec.model.shape
        shape = BLT_SIZES["debug"] if name.startswith("blt") else shape
        config.training.local_batch_size, config.training.seq_len = 2, 256
        config = replace(config, shape=ShapeFlags(shape))
    return config


def _shards(run: Run) -> str:
    """Real text, patched; made once for all steps."""
    shards = run.work / "train_shards"
    if not (shards / "manifest.json").exists():
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir(parents=True)
        documents = short_documents(60_000 if run.tiny else 12_000_000, seed=8)
        write_jsonl(run.work / "train.jsonl", documents)
        model = NGramEntropyModel.fit([encode_documents(documents[:100])])
        patcher = Patcher(rule="static", patch_size=PATCH_SIZE)
        tiny.make_shards(shards, run.work / "train.jsonl", model, patcher)
    return str(shards)


class Recompilations(logging.Handler):
    """Collects what torch says about functions that it compiles a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        torch._logging.set_logs(recompiles=True)
        logging.getLogger("torch._dynamo.guards.__recompiles").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _measure(
    run: Run, name: str, *, aim: float = 0, compile_model: bool = True, profile: bool = False
) -> None:
    config = _configuration(run, name, compile_model)
    what = f"{name}, {'compiled' if compile_model else 'eager'}"
    # As many rows as fit: the published recipe's need most of an 80 GB card.
    while not _measure_rows(run, what, config, aim, profile):
        gc.collect()  # what had no room is let go of
        torch.cuda.empty_cache()
        config.training.local_batch_size //= 2
        run.note(f"{what}: no memory; trying {config.training.local_batch_size} rows")


def _measure_rows(
    run: Run, what: str, config: ByteTrainer.Config, aim: float, profile: bool
) -> bool:
    """Measure a configuration; False if the card has no memory for its rows, but may for fewer."""
    recompilations = Recompilations()
    try:
        trainer = trainer_of(config, _shards(run), str(run.work / "dump"))
        _time(run, what, trainer, recompilations, aim)
        if profile:
            batches = trainer.batch_generator(trainer.dataloader)
            found = run.profile(f"{what}: a step", lambda: _step(trainer, batches))
            run.record(f"{what}: profile of a step", **found)
    except (ConfigError, torch.OutOfMemoryError) as error:
        without_memory = isinstance(error.__cause__ or error, torch.OutOfMemoryError)
        if not without_memory or config.training.local_batch_size == 1:
            raise
        return False
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return True


def _step(trainer: ByteTrainer, batches: Any) -> None:
    trainer.step += 1
    trainer.train_step(batches)


def _time(
    run: Run, what: str, trainer: ByteTrainer, recompilations: Recompilations, aim: float
) -> None:
    config, batches = trainer.config, trainer.batch_generator(trainer.dataloader)
    first = run.seconds(lambda: _step(trainer, batches), 1, 0)
    run.seconds(lambda: _step(trainer, batches), 1, 2)
    warm = len(recompilations.messages)

    def several() -> None:
        for _ in range(2 if run.tiny else STEPS):
            _step(trainer, batches)

    took = run.seconds(several, 1, 0) / (2 if run.tiny else STEPS)
    optimizer = run.seconds(trainer.optimizers.step, 3, 1)
    size = config.training.local_batch_size * config.training.seq_len
    shape = trainer.model_config.shape
    flops = size * sum(
        training_flops(shape, patch_size=PATCH_SIZE, context=config.training.seq_len).values()
    )
    run.record(
        f"{what}: a step",
        rows=config.training.local_batch_size,
        kBps=size / took / 1e3,
        seconds=took,
        first_step_s=first,
        optimizer_s=optimizer,
        TFLOPs=flops / took / 1e12,
        share_of_product=run.share(flops / took),
        peak_GiB=run.peak_gib(),
        recompilations_after_3_steps=len(recompilations.messages) - warm,
        **compiled(),
    )
    # The recipes take many microbatches for a step, among which the optimizer's time is little.
    trainer.gradient_accumulation_steps = microbatches = 2 if run.tiny else MICROBATCHES
    took = run.seconds(lambda: _step(trainer, batches), 1, 1) / microbatches
    trainer.gradient_accumulation_steps = 1
    share = run.share(flops / took)
    run.record(
        f"{what}: a microbatch of {microbatches}",
        aim=f"{aim:.0%} of the product's rate" if aim else "",
        fast=share >= aim if aim else None,
        kBps=size / took / 1e3,
        seconds=took,
        share_of_product=share,
        peak_GiB=run.peak_gib(),
        recompilations=len(recompilations.messages) - warm,
    )
    for message in recompilations.messages[warm:]:
        run.note(f"recompiled: {message[:500]}")
