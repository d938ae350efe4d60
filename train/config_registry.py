"""Configurations, one function each: ``--module train --config blt_1b``.

The command line can change every value: ``--training.steps 5000``. Weights begin as in the
published code (:mod:`model.layers.initializers`), and all configurations train with AdamW, betas
0.9 and 0.95, epsilon 1e-8, a weight decay of 0.1 on everything, and a linear warm-up before a
cosine.
"""

import sys
from dataclasses import replace
from typing import Any, Literal

import torch

from train.shim import prepare

prepare()  # before the rest of torchtitan is imported: see train.shim

from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import CommConfig, CompileConfig, DebugConfig, TrainingConfig
from torchtitan.protocols.model_spec import ModelSpec

from model.device import fast_dtype
from model.widths import resized
from train.baseline_specs import byte_spec, token_spec
from train.checkpointing import ProductsAC
from train.checkpoints.collective import TIMEOUT_S
from train.checkpoints.manager import Checkpointer
from train.data.dataloader import ShardDataLoader
from train.data.tokenizer import TitanBPETokenizer, TitanByteTokenizer
from train.metrics import ByteMetrics
from train.model_spec import blt_spec, entropy_spec
from train.optimizer import BLTOptimizers, Optimizers
from train.parallelize import Parallelism
from train.shape_flags import ShapeFlags
from train.skipping import FiniteLoss
from train.trainer import ByteTrainer
from train.validator import ShardValidator


def _precision() -> Literal["bfloat16", "float32"]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bfloat16" if fast_dtype(device) == torch.bfloat16 else "float32"


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
    **rule: Any,
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
        rule: the boundary rule by which documents are re-patched, as the dataloader's flags have
            it; none for the patches of the shards.
    """
    patches, tokens = model_spec.name == "blt", model_spec.name == "tokens"
    kind = BLTOptimizers if patches else Optimizers
    dataloader = ShardDataLoader.Config(patches=patches, **rule)
    return ByteTrainer.Config(
        model_spec=model_spec,
        shape=ShapeFlags(model_spec.model.shape),
        hf_assets_path=".",  # unused: no tokenizer files
        tokenizer=TitanBPETokenizer.Config() if tokens else TitanByteTokenizer.Config(),
        loss=FiniteLoss.Config(),
        optimizer=kind.Config(param_groups=default_adamw(lr=lr).param_groups),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=warmup_steps, decay_type="cosine", min_lr_factor=min_lr_factor
        ),
        training=TrainingConfig(
            local_batch_size=local_batch_size,
            global_batch_size=global_batch_size,
            seq_len=seq_len,
            steps=steps,
            max_norm=max_norm,
            mixed_precision_param=_precision(),
            disable_cuda_graphs=True,
        ),
        comm=CommConfig(init_timeout_seconds=TIMEOUT_S, train_timeout_seconds=TIMEOUT_S),
        # Sequence parallelism would restrict sequence lengths to multiples of its degree.
        parallelism=Parallelism(spmd_backend="partial_dtensor", enable_sequence_parallel=False),
        compile=CompileConfig(enable=large and torch.cuda.is_available()),
        activation_checkpoint=ProductsAC.Config() if large else None,
        dataloader=dataloader,
        validator=ShardValidator.Config(freq=checkpoint_interval, dataloader=replace(dataloader)),
        # Colours are for terminals: files and other programs get text.
        metrics=ByteMetrics.Config(log_freq=10, disable_color_printing=not sys.stdout.isatty()),
        # A run that is started again resumes.
        checkpoint=Checkpointer.Config(
            enable=True, interval=checkpoint_interval, last_save_model_only=False
        ),
        debug=DebugConfig(seed=0, enable_structured_logging=False),
    )


def _debug(model_spec: ModelSpec, seq_len: int = 1024, **rule: Any) -> ByteTrainer.Config:
    return _config(
        model_spec,
        lr=3e-3,
        seq_len=seq_len,
        local_batch_size=8,
        steps=200,
        warmup_steps=20,
        checkpoint_interval=100,
        large=False,
        **rule,
    )


def blt_debug() -> ByteTrainer.Config:
    """A BLT of 2 million parameters, for a laptop."""
    return _debug(blt_spec("debug"))


def _with(size: str, changes: dict[str, Any]) -> ModelSpec:
    """A BLT of a size with other values of its shape."""
    spec = blt_spec(size)
    return replace(spec, model=replace(spec.model, shape=resized(spec.model.shape, changes)))


def _paper(
    model_spec: ModelSpec, *, local_batch_size: int, seq_len: int = 8192, **rule: Any
) -> ByteTrainer.Config:
    """The paper's recipe (arXiv 2412.09871, section 4.8).

    Learning rate 4e-4, 2,000 steps of warm-up, a cosine to 0, gradients clipped to a norm of 1, and
    16 MB of text per step: 2,048 rows of 8,192 tokens, the shorter of the paper's two contexts. The
    rows per step are the same on any number of ranks that divides them; each rank repeats its
    ``local_batch_size`` rows until the step is full, up to 512 ranks. The length of a run is ours:
    the paper's differ by experiment.
    """
    return _config(
        model_spec,
        lr=4e-4,
        seq_len=seq_len,
        local_batch_size=local_batch_size,
        global_batch_size=2048,
        steps=100_000,
        warmup_steps=2000,
        min_lr_factor=0.0,
        checkpoint_interval=1000,
        **rule,
    )


def blt_400m() -> ByteTrainer.Config:
    """The paper's BLT of 400 million parameters (without hash tables)."""
    return _paper(blt_spec("400m"), local_batch_size=4)


