"""Configurations, one function each: ``--module train --config blt_1b``.

The command line can change every value: ``--training.steps 5000``. Weights begin as in the
published code (:mod:`model.layers.initializers`), and all configurations train with AdamW, betas
0.9 and 0.95, epsilon 1e-8, a weight decay of 0.1 on everything, and a linear warm-up before a
cosine.
"""

from typing import Literal

import torch

from train.shim import prepare

prepare()  # before the rest of torchtitan is imported: see train.shim

from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import CompileConfig, DebugConfig, TrainingConfig
from torchtitan.protocols.model_spec import ModelSpec

from model.tokenizer import VOCAB_SIZE
from train.checkpointing import ProductsAC
from train.checkpoints.manager import Checkpointer
from train.data.dataloader import ShardDataLoader
from train.metrics import ByteMetrics
from train.model_spec import blt_spec, entropy_spec
from train.optimizer import BLTOptimizers
from train.parallelize import Parallelism
from train.shape_flags import ShapeFlags
from train.skipping import FiniteLoss
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
    global_batch_size: int = -1,
    min_lr_factor: float = 0.1,
    max_norm: float = 1.0,
    checkpoint_interval: int = 500,
    large: bool = True,
) -> ByteTrainer.Config:
    """The settings that all configurations share.

    Args:
        seq_len: tokens per row.
        local_batch_size: rows that a rank takes at once.
        global_batch_size: rows per step, for which ranks take several times as many rows as they
            take at once; -1 for what all ranks take at once.
        min_lr_factor: the last step's learning rate as a multiple of the highest one.
        max_norm: the norm to which gradients are clipped.
        large: the activations of all layers do not fit into memory.
    """
    patches = model_spec.name == "blt"
    optimizer = default_adamw(lr=lr)
    if patches:
        optimizer = BLTOptimizers.Config(param_groups=optimizer.param_groups)
    return ByteTrainer.Config(
        model_spec=model_spec,
        shape=ShapeFlags(model_spec.model.shape),
        hf_assets_path=".",  # unused: no tokenizer files
        tokenizer=TitanByteTokenizer.Config(),
        loss=FiniteLoss.Config(global_vocab_size=VOCAB_SIZE),
        optimizer=optimizer,
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=warmup_steps, decay_type="cosine", min_lr_factor=min_lr_factor
        ),
        training=TrainingConfig(
            local_batch_size=local_batch_size,
            global_batch_size=global_batch_size,
            seq_len=seq_len,
            steps=steps,
            max_norm=max_norm,
            mixed_precision_param=PRECISION,
            disable_cuda_graphs=True,
        ),
        # Sequence parallelism would restrict sequence lengths to multiples of its degree.
        parallelism=Parallelism(spmd_backend="partial_dtensor", enable_sequence_parallel=False),
        compile=CompileConfig(enable=large and torch.cuda.is_available()),
        activation_checkpoint=ProductsAC.Config() if large else None,
        dataloader=ShardDataLoader.Config(patches=patches),
        validator=ShardValidator.Config(
            freq=checkpoint_interval, dataloader=ShardDataLoader.Config(patches=patches)
        ),
        metrics=ByteMetrics.Config(log_freq=10),
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


def _blt(size: str, *, local_batch_size: int, float8: bool = False) -> ByteTrainer.Config:
    """The paper's recipe (arXiv 2412.09871, section 4.8) for one of its sizes.

    Learning rate 4e-4, 2,000 steps of warm-up, a cosine to 0, gradients clipped to a norm of 1, and
    16 MB of text per step: 2,048 rows of 8,192 tokens, the shorter of the paper's two contexts. The
    rows per step are the same on any number of ranks that divides them; each rank repeats its
    ``local_batch_size`` rows until the step is full, up to 512 ranks. The length of a run is ours:
    the paper's differ by experiment.
    """
    return _config(
        blt_spec(size, float8=float8),
        lr=4e-4,
        seq_len=8192,
        local_batch_size=local_batch_size,
        global_batch_size=2048,
        steps=100_000,
        warmup_steps=2000,
        min_lr_factor=0.0,
        checkpoint_interval=1000,
    )


def blt_400m() -> ByteTrainer.Config:
    """The paper's BLT of 400 million parameters (without hash tables)."""
    return _blt("400m", local_batch_size=4)


def blt_1b() -> ByteTrainer.Config:
    """The paper's BLT of a billion parameters, the one whose weights are published."""
    return _blt("1b", local_batch_size=4)


def blt_1b_float8() -> ByteTrainer.Config:
    """blt_1b with the latent transformer's matrix products in float8 (needs torchao)."""
    return _blt("1b", local_batch_size=4, float8=True)


def blt_2b() -> ByteTrainer.Config:
    """The paper's BLT of 2 billion parameters."""
    return _blt("2b", local_batch_size=4)


def blt_4b() -> ByteTrainer.Config:
    """The paper's BLT of 4 billion parameters."""
    return _blt("4b", local_batch_size=2)


def blt_8b() -> ByteTrainer.Config:
    """The paper's BLT of 8 billion parameters."""
    return _blt("8b", local_batch_size=2)


def blt_8b_float8() -> ByteTrainer.Config:
    """blt_8b with the latent transformer's matrix products in float8 (needs torchao)."""
    return _blt("8b", local_batch_size=2, float8=True)


def entropy_debug() -> ByteTrainer.Config:
    """A tiny entropy model, for tests and experiments."""
    return _debug(entropy_spec("debug"))


def entropy_1m() -> ByteTrainer.Config:
    """The entropy model that comes with this repository: a million parameters, for a CPU.

    ``jobs/train_entropy_model.py`` trains it so; the recipe is ours.
    """
    return _config(
        entropy_spec("1m"),
        lr=4e-3,
        seq_len=2048,
        local_batch_size=8,
        global_batch_size=8,
        steps=1500,
        warmup_steps=100,
        checkpoint_interval=250,
        large=False,
    )


def entropy_100m() -> ByteTrainer.Config:
    """The published entropy model: 14 layers, 768 wide, window 512.

    Learning rate, warm-up, the cosine to a tenth, the clipping at 10, rows of 8,192 tokens and the
    100,000 steps are those of the published template for training it. On how many ranks it was
    trained is not published: here each rank takes 8 rows per step, 0.5 MB of text on 8 ranks, and
    ``--training.global-batch-size`` fixes another batch.
    """
    return _config(
        entropy_spec("100m"),
        lr=4e-4,
        seq_len=8192,
        local_batch_size=8,
        steps=100_000,
        warmup_steps=500,
        max_norm=10.0,
        checkpoint_interval=1000,
    )
