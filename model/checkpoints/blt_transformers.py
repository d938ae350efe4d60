"""BLT as transformers lays it out: its configuration and its names for the weights.

One directory holds the BLT and, under ``model.patcher.``, its entropy model.
"""

from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from model.blt import BLT
from model.blt_config import ROW_READING, BLTConfig
from model.checkpoints import entropy_layouts
from model.checkpoints.entropy_layouts import TransformersEntropyConfig
from model.checkpoints.files import (
    CheckpointError,
    JsonObject,
    renamed,
    transformers_name,
)
from model.checkpoints.transformers_rope import (
    RopeParameters,
    plain_rope_theta,
    rotary_positions,
    to_rope_parameters,
)
from model.entropy_model import EntropyModel
from model.patcher import Patcher
from model.tokenizer import BOS_ID, EOS_ID

AS_TRANSFORMERS: JsonObject = {**dict.fromkeys(ROW_READING, False), "hash_across_documents": True}
"""How transformers reads rows, as far as it does: it knows no documents, which a row of packed ones
needs, and reads the last patch but one where lengths leave out the next token."""
OUTPUT, TOKEN_TABLE = "local_decoder.output.weight", "local_encoder.tok_embeddings.weight"
"""The two weights that are one with transformers' ``tie_word_embeddings``; they are two here."""
THEIR_RULE = "global"
"""The only boundary rule that transformers has, called ``entropy`` there."""


class TransformersPart(TypedDict):
    """The configuration of encoder, decoder or latent transformer in transformers' BLT."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    rms_norm_eps: float
    rope_parameters: RopeParameters
    vocab_size: NotRequired[int]
    cross_attn_k: NotRequired[int]
    cross_attn_all_layers: NotRequired[bool]
    hidden_size_global: NotRequired[int]


class TransformersConfig(TypedDict):
    """The configuration of transformers' ``BltForCausalLM``."""

    architectures: list[str]
    model_type: str
    vocab_size: int
    bos_token_id: int
    eos_token_id: int
    cross_attn_k: int
    encoder_hash_byte_group_size: list[int]
    encoder_hash_byte_group_vocab: int
    encoder_hash_byte_group_nb_functions: int
    local_attention_window_len: int | None
    rope_parameters: RopeParameters
    patch_in_forward: bool
    patching_mode: str
    patching_threshold: float | None
    max_patch_length: int | None
    encoder_config: TransformersPart
    decoder_config: TransformersPart
    global_config: TransformersPart
    patcher_config: NotRequired[TransformersEntropyConfig]


def _blt_transformers_name(name: str) -> str:
    theirs = transformers_name(name)
    return theirs if theirs.startswith("lm_head") else f"model.{theirs}"


def from_transformers_weights(
    shape: BLTConfig, theirs: dict[str, Tensor], *, tied: bool
) -> dict[str, Tensor]:
    """Weights under the published names; a weight that has none keeps its own. The entropy model's
    weights, which may be among them, are left out.

    Args:
        tied: the output layer's weight and the table of tokens are one, which is there once.
    """
    with torch.device("meta"):
        expected = BLT(shape).state_dict()
    names = {_blt_transformers_name(name): name for name in expected}
    of_blt = {n: tensor for n, tensor in theirs.items() if not n.startswith("model.patcher.")}
    weights = renamed(of_blt, lambda name: names.get(name, name))
    if tied:  # releases differ in which of the two they store
        for name, other in ((TOKEN_TABLE, OUTPUT), (OUTPUT, TOKEN_TABLE)):
            if other in weights:
                weights.setdefault(name, weights[other].clone())
    stacked = weights.pop("model.encoder_hash_tok_embedding.weight", None)
    if stacked is not None:
        tables = stacked.split(shape.encoder_hash_byte_group_vocab)
        weights |= {f"encoder_hash_tok_embedding.{i}.weight": t for i, t in enumerate(tables)}
    return weights


