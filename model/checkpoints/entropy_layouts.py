"""Entropy models as they were published and as transformers lays them out: arguments and names.

:mod:`model.checkpoints.entropy_model` reads and writes the files.
"""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from model.checkpoints.files import (
    CheckpointError,
    JsonObject,
    differences,
    published_initialisation,
    refuse_unknown,
    renamed,
    transformers_name,
)
from model.checkpoints.transformers_rope import RopeParameters, plain_rope_theta
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.initialisation import InitStdFactor
from model.tokenizer import EOS_ID
from model.widths import default_hidden_dim, hidden_dim_arguments

IGNORED_ARGS = {
    *("attn_impl", "attn_bias_type", "sliding_window", "eos_id", "seed"),
    *("init_device", "init_dtype", "rope_use_fp32_in_outer_product"),
}
"""Published arguments that don't describe the computation: attention settings, which the published
model was not run with (it is always causal, within one document, window 512)."""


class PublishedEntropyArgs(TypedDict):
    """The published arguments that describe the computation."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int | None
    ffn_dim_multiplier: float
    multiple_of: int
    max_seqlen: int
    rope_theta: float
    norm_eps: float
    vocab_size: int
    init_std_factor: InitStdFactor
    init_base_std: float | None
    attn_impl: str
    attn_bias_type: str
    sliding_window: int
    eos_id: int


class TransformersEntropyConfig(TypedDict):
    """The configuration of transformers' ``BltPatcher``."""

    architectures: NotRequired[list[str]]
    model_type: NotRequired[str]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    intermediate_size: int | None
    max_position_embeddings: int
    sliding_window: int
    rms_norm_eps: float
    rope_parameters: RopeParameters
    vocab_size: int


def from_published_args(args: JsonObject) -> EntropyModelConfig:
    """The shape that published arguments describe; each argument is used, known to be harmless, or
    refused.

    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    args = {name: value for name, value in args.items() if name not in IGNORED_ARGS}
    dim, n_heads = args.pop("dim", 512), args.pop("n_heads", None)
    head_dim = args.pop("head_dim", None)
    if n_heads is None:
        n_heads = dim // head_dim if head_dim else 8
    if head_dim and head_dim * n_heads != dim:
        raise ValueError(f"argument head_dim: {head_dim} times {n_heads} heads is not dim {dim}")
    config = EntropyModelConfig(
        dim=dim,
        n_layers=args.pop("n_layers", 8),
        n_heads=n_heads,
        n_kv_heads=args.pop("n_kv_heads", None),
        hidden_dim=default_hidden_dim(
            dim, args.pop("ffn_dim_multiplier", None), args.pop("multiple_of", 256)
        ),
        context_length=args.pop("max_seqlen", 8192),
        rope_theta=args.pop("rope_theta", 10_000.0),
        norm_eps=args.pop("norm_eps", 1e-5),
        vocab_size=args.pop("vocab_size", 260),
        **published_initialisation(args),
    )
    refuse_unknown(args)
    return config


def to_published_args(config: EntropyModelConfig) -> PublishedEntropyArgs:
    """The published arguments that describe a shape.

    Raises:
        CheckpointError: the published arguments cannot say what the model is; says why.
    """
    assert config.hidden_dim is not None
    multiplier, multiple_of = hidden_dim_arguments({(config.dim, config.hidden_dim)})
    args: PublishedEntropyArgs = {
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "max_seqlen": config.context_length,
        "rope_theta": config.rope_theta,
        "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "init_std_factor": config.init_std_factor,
        "init_base_std": config.init_base_std,
        # Without these the published code would run its default attention, which has no window.
        "attn_impl": "xformers",
        "attn_bias_type": "local_block_causal",
        "sliding_window": config.window,
        "eos_id": EOS_ID,
    }
    for name, (value, read) in differences(config, from_published_args({**args})).items():
        raise CheckpointError(
            f"the published layout cannot hold this model; {name}: {value} would be read as {read}"
        )
    return args


def from_transformers_config(config: JsonObject) -> EntropyModelConfig:
    """The shape that a configuration of transformers' patcher describes.

    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    context_length, window = (
        config.get(name, default)
        for name, default in (("max_position_embeddings", 8192), ("sliding_window", 512))
    )
    shape = EntropyModelConfig(
        dim=config.get("hidden_size", 768),
        n_layers=config.get("num_hidden_layers", 14),
        n_heads=config.get("num_attention_heads", 12),
        n_kv_heads=config.get("num_key_value_heads"),
        hidden_dim=config.get("intermediate_size", 2048),
        context_length=context_length,
        # None is no window there: a token sees all that its context holds.
        window=context_length if window is None else window,
        rope_theta=plain_rope_theta(config, 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        vocab_size=config.get("vocab_size", 260),
    )
    if config.get("head_dim") not in (None, shape.head_dim):
        raise ValueError(f"argument head_dim={config['head_dim']!r} is not supported")
    return shape


def to_transformers_config(config: EntropyModelConfig) -> TransformersEntropyConfig:
    """The configuration of transformers' patcher that describes a shape."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "intermediate_size": config.hidden_dim,
        "max_position_embeddings": config.context_length,
        "sliding_window": config.window,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "vocab_size": config.vocab_size,
    }


def from_transformers_weights(
    shape: EntropyModelConfig, theirs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Weights under the published names; a weight that has none keeps its own."""
    with torch.device("meta"):
        names = {_transformers_name(name): name for name in EntropyModel(shape).state_dict()}
    return renamed(theirs, lambda name: names.get(name, name))


def to_transformers_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that transformers gives them below its patcher."""
    return {_transformers_name(name): tensor for name, tensor in weights.items()}


def _transformers_name(name: str) -> str:
    # Here lm_head is the output layer of the entropy model itself.
    return transformers_name(name).replace("output.", "lm_head.")