def blt_1b() -> ByteTrainer.Config:
    """The paper's BLT of a billion parameters, the one whose weights are published."""
    return _paper(blt_spec("1b"), local_batch_size=4)


def blt_1b_float8() -> ByteTrainer.Config:
    """blt_1b with the latent transformer's matrix products in float8 (needs torchao)."""
    return _paper(blt_spec("1b", float8=True), local_batch_size=4)


def blt_2b() -> ByteTrainer.Config:
    """The paper's BLT of 2 billion parameters."""
    return _paper(blt_spec("2b"), local_batch_size=4)


def blt_4b() -> ByteTrainer.Config:
    """The paper's BLT of 4 billion parameters."""
    return _paper(blt_spec("4b"), local_batch_size=2)


def blt_8b() -> ByteTrainer.Config:
    """The paper's BLT of 8 billion parameters."""
    return _paper(blt_spec("8b"), local_batch_size=2)


def blt_8b_float8() -> ByteTrainer.Config:
    """blt_8b with the latent transformer's matrix products in float8 (needs torchao)."""
    return _paper(blt_spec("8b", float8=True), local_batch_size=2)


LLAMA_3_1_8B: dict[str, Any] = {
    **{"dim_global": 4096, "n_layers_global": 32, "n_heads_global": 32, "n_kv_heads_global": 8},
    **{"hidden_dim_global": 14_336, "rope_theta": 500_000.0, "norm_eps": 1e-5},
    "rope_scaling_global": (8.0, 1.0, 4.0, 8192.0),
}
"""The shape of Llama 3.1 8B's blocks, as its config.json states it."""


def blt_8b_from_llama3() -> ByteTrainer.Config:
    """blt_8b whose latent transformer begins with the blocks of Llama 3.1 8B (section 6.2).

    The latent transformer has the shape of Llama 3.1 8B and trains with a tenth of the learning
    rate of the other parts, which are new. The weights come from the hub, or from a directory
    (``--checkpoint.initial-load-path``); ``--shape.file`` takes the shape of another Llama.
    """
    config = _paper(_with("8b", LLAMA_3_1_8B), local_batch_size=2)
    config.checkpoint.initial_load_path = "hf://meta-llama/Llama-3.1-8B"
    config.checkpoint.initial_load_in_hf = True
    assert isinstance(config.optimizer, BLTOptimizers.Config)
    config.optimizer.latent_lr_factor = 0.1
    return config


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


NO_HASHES: dict[str, Any] = {"encoder_hash_byte_group_size": ()}
NO_CROSS_ATTENTION: dict[str, Any] = {"cross_attn_encoder": False, "cross_attn_decoder": False}
STATIC: dict[str, Any] = {"rule": "static", "patch_size": 4.5}
"""Patches as long as entropy patches are on average, in the paper's main experiments."""
TOKENS_PER_ROW = 2048
"""About 9,000 bytes, at 4.4 bytes per token."""


def blt_debug_space() -> ByteTrainer.Config:
    """blt_debug with patches that begin after words, as in SpaceByte."""
    return _debug(blt_spec("debug"), rule="space")


def blt_1b_space() -> ByteTrainer.Config:
    """blt_1b with patches that begin after words, as in SpaceByte."""
    return _paper(blt_spec("1b"), local_batch_size=4, rule="space")


def blt_debug_static() -> ByteTrainer.Config:
    """blt_debug with patches of 4.5 bytes wherever they fall."""
    return _debug(blt_spec("debug"), **STATIC)


def blt_1b_static() -> ByteTrainer.Config:
    """blt_1b with patches of 4.5 bytes wherever they fall."""
    return _paper(blt_spec("1b"), local_batch_size=4, **STATIC)


def blt_debug_no_hashes() -> ByteTrainer.Config:
    """blt_debug without hash embeddings."""
    return _debug(_with("debug", NO_HASHES))


def blt_1b_no_hashes() -> ByteTrainer.Config:
    """blt_1b without hash embeddings."""
    return _paper(_with("1b", NO_HASHES), local_batch_size=4)


def blt_debug_no_crossing() -> ByteTrainer.Config:
    """blt_debug without cross attention."""
    return _debug(_with("debug", NO_CROSS_ATTENTION))


def blt_1b_no_crossing() -> ByteTrainer.Config:
    """blt_1b without cross attention."""
    return _paper(_with("1b", NO_CROSS_ATTENTION), local_batch_size=4)


def bytes_debug() -> ByteTrainer.Config:
    """A plain byte transformer with the latent transformer's shape of blt_debug."""
    return _debug(byte_spec("debug"))


def bytes_400m() -> ByteTrainer.Config:
    """A plain byte transformer with the latent transformer's shape of blt_400m."""
    return _paper(byte_spec("400m"), local_batch_size=4)


def bytes_1b() -> ByteTrainer.Config:
    """A plain byte transformer with the latent transformer's shape of blt_1b."""
    return _paper(byte_spec("1b"), local_batch_size=2)


def bpe_debug() -> ByteTrainer.Config:
    """A transformer over the tokens of a tokenizer (--tokenizer.source), for a laptop."""
    return _debug(token_spec("debug"), seq_len=256)


def bpe_400m() -> ByteTrainer.Config:
    """A transformer over tokens with the latent transformer's shape of blt_400m."""
    return _paper(token_spec("400m"), local_batch_size=4, seq_len=TOKENS_PER_ROW)


def bpe_1b() -> ByteTrainer.Config:
    """A transformer over tokens with the latent transformer's shape of blt_1b."""
    return _paper(token_spec("1b"), local_batch_size=4, seq_len=TOKENS_PER_ROW)
