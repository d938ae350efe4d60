"""Reading and writing BLTs: four layouts, from a directory, a URL or the hub.

* own: ``config.json`` with ``"format"`` + ``model.safetensors``;
* published, hub: ``config.json`` = ``{"args": {...}}`` + ``model.safetensors``; boundary rule in
  ``train_args.json``;
* published, consolidated: ``params.json`` (key ``model``) + ``consolidated.pth`` (key ``model``);
* transformers: ``config.json`` with ``"model_type": "blt"`` + safetensors; the entropy model, which
  :func:`model.load_entropy_model` reads, may lie in the same files.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from model.blt import BLT
from model.blt_config import BLTConfig
from model.checkpoint import load_entropy_model, save_entropy_model
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
)
from model.entropy_model import EntropyModel
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.tokenizer import EOS_ID
from model.transformer import default_hidden_dim
from model.transformers_layout import (
    from_transformers_config,
    from_transformers_weights,
    to_transformers_config,
    to_transformers_weights,
)

FORMAT = "blt-titan/blt/1"
Layout = Literal["own", "transformers"]
ENTROPY_MODEL = "entropy_model"
"""Directory of the entropy model, below a BLT of ours or beside a published one."""
PUBLISHED = ("facebook/blt-1b", "facebook/blt-7b")
PUBLISHED_ENTROPY_MODEL = "facebook/blt-entropy"

SAME_NAMES = (
    *("dim_global", "n_layers_global", "n_heads_global", "n_kv_heads_global"),
    *("n_layers_local_encoder", "n_heads_local_encoder"),
    *("n_layers_local_decoder", "n_heads_local_decoder"),
    *("cross_attn_k", "cross_attn_nheads"),
    *("cross_attn_all_layers_encoder", "cross_attn_all_layers_decoder"),
    *("encoder_hash_byte_group_vocab", "encoder_hash_byte_group_nb_functions"),
    *("local_attention_window_len", "rope_theta", "norm_eps", "vocab_size"),
)
"""Published arguments that :class:`BLTConfig` calls the same."""

UNSEEN = ("n_heads_global", "n_heads_local_encoder", "n_heads_local_decoder", "cross_attn_nheads")
"""Of these, arguments that the weights' shapes don't tell and that no two models need share."""
MAY_BE_NONE = ("local_attention_window_len", "n_kv_heads_global")
"""Of these, arguments to which None is a value; elsewhere it means the usual one."""

FIXED_ARGS: dict[str, tuple[Any, ...]] = {
    "architecture": ("vanilla",),
    "cross_attn_decoder": (True,),
    "cross_attn_encoder": (True,),
    "cross_attn_init_by_pooling": (True,),
    "downsampling_by_pooling": ("max", "", None),
    "eos_id": (EOS_ID, None),
    "non_linearity": ("swiglu",),
    "norm_affine": (True,),
    "norm_type": ("rmsnorm",),
    "pm_size": (0, None),
    "pre_norm": (True,),
    "use_local_encoder_transformer": (True,),
    "use_rope": (True,),
}
"""Published arguments of which we have the values that the published weights use."""

IGNORED_ARGS = {
    # Shapes, which the weights tell themselves, and lengths, which have no limit here.
    *("dim", "dim_token", "dim_token_emb", "dim_patch_emb", "head_dim", "n_heads", "n_kv_heads"),
    *("n_layers", "max_encoder_seq_length", "max_length", "max_seqlen", "output_size"),
    # How it was trained and run.
    *("alpha_depth", "attn_bias_type", "attn_impl", "attn_to_keep", "block_attention"),
    *("cross_attn_use_flex_attention", "custom_bwd", "data_loader_patching", "efficient_attn"),
    *("full_logging_n_layers", "full_logging_n_heads", "fuse_sequence_parallel"),
    *("init_base_std", "init_std_factor", "init_use_depth", "init_use_gaussian", "layer_ckpt"),
    *("log_patch_lengths", "loss_parallel", "pad_to_max_length", "recompute_attn"),
    *("recompute_fc1_out", "recompute_fc3_out", "rope_use_fp32_in_outer_product", "seed"),
    *("sequence_parallel", "share_encoder_decoder_emb", "sliding_window", "use_fsdp"),
    # Patching, which is done outside of the model; the rule is read by _published_patcher.
    *("entropy_model_checkpoint_dir", "entropy_model_is_ngram_model", "max_patch_length"),
    *("monotonicity", "patch_in_forward", "patch_size", "patching_batch_size", "patching_device"),
    *("patching_mode", "patching_threshold", "patching_threshold_add", "patching_thresholds_str"),
    *("realtime_patching", "tokenize_with_bpe_delimiter"),
    # Sizes of tables of plain n-grams, which encoder_enable_byte_ngrams would switch on.
    *("encoder_enable_byte_group_hash", "encoder_ngram_table_dir", "encoder_ngram_to_size_str"),
    "ngram_vocab_sizes",
}
"""Published arguments that don't change what the weights compute."""


