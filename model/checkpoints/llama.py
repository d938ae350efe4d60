"""The blocks of a Llama, in transformers' layout, as those of a BLT's latent transformer.

A BLT may begin with the blocks of a trained model of tokens, and learn the rest anew (arXiv
2412.09871, section 6.2). Embeddings, final norm and output layer of the model of tokens have no
place in a BLT and are left out.

Blocks here and there compute the same, with one difference: transformers turns feature ``i`` of a
head with feature ``i + head_dim / 2``, and our blocks turn neighbours. So the rows of ``wq`` and
``wk`` are permuted within each head. In a head of 6 features, transformers has ours in the order 0,
2, 4, 1, 3, 5, and we have theirs in the order 0, 3, 1, 4, 2, 5.
"""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from model.blt import BLT
from model.blt_config import BLTConfig
from model.checkpoints.building import fitting
from model.checkpoints.files import (
    JsonObject,
    read_json,
    read_safetensors,
    reading,
    renamed,
    transformers_name,
)
from model.checkpoints.transformers_rope import rotary_positions
from model.provenance import LatentOrigin

LATENT = "global_transformer."
BLOCKS = f"{LATENT}layers."
"""The names of a BLT's weights begin so in the blocks of the latent transformer."""
LEFT_OUT = ("embed_tokens.weight", "norm.weight", "lm_head.weight")
"""A Llama's weights outside of its blocks."""
MODEL_TYPE = "llama"
"""The only kind of models of tokens whose blocks are known to compute what ours do."""
COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Numbers that every ``config.json`` of a Llama has."""
SAMPLE_BYTES = 4096
"""Bytes of each weight that a fingerprint covers."""


class LatentWeights(NamedTuple):
    """Weights with which a latent transformer begins, mapped from their files."""

    weights: dict[str, Tensor]
    """By our names. The rows of some have to be reordered before they are used."""
    row_orders: dict[str, Tensor]
    """The rows of these weights, in our order: ``weights[name][row_orders[name]]``."""
    left_out: dict[str, Tensor]
    """The weights outside of the blocks, by the names that they have in the Llama."""


def feature_order(head_dim: int) -> Tensor:
    """The order in which transformers has our features of a head; its ``argsort`` is the order in
    which we have theirs."""
    return torch.arange(head_dim).view(-1, 2).T.flatten()


def holds_token_model(directory: Path) -> bool:
    """True if a directory holds a model of tokens as transformers lays it out.

    Raises:
        CheckpointError: its configuration cannot be read.
    """
    with reading("model", str(directory)):
        return is_token_model(read_json(directory / "config.json"))


def is_token_model(config: JsonObject) -> bool:
    """True if a ``config.json`` is that of a model of tokens in transformers' layout, which may be
    none that is supported. BLTs have such values in their parts, and patchers have no output."""
    of_blt = str(config.get("model_type", "")).startswith("blt")
    return "num_hidden_layers" in config and not of_blt


def latent_values(config: JsonObject) -> JsonObject:
    """The values of a :class:`BLTConfig` with which a latent transformer has a Llama's blocks.

    Base and epsilon are those of all parts of a BLT. That is no loss: the other parts are new.

    Args:
        config: the Llama's ``config.json``.

    Raises:
        ValueError: it is no Llama, or has something that our blocks lack; names it.
    """
    kind = config.get("model_type")
    if kind != MODEL_TYPE:
        raise ValueError(
            f"model_type={kind!r}: a latent transformer can begin with the blocks of a "
            f"{MODEL_TYPE!r} alone"
        )
    for name in COUNTS:
        if type(config.get(name)) is not int or config[name] < 1:
            raise ValueError(f"argument {name}={config.get(name)!r} is no positive number")
    heads, dim = config["num_attention_heads"], config["hidden_size"]
    for name, wrong in {
        "head_dim": config.get("head_dim") not in (None, dim / heads),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "sliding_window": config.get("sliding_window") is not None,
        "quantization_config": config.get("quantization_config") is not None,
    }.items():
        if wrong:
            raise ValueError(f"argument {name}={config[name]!r} is not supported")
    theta, scaling = rotary_positions(config, 10_000.0)
    return {
        "dim_global": dim,
        "n_layers_global": config["num_hidden_layers"],
        "n_heads_global": heads,
        "n_kv_heads_global": config.get("num_key_value_heads") or heads,
        "hidden_dim_global": config["intermediate_size"],
        "rope_theta": theta,
        "rope_scaling_global": scaling,
        "norm_eps": config.get("rms_norm_eps", 1e-6),
    }


def read_latent(directory: Path, shape: BLTConfig) -> tuple[BLTConfig, LatentWeights]:
    """The blocks of the Llama in a local directory.

    Args:
        shape: the BLT that begins with them.

    Returns:
        the BLT with the Llama's values, and the weights.

    Raises:
        CheckpointError: the Llama cannot be read, or has something that our blocks lack; names the
            file, argument or weight.
    """
    with reading("Llama", str(directory)):
        theirs = replace(shape, **latent_values(read_json(directory / "config.json")))
        return theirs, _latent_weights(theirs, read_safetensors(directory))


def _latent_weights(shape: BLTConfig, weights: dict[str, Tensor]) -> LatentWeights:
    with torch.device("meta"):
        state = BLT(shape).state_dict()
    expected = {name: weight for name, weight in state.items() if name.startswith(BLOCKS)}
    names = {transformers_name(name.removeprefix(LATENT)): name for name in expected}
    # A base model, without an output layer, is saved without the first part of its names.
    plain = renamed(weights, lambda name: name.removeprefix("model."))
    left_out = {
        name: weight
        for name, weight in plain.items()
        if name in LEFT_OUT or name.endswith("rotary_emb.inv_freq")
    }
    of_blocks = {name: weight for name, weight in plain.items() if name not in left_out}
    blocks = renamed(of_blocks, lambda name: names.get(name, name))
    order = feature_order(shape.dim_global // shape.n_heads_global).argsort()
    return LatentWeights(
        fitting(expected, blocks),
        {
            name: torch.arange(len(w)).view(-1, len(order))[:, order].flatten()
            for name, w in expected.items()
            if name.endswith((".wq.weight", ".wk.weight"))
        },
        left_out,
    )


def latent_origin(directory: Path) -> LatentOrigin:
    """The Llama in a directory, to be recorded. One in the hub's cache has its id and commit.

    The fingerprint is a sha256 of the names, types and shapes of all its weights and of the first
    4,096 bytes of each. It costs a megabyte of reading, and not all of a Llama, and tells models
    apart whose weights were trained: training moves every matrix.

    Raises:
        CheckpointError: the weights cannot be read.
    """
    with reading("Llama", str(directory)):
        digest = hashlib.sha256()
        for name, weight in sorted(read_safetensors(directory).items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            sample = weight.flatten()[: SAMPLE_BYTES // weight.element_size()]
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    place = directory.absolute()
    cached = re.search(r"/models--([^/]+)--([^/]+)/snapshots/([^/]+)/?$", str(place))
    if cached:
        owner, name, revision = cached.groups()
        return LatentOrigin(f"{owner}/{name}", revision, digest.hexdigest())
    return LatentOrigin(place.name, None, digest.hexdigest())