def from_transformers_config(config: JsonObject) -> BLTConfig:
    """The shape that a configuration of transformers' BLT describes, which reads rows as
    transformers does.

    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    parts: dict[str, JsonObject] = {
        "local_encoder": config["encoder_config"],
        "local_decoder": config["decoder_config"],
        "global": config["global_config"],
    }
    encoder, decoder = parts["local_encoder"], parts["local_decoder"]
    theta, scaling = rotary_positions(parts["global"], 500_000.0)
    k = config.get("cross_attn_k", 2)
    shapes: JsonObject = {}
    for name, part in parts.items():
        shapes |= {
            f"n_layers_{name}": part["num_hidden_layers"],
            f"n_heads_{name}": part["num_attention_heads"],
            f"n_kv_heads_{name}": part.get("num_key_value_heads"),
            f"hidden_dim_{name}": part.get("intermediate_size"),
        }
    shared = {
        "hidden_size": (encoder["hidden_size"], decoder["hidden_size"]),
        "cross_attn_k": tuple(part.get("cross_attn_k", k) for part in (encoder, decoder)),
        "num_attention_heads": (encoder["num_attention_heads"], decoder["num_attention_heads"]),
        "rms_norm_eps": tuple(part.get("rms_norm_eps", 1e-5) for part in parts.values()),
        "rope_parameters": (
            theta,
            *(plain_rope_theta(part, 500_000.0) for part in (encoder, decoder)),
        ),
    }
    for name, values in shared.items():
        if len(set(values)) > 1:
            raise ValueError(f"argument {name}: values that differ by part, {values}")
    if encoder.get("cross_attn_all_layers") and encoder["num_hidden_layers"] > 1:
        raise ValueError(
            "argument cross_attn_all_layers=True is not supported in an encoder of several layers: "
            "transformers pools anew in every layer, ours once"
        )
    return BLTConfig(
        dim_local=encoder["hidden_size"],
        dim_global=parts["global"]["hidden_size"],
        cross_attn_k=shared["cross_attn_k"][0],
        cross_attn_nheads=encoder["num_attention_heads"],
        cross_attn_all_layers_encoder=encoder.get("cross_attn_all_layers", False) or False,
        cross_attn_all_layers_decoder=decoder.get("cross_attn_all_layers", True) or False,
        encoder_hash_byte_group_size=config["encoder_hash_byte_group_size"],
        encoder_hash_byte_group_vocab=config["encoder_hash_byte_group_vocab"],
        encoder_hash_byte_group_nb_functions=config["encoder_hash_byte_group_nb_functions"],
        **AS_TRANSFORMERS,
        local_attention_window_len=config.get("local_attention_window_len", 512),
        rope_theta=theta,
        rope_scaling_global=scaling,
        norm_eps=shared["rms_norm_eps"][0],
        vocab_size=config.get("vocab_size", 260),
        patcher=_transformers_patcher(config),
        **shapes,
    )


def _transformers_patcher(config: JsonObject) -> Patcher | None:
    threshold = config.get("patching_threshold")
    if config.get("patching_mode") != "entropy" or threshold is None:
        return None
    return Patcher(threshold, THEIR_RULE, max_patch_length=config.get("max_patch_length"))


def to_transformers_config(
    config: BLTConfig, entropy_model: EntropyModel | None
) -> TransformersConfig:
    """The configuration of transformers' BLT that describes a shape.

    Args:
        entropy_model: the model that goes into the same files.

    Raises:
        CheckpointError: transformers has no such model; says why.
    """
    _check_representable(config)
    patcher = config.patcher
    encoder, decoder = (_part(config, name) for name in ("local_encoder", "local_decoder"))
    encoder["vocab_size"] = decoder["vocab_size"] = config.vocab_size
    encoder["cross_attn_k"] = decoder["cross_attn_k"] = config.cross_attn_k
    encoder["cross_attn_all_layers"] = config.cross_attn_all_layers_encoder
    decoder["cross_attn_all_layers"] = config.cross_attn_all_layers_decoder
    decoder["hidden_size_global"] = config.dim_global
    theirs: TransformersConfig = {
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "vocab_size": config.vocab_size,
        # Without them, its generation does not end where a text does.
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "cross_attn_k": config.cross_attn_k,
        "encoder_hash_byte_group_size": list(config.encoder_hash_byte_group_size),
        "encoder_hash_byte_group_vocab": config.encoder_hash_byte_group_vocab,
        "encoder_hash_byte_group_nb_functions": config.encoder_hash_byte_group_nb_functions,
        "local_attention_window_len": config.local_attention_window_len,
        "rope_parameters": to_rope_parameters(config.rope_theta, ()),
        "patch_in_forward": entropy_model is not None,
        "patching_mode": "entropy",
        "patching_threshold": patcher.threshold if patcher else None,
        "max_patch_length": patcher.max_patch_length if patcher else None,
        "encoder_config": encoder,
        "decoder_config": decoder,
        "global_config": _part(config, "global"),
    }
    if entropy_model:
        theirs["patcher_config"] = entropy_layouts.to_transformers_config(entropy_model.config)
    return theirs


def _check_representable(config: BLTConfig) -> None:
    heads = {config.n_heads_local_encoder, config.n_heads_local_decoder, config.cross_attn_nheads}
    patcher = config.patcher
    for what, wrong in {
        "n_heads: its parts and cross attention have the same heads": len(heads) > 1,
        "cross_attn_encoder, cross_attn_decoder: it always has cross attention": not (
            config.cross_attn_encoder and config.cross_attn_decoder
        ),
        "encoder_hash_byte_group_size: it always has hash embeddings": (
            not config.encoder_hash_byte_group_size
        ),
        "cross_attn_window: it has no such windows": (
            config.cross_attn_window_encoder > 1 or config.cross_attn_window_decoder > 1
        ),
        "cross_attn_all_layers_encoder: it pools anew in every layer": (
            config.cross_attn_all_layers_encoder and config.n_layers_local_encoder > 1
        ),
        "projects_equal_widths: it always projects latent states": (
            not config.projects_equal_widths
        ),
        "patcher: it has the global rule only": (
            patcher is not None and patcher.rule != THEIR_RULE
        ),
    }.items():
        if wrong:
            raise CheckpointError(f"transformers' layout cannot hold this model; {what}")


def _part(config: BLTConfig, name: str) -> TransformersPart:
    scaling = config.rope_scaling_global if name == "global" else ()
    return {
        "hidden_size": config.dim_of(name),
        "num_hidden_layers": getattr(config, f"n_layers_{name}"),
        "num_attention_heads": getattr(config, f"n_heads_{name}"),
        "num_key_value_heads": getattr(config, f"n_kv_heads_{name}"),
        "intermediate_size": getattr(config, f"hidden_dim_{name}"),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": to_rope_parameters(config.rope_theta, scaling),
    }


def to_transformers_weights(
    weights: dict[str, Tensor], entropy_model: EntropyModel | None
) -> dict[str, Tensor]:
    """The weights of a BLT, and of its entropy model, under transformers' names."""
    tables = [name for name in weights if name.startswith("encoder_hash_tok_embedding.")]
    theirs = {
        _blt_transformers_name(name): tensor
        for name, tensor in weights.items()
        if name not in tables
    }
    stacked = torch.cat([weights[name] for name in sorted(tables, key=_table_number)])
    theirs["model.encoder_hash_tok_embedding.weight"] = stacked
    if entropy_model is not None:
        patcher = entropy_layouts.to_transformers_weights(entropy_model.state_dict())
        theirs |= {f"model.patcher.{name}": weight for name, weight in patcher.items()}
    return theirs


def _table_number(name: str) -> int:
    return int(name.split(".")[1])
