"""Configurations, one function each: ``--module train --config blt_1b``.

The command line can change every value: ``--training.steps 5000``.
"""

from typing import Literal

import torch

from train.shim import prepare

prepare()  # before the rest of torchtitan is imported: see train.shim

from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import CompileConfig, DebugConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import SelectiveAC
from torchtitan.protocols.model_spec import ModelSpec

from model.tokenizer import VOCAB_SIZE
from train.checkpoints.manager import Checkpointer
from train.data.dataloader import ShardDataLoader
from train.metrics import ByteMetrics
from train.model_spec import blt_spec, entropy_spec
from train.parallelize import Parallelism
from train.tokenizer import TitanByteTokenizer
from train.trainer import ByteTrainer
from train.validator import ShardValidator

PRECISION: Literal["bfloat16", "float32"] = "bfloat16" if torch.cuda.is_available() else "float32"
"""Most CPUs have no matrix units for bfloat16."""


def _config(
    model_spec: ModelSpec,
    *,
    lr: float,
    seq_len: int,
    local_batch_size: int,
    steps: int,
    warmup_steps: int,
    log_freq: int = 10,
    checkpoint_interval: int = 500,
    large: bool = True,
) -> ByteTrainer.Config:
    """The settings that all configurations share.

    Args:
        seq_len: tokens per row.
        local_batch_size: rows per rank.
        large: the activations of all layers do not fit into memory.
    """
    patches = model_spec.name == "blt"
    return ByteTrainer.Config(
        model_spec=model_spec,
        hf_assets_path=".",  # unused: no tokenizer files
        tokenizer=TitanByteTokenizer.Config(),
        loss=CrossEntropyLoss.Config(global_vocab_size=VOCAB_SIZE),
        optimizer=default_adamw(lr=lr),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=warmup_steps, decay_type="cosine", min_lr_factor=0.1
        ),
        training=TrainingConfig(
            local_batch_size=local_batch_size,
            seq_len=seq_len,
            steps=steps,
            mixed_precision_param=PRECISION,
            disable_cuda_graphs=True,
        ),
        # Sequence parallelism would restrict sequence lengths to multiples of its degree.
        parallelism=Parallelism(spmd_backend="partial_dtensor", enable_sequence_parallel=False),
        compile=CompileConfig(enable=large and torch.cuda.is_available()),
        activation_checkpoint=SelectiveAC.Config() if large else None,
        dataloader=ShardDataLoader.Config(patches=patches),
        validator=ShardValidator.Config(
            freq=checkpoint_interval, dataloader=ShardDataLoader.Config(patches=patches)
        ),
        metrics=ByteMetrics.Config(log_freq=log_freq),
        # A run that is started again resumes.
        checkpoint=Checkpointer.Config(
            enable=True, interval=checkpoint_interval, last_save_model_only=False
        ),
        debug=DebugConfig(seed=0, enable_structured_logging=False),
    )


def _debug(model_spec: ModelSpec) -> ByteTrainer.Config:
    return _config(
        model_spec,
        lr=3e-3,
        seq_len=1024,
        local_batch_size=8,
        steps=200,
        warmup_steps=20,
        checkpoint_interval=100,
        large=False,
    )


def blt_debug() -> ByteTrainer.Config:
    """A BLT of 2 million parameters, for a laptop."""
    return _debug(blt_spec("debug"))


def _blt(
    size: str, *, lr: float, local_batch_size: int, float8: bool = False
) -> ByteTrainer.Config:
    return _config(
        blt_spec(size, float8=float8),
        lr=lr,
        seq_len=8192,
        local_batch_size=local_batch_size,
        steps=100_000,
        warmup_steps=2000,
        checkpoint_interval=1000,
    )


def blt_400m() -> ByteTrainer.Config:
    """The paper's BLT of 400 million parameters (without hash tables)."""
    return _blt("400m", lr=4e-4, local_batch_size=8)


def blt_1b() -> ByteTrainer.Config:
    """The paper's BLT of a billion parameters, the one whose weights are published."""
    return _blt("1b", lr=4e-4, local_batch_size=4)


def blt_1b_float8() -> ByteTrainer.Config:
    """blt_1b with the latent transformer's matrix products in float8 (needs torchao)."""
    return _blt("1b", lr=4e-4, local_batch_size=4, float8=True)


def blt_2b() -> ByteTrainer.Config:
    """The paper's BLT of 2 billion parameters."""
    return _blt("2b", lr=4e-4, local_batch_size=4)


def blt_4b() -> ByteTrainer.Config:
    """The paper's BLT of 4 billion parameters."""
    return _blt("4b", lr=4e-4, local_batch_size=2)


def blt_8b() -> ByteTrainer.Config:
    """The paper's BLT of 8 billion parameters."""
    return _blt("8b", lr=4e-4, local_batch_size=2)


def blt_8b_float8() -> ByteTrainer.Config:
    """blt_8b with the latent transformer's matrix products in float8 (needs torchao)."""
    return _blt("8b", lr=4e-4, local_batch_size=2, float8=True)


def entropy_debug() -> ByteTrainer.Config:
    """A tiny entropy model, for tests and experiments."""
    return _debug(entropy_spec("debug"))


def entropy_1m() -> ByteTrainer.Config:
    """The entropy model that comes with this repository: a million parameters, for a CPU."""
    return _config(
        entropy_spec("1m"),
        lr=4e-3,
        seq_len=2048,
        local_batch_size=8,
        steps=2000,
        warmup_steps=100,
        checkpoint_interval=250,
        large=False,
    )


def entropy_100m() -> ByteTrainer.Config:
    """The published entropy model: 14 layers, 768 wide, window 512."""
    return _config(
        entropy_spec("100m"),
        lr=4e-4,
        seq_len=8192,
        local_batch_size=8,
        steps=100_000,
        warmup_steps=2000,
        checkpoint_interval=1000,
    )
