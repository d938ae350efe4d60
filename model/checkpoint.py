"""Reading and writing entropy models: four layouts, from a directory, a URL or the hub.

No code of a checkpoint is ever run: pickles are read with ``weights_only``. Layouts:

* own: ``config.json`` with ``"format"`` + ``model.safetensors`` (transformer and n-gram alike);
* published, consolidated: ``params.json`` (key ``entropy_model``) + ``consolidated.pth``
  (key ``model``);
* published, hub: ``config.json`` = ``{"args": {...}}`` + ``model.safetensors``;
* transformers' BLT: ``config.json`` with ``patcher_config`` + safetensors under ``model.patcher.``.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint_files import (
    CheckpointError,
    build,
    local_directory,
    own_arguments,
    read_consolidated,
    read_json,
    read_safetensors,
    reading,
    ready,
    refuse_unknown,
    transformers_name,
    transformers_rope_theta,
)
from model.entropy_model import EntropyModel, EntropyModelConfig
from model.ngram import NGramEntropyModel
from model.transformer import default_hidden_dim

__all__ = [
    "CheckpointError",
    "fingerprint",
    "load_entropy_model",
    "save_entropy_model",
    "to_device",
]

FORMAT = "blt-titan/entropy-model/1"

IGNORED_ARGS = {
    *("attn_impl", "attn_bias_type", "sliding_window", "eos_id", "seed"),
    *("init_base_std", "init_std_factor", "rope_use_fp32_in_outer_product"),
}
"""Published arguments that don't describe the computation: how weights were initialised, and
attention settings, which the published model was not run with (it is always causal, within one
document, window 512)."""


def load_entropy_model(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EntropyModel | NGramEntropyModel:
    """An entropy model, ready to score.

    Args:
        source: a directory, a URL that fsspec knows, or a hub id (``owner/name``).
        device: a GPU if there is one, by default.
        dtype: of weights and computation; bfloat16 on a GPU and float32 on a CPU by default.

    Raises:
        CheckpointError: what is wrong, with the file, argument or weight it is wrong with.
    """
    with (
        local_directory("entropy model", str(source)) as directory,
        reading("entropy model", str(source)),
    ):
        model = _load(directory)
        return to_device(model, device, dtype)


def to_device(
    model: EntropyModel | NGramEntropyModel,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EntropyModel | NGramEntropyModel:
    """Move a transformer where it computes fastest; the n-gram model stays on the CPU."""
    if isinstance(model, NGramEntropyModel):
        return model
    return ready(model, device, dtype)


def save_entropy_model(model: EntropyModel | NGramEntropyModel, directory: str | Path) -> None:
    """Write ``model`` in our own layout; ``directory`` is made if need be."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    config, tensors = _state(model)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def fingerprint(model: EntropyModel | NGramEntropyModel) -> str:
    """sha256 over the configuration and all weights, in the dtype that they have now."""
    config, tensors = _state(model)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(model: EntropyModel | NGramEntropyModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(model, EntropyModel):
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return {"kind": "transformer", **asdict(model.config)}, tensors
    tensors = {f"order_{k}": torch.tensor(table) for k, table in model.hashed.items()}
    return {"kind": "ngram"}, {"direct": torch.tensor(model.direct), **tensors}


def _load(directory: Path) -> EntropyModel | NGramEntropyModel:
    config = read_json(directory / "config.json")
    if config.get("format") == FORMAT:
        return _load_own(config, directory)
    if "args" in config:
        return _transformer(_published_config(config["args"]), read_safetensors(directory))
    if "patcher_config" in config or config.get("model_type") == "blt_patcher":
        shape = _transformers_config(config.get("patcher_config", config))
        return _transformer(shape, _transformers_weights(directory, shape))
    if params := read_json(directory / "params.json"):
        if not params.get("entropy_model"):
            raise ValueError("params.json has no key 'entropy_model': not an entropy model")
        shape = _published_config(params["entropy_model"])
        return _transformer(shape, read_consolidated(directory))
    raise ValueError(
        "no entropy model in a known layout: expected config.json with model.safetensors, "
        "or params.json with consolidated.pth"
    )


def _load_own(config: dict[str, Any], directory: Path) -> EntropyModel | NGramEntropyModel:
    weights = read_safetensors(directory)
    if config["kind"] == "ngram":
        tables = {name: tensor.numpy() for name, tensor in weights.items()}
        direct = tables.pop("direct")
        return NGramEntropyModel(direct, {int(k.removeprefix("order_")): tables[k] for k in tables})
    shape = EntropyModelConfig(**own_arguments(config, EntropyModelConfig))
    return _transformer(shape, weights)


def _published_config(args: dict[str, Any]) -> EntropyModelConfig:
    """The published arguments, each either used, known to be harmless, or refused by name."""
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
    )
    refuse_unknown(args)
    return config


def _transformers_config(config: dict[str, Any]) -> EntropyModelConfig:
    dim, n_heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    if config.get("head_dim", dim // n_heads) * n_heads != dim:
        raise ValueError(f"argument head_dim={config['head_dim']} is not supported")
    return EntropyModelConfig(
        dim=dim,
        n_layers=config.get("num_hidden_layers", 14),
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads"),
        hidden_dim=config.get("intermediate_size", 2048),
        context_length=config.get("max_position_embeddings", 8192),
        window=config.get("sliding_window") or 512,
        rope_theta=transformers_rope_theta(config, 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        vocab_size=config.get("vocab_size", 260),
    )


def _transformers_weights(directory: Path, shape: EntropyModelConfig) -> dict[str, Tensor]:
    theirs = read_safetensors(directory, ("model.patcher.", "patcher.", ""))
    # What they call lm_head here is the entropy model's own.
    theirs = {name.replace("lm_head", "output"): tensor for name, tensor in theirs.items()}
    with torch.device("meta"):
        names = {transformers_name(name): name for name in EntropyModel(shape).state_dict()}
    return {names.get(name, name): tensor for name, tensor in theirs.items()}


def _transformer(config: EntropyModelConfig, weights: dict[str, Tensor]) -> EntropyModel:
    return build(lambda: EntropyModel(config), weights)
