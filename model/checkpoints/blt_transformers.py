"""BLT as transformers lays it out: its configuration and its names for the weights.

One directory holds the BLT and, under ``model.patcher.``, its entropy model.
"""

from typing import Any

import torch
from torch import Tensor

from model.blt import BLT
from model.blt_config import BLTConfig
from model.checkpoints import entropy_layouts
from model.checkpoints.files import CheckpointError, transformers_name, transformers_rope_theta
from model.entropy_model import EntropyModel
from model.patcher import Patcher


def _blt_transformers_name(name: str) -> str:
    theirs = transformers_name(name)
    return theirs if theirs.startswith("lm_head") else f"model.{theirs}"


def from_transformers_weights(shape: BLTConfig, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the published names; what has none keeps its name. The entropy model's, which
    may be among them, are left out."""
    with torch.device("meta"):
        expected = BLT(shape).state_dict()
    names = {_blt_transformers_name(name): name for name in expected}
    weights = {
        names.get(name, name): tensor
        for name, tensor in theirs.items()
        if not name.startswith("model.patcher.")
    }
    stacked = weights.pop("model.encoder_hash_tok_embedding.weight", None)
    if stacked is not None:
        tables = stacked.split(shape.encoder_hash_byte_group_vocab)
        weights |= {f"encoder_hash_tok_embedding.{i}.weight": t for i, t in enumerate(tables)}
    return weights


def from_transformers_config(config: dict[str, Any]) -> BLTConfig:
    """
    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    parts = {
        "local_encoder": config["encoder_config"],
        "local_decoder": config["decoder_config"],
        "global": config["global_config"],
    }
    encoder, decoder = parts["local_encoder"], parts["local_decoder"]
    k = config.get("cross_attn_k", 2)
    shapes: dict[str, Any] = {}
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
        "rope_parameters": tuple(
            transformers_rope_theta(part, 500_000.0) for part in parts.values()
        ),
    }
    for name, values in shared.items():
        if len(set(values)) > 1:
            raise ValueError(f"argument {name}: values that differ by part, {values}")
    return BLTConfig(
        dim_local=encoder["hidden_size"],
        dim_global=parts["global"]["hidden_size"],
        cross_attn_k=shared["cross_attn_k"][0],
        cross_attn_nheads=encoder["num_attention_heads"],
        cross_attn_all_layers_encoder=bool(encoder.get("cross_attn_all_layers", False)),
        cross_attn_all_layers_decoder=bool(decoder.get("cross_attn_all_layers", True)),
        encoder_hash_byte_group_size=config["encoder_hash_byte_group_size"],
        encoder_hash_byte_group_vocab=config["encoder_hash_byte_group_vocab"],
        encoder_hash_byte_group_nb_functions=config["encoder_hash_byte_group_nb_functions"],
        hash_across_documents=config.get("hash_across_documents", False),  # ours alone
        local_attention_window_len=config.get("local_attention_window_len", 512),
        rope_theta=shared["rope_parameters"][0],
        norm_eps=shared["rms_norm_eps"][0],
        vocab_size=config.get("vocab_size", 260),
        patcher=_transformers_patcher(config),
        **shapes,
    )


def _transformers_patcher(config: dict[str, Any]) -> Patcher | None:
    threshold = config.get("patching_threshold")
    if config.get("patching_mode") != "entropy" or threshold is None:
        return None
    return Patcher(threshold, max_patch_length=config.get("max_patch_length"))


def to_transformers_config(config: BLTConfig, entropy_model: EntropyModel | None) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: transformers has no such model; says why.
    """
    heads = {config.n_heads_local_encoder, config.n_heads_local_decoder, config.cross_attn_nheads}
    for what, wrong in {
        "n_heads: its parts and cross attention have the same heads": len(heads) > 1,
        "cross_attn_window: it has no such windows": (
            config.cross_attn_window_encoder > 1 or config.cross_attn_window_decoder > 1
        ),
        "cross_attn_all_layers_encoder: it pools anew in every layer": (
            config.cross_attn_all_layers_encoder and config.n_layers_local_encoder > 1
        ),
        "patcher: it has the global rule only": (
            config.patcher is not None and config.patcher.rule != "global"
        ),
    }.items():
        if wrong:
            raise CheckpointError(f"transformers' layout cannot hold this model; {what}")

    rope = {"rope_type": "default", "rope_theta": config.rope_theta}

    def part(name: str, dim: int) -> dict[str, Any]:
        return {
            "hidden_size": dim,
            "num_hidden_layers": getattr(config, f"n_layers_{name}"),
            "num_attention_heads": getattr(config, f"n_heads_{name}"),
            "num_key_value_heads": getattr(config, f"n_kv_heads_{name}"),
            "intermediate_size": getattr(config, f"hidden_dim_{name}"),
            "rms_norm_eps": config.norm_eps,
            "rope_parameters": rope,
            "vocab_size": config.vocab_size,
        }

    patcher = config.patcher
    crossed = {"cross_attn_k": config.cross_attn_k}
    return {
        "architectures": ["BltForCausalLM"],
        "model_type": "blt",
        "vocab_size": config.vocab_size,
        "cross_attn_k": config.cross_attn_k,
        "encoder_hash_byte_group_size": list(config.encoder_hash_byte_group_size),
        "encoder_hash_byte_group_vocab": config.encoder_hash_byte_group_vocab,
        "encoder_hash_byte_group_nb_functions": config.encoder_hash_byte_group_nb_functions,
        "hash_across_documents": config.hash_across_documents,
        "local_attention_window_len": config.local_attention_window_len,
        "rope_parameters": rope,
        "patch_in_forward": entropy_model is not None,
        "patching_mode": "entropy",
        "patching_threshold": patcher.threshold if patcher else None,
        "max_patch_length": patcher.max_patch_length if patcher else None,
        "encoder_config": part("local_encoder", config.dim_local)
        | crossed
        | {"cross_attn_all_layers": config.cross_attn_all_layers_encoder},
        "decoder_config": part("local_decoder", config.dim_local)
        | crossed
        | {
            "cross_attn_all_layers": config.cross_attn_all_layers_decoder,
            "hidden_size_global": config.dim_global,
        },
        "global_config": part("global", config.dim_global),
        **(
            {"patcher_config": entropy_layouts.to_transformers_config(entropy_model.config)}
            if entropy_model
            else {}
        ),
    }


def to_transformers_weights(
    weights: dict[str, Tensor], entropy_model: EntropyModel | None
) -> dict[str, Tensor]:
    """Weights of a BLT, and of its entropy model, under transformers' names."""
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
        theirs |= {f"model.patcher.{name}": w.detach().cpu() for name, w in patcher.items()}
    return theirs


def _table_number(name: str) -> int:
    return int(name.split(".")[1])