def load_blt(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> BLT:
    """A BLT, ready to run.

    Args:
        source: a directory, a URL that fsspec knows, or a hub id (``owner/name``).
        device: a GPU if there is one, by default.
        dtype: of weights and computation; bfloat16 on a GPU and float32 on a CPU by default.

    Raises:
        CheckpointError: what is wrong, with the file, argument or weight it is wrong with.
    """
    with local_directory("BLT", str(source)) as directory, reading("BLT", str(source)):
        return ready(_load(directory), device, dtype)


def save_blt(
    model: BLT,
    directory: str | Path,
    *,
    layout: Layout = "own",
    entropy_model: EntropyModel | NGramEntropyModel | None = None,
) -> None:
    """Write ``model``; ``directory`` is made if need be.

    Args:
        entropy_model: that places the boundaries; goes into the same files in transformers' layout,
            into a directory below in our own.

    Raises:
        CheckpointError: the layout cannot hold the model; says why.
    """
    if layout not in get_args(Layout):
        raise CheckpointError(f"layout: {layout!r} is not one of {', '.join(get_args(Layout))}")
    # Copies: tensors that share memory could not be written.
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    config: dict[str, Any]
    if layout == "own":
        config = {"format": FORMAT, **asdict(model.config)}
    else:
        if isinstance(entropy_model, NGramEntropyModel):
            raise CheckpointError("transformers' layout cannot hold an n-gram entropy model")
        config = to_transformers_config(model.config, entropy_model)
        weights = to_transformers_weights(weights, entropy_model)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if layout == "own" and entropy_model is not None:
        save_entropy_model(entropy_model, target / ENTROPY_MODEL)


def load_entropy_model_of(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EntropyModel | NGramEntropyModel:
    """The entropy model that belongs to the BLT in ``source``: in the same files, in a directory
    below or (of a local one) beside it, or on the hub beside the published BLTs.

    Raises:
        CheckpointError: there is none in these places, or it cannot be read.
    """
    text = str(source).rstrip("/")
    if text.removeprefix("hf://") in PUBLISHED:
        return load_entropy_model(PUBLISHED_ENTROPY_MODEL, device=device, dtype=dtype)
    with local_directory("BLT", text) as directory:
        with reading("BLT", text):
            config = read_json(directory / "config.json")
        beside = directory.resolve().parent
        places = [directory / ENTROPY_MODEL]
        places += [beside / name for name in (ENTROPY_MODEL, PUBLISHED_ENTROPY_MODEL.split("/")[1])]
        if config.get("model_type") == "blt" and config.get("patch_in_forward", True):
            places.insert(0, directory)
        for place in places:
            if place.is_dir():
                return load_entropy_model(place, device=device, dtype=dtype)
    raise CheckpointError(f"{text}: holds no entropy model, and there is none beside it")


def _load(directory: Path) -> BLT:
    config = read_json(directory / "config.json")
    if config.get("format") == FORMAT:
        return _load_own(config, directory)
    if config.get("model_type") == "blt":
        shape = from_transformers_config(config)
        return build(
            lambda: BLT(shape), from_transformers_weights(shape, read_safetensors(directory))
        )
    if "args" in config:
        train = read_json(directory / "train_args.json")
        patching = train.get("data", {}).get("patcher_args") or {}
        shape = _published_config(config["args"], _published_patcher(config["args"], patching))
        return build(lambda: BLT(shape), read_safetensors(directory))
    params = read_json(directory / "params.json")
    if "dim_global" in (params.get("model") or {}):
        args, patching = params["model"], params.get("data", {}).get("patcher_args") or {}
        shape = _published_config(args, _published_patcher(args, patching))
        return build(lambda: BLT(shape), read_consolidated(directory))
    raise ValueError(
        "no BLT in a known layout: expected config.json with model.safetensors, or params.json "
        "(key 'model') with consolidated.pth"
    )


def _load_own(config: dict[str, Any], directory: Path) -> BLT:
    values = own_arguments(config, BLTConfig)
    if values.get("patcher"):
        values["patcher"] = Patcher(**values["patcher"])
    shape = BLTConfig(**values)
    return build(lambda: BLT(shape), read_safetensors(directory))


def _published_config(args: dict[str, Any], patcher: Patcher | None) -> BLTConfig:
    """The published arguments, each either used, known to be harmless, or refused by name."""
    args = {name: value for name, value in args.items() if name not in IGNORED_ARGS}
    for name, known in FIXED_ARGS.items():
        value = args.pop(name, known[0])
        if value not in known:
            raise ValueError(f"argument {name}={value!r} is not supported")
    dim_local, dim_decoder = args.pop("dim_local_encoder"), args.pop("dim_local_decoder")
    if dim_local != dim_decoder:
        raise ValueError(
            f"argument dim_local_decoder={dim_decoder} is not supported: the encoder is "
            f"{dim_local} wide"
        )
    multiplier, multiple_of = args.pop("ffn_dim_multiplier", None), args.pop("multiple_of", 256)
    dims = {"global": args["dim_global"], "local_encoder": dim_local, "local_decoder": dim_local}
    hidden: dict[str, Any] = {
        f"hidden_dim_{part}": default_hidden_dim(dim, multiplier, multiple_of)
        for part, dim in dims.items()
    }
    windows: dict[str, Any] = {
        name: args.pop(name, None) or 1
        for name in ("cross_attn_window_encoder", "cross_attn_window_decoder")
    }
    sizes = args.pop("encoder_hash_byte_group_size")
    for name in UNSEEN:
        if not args.get(name):
            raise ValueError(f"argument {name} is missing")
    used = {name: args.pop(name) for name in SAME_NAMES if name in args}
    used = {name: v for name, v in used.items() if v is not None or name in MAY_BE_NONE}
    refuse_unknown(args)
    return BLTConfig(
        dim_local=dim_local,
        encoder_hash_byte_group_size=sizes,
        patcher=patcher,
        **hidden,
        **windows,
        **used,
    )


def _published_patcher(args: dict[str, Any], patching: dict[str, Any]) -> Patcher | None:
    """The boundary rule of the data that the weights were trained on, else that of the model's
    arguments; None where there is none, or one that is not ours."""
    if not patching:
        names = {"threshold": "patching_threshold", "threshold_add": "patching_threshold_add"}
        copied = ("patching_mode", "monotonicity", "max_patch_length", "patch_size")
        patching = {name: args.get(name) for name in copied}
        patching |= {ours: args.get(theirs) for ours, theirs in names.items()}
    mode, limit = patching.get("patching_mode"), patching.get("max_patch_length")
    threshold, rise = patching.get("threshold"), patching.get("threshold_add")
    if mode in ("space", "byte", "bpe"):
        return Patcher(rule=mode, max_patch_length=limit)
    if mode == "static" and patching.get("patch_size"):
        return Patcher(rule="static", patch_size=patching["patch_size"], max_patch_length=limit)
    if mode != "entropy" or threshold is None:
        return None
    if patching.get("monotonicity"):
        return Patcher(threshold, "monotonic", max_patch_length=limit, published=True)
    if rise is not None:
        return Patcher(threshold, "combined", rise, max_patch_length=limit, published=True)
    return Patcher(threshold, max_patch_length=limit)
