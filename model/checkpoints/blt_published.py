"""BLT as it was published: its arguments. The names of the weights are ours.

``config.json`` of the hub's layout holds the arguments under the key ``args``, ``params.json`` of
consolidated directories under ``model``; :mod:`model.checkpoints.blt` reads and writes these files.
"""

from typing import Any

from model.blt_config import BLTConfig
from model.checkpoints.files import CheckpointError, differences, refuse_unknown
from model.layers.transformer import default_hidden_dim, hidden_dim_arguments
from model.patcher import Patcher
from model.tokenizer import EOS_ID

SAME_NAMES = (
    *("dim_global", "n_layers_global", "n_heads_global", "n_kv_heads_global"),
    *("n_layers_local_encoder", "n_heads_local_encoder"),
    *("n_layers_local_decoder", "n_heads_local_decoder"),
    *("cross_attn_k", "cross_attn_nheads"),
    *("cross_attn_all_layers_encoder", "cross_attn_all_layers_decoder"),
    *("encoder_hash_byte_group_vocab", "encoder_hash_byte_group_nb_functions"),
    *("local_attention_window_len", "rope_theta", "norm_eps", "vocab_size"),
    "hash_across_documents",  # ours alone
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
    # Patching, which is done outside of the model; the rule is read by _patcher.
    *("entropy_model_checkpoint_dir", "entropy_model_is_ngram_model", "max_patch_length"),
    *("monotonicity", "patch_in_forward", "patch_size", "patching_batch_size", "patching_device"),
    *("patching_mode", "patching_threshold", "patching_threshold_add", "patching_thresholds_str"),
    *("realtime_patching", "tokenize_with_bpe_delimiter"),
    # Sizes of tables of plain n-grams, which encoder_enable_byte_ngrams would switch on.
    *("encoder_enable_byte_group_hash", "encoder_ngram_table_dir", "encoder_ngram_to_size_str"),
    "ngram_vocab_sizes",
}
"""Published arguments that don't change what the weights compute."""


def from_published_args(args: dict[str, Any], patching: dict[str, Any]) -> BLTConfig:
    """The published arguments, each either used, known to be harmless, or refused by name.

    Args:
        patching: how the data was patched that the weights were trained on; empty if not known.

    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    patcher = _patcher(args, patching)
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


def _patcher(args: dict[str, Any], patching: dict[str, Any]) -> Patcher | None:
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


def to_published_args(config: BLTConfig) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: the published arguments cannot say what the model is; says why.
    """
    parts = ("local_encoder", "local_decoder", "global")
    widths = {part: config.dim_global if part == "global" else config.dim_local for part in parts}
    multiplier, multiple_of = hidden_dim_arguments(
        {(dim, getattr(config, f"hidden_dim_{part}")) for part, dim in widths.items()}
    )
    windows = {
        name: getattr(config, name) if getattr(config, name) > 1 else None
        for name in ("cross_attn_window_encoder", "cross_attn_window_decoder")
    }
    args = {
        **{name: values[0] for name, values in FIXED_ARGS.items()},
        **{name: getattr(config, name) for name in SAME_NAMES},
        "dim_local_encoder": config.dim_local,
        "dim_local_decoder": config.dim_local,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        "encoder_hash_byte_group_size": list(config.encoder_hash_byte_group_size),
        **windows,
        **_patching_args(config.patcher),
    }
    if not config.hash_across_documents:  # other readers know no such argument
        del args["hash_across_documents"]
    for name, (value, read) in differences(config, from_published_args(args, {})).items():
        raise CheckpointError(
            f"the published layout cannot hold this model; {name}: {value} would be read as {read}"
        )
    return args


def _patching_args(patcher: Patcher | None) -> dict[str, Any]:
    """Of a rule that only other rules are near to, the arguments are those of one of them."""
    if patcher is None:
        return {}
    entropy = patcher.threshold is not None
    return {
        "patching_mode": "entropy" if entropy else patcher.rule,
        "patching_threshold": patcher.threshold,
        "patching_threshold_add": patcher.threshold_add,
        "monotonicity": patcher.rule == "monotonic",
        "patch_size": patcher.patch_size,
        "max_patch_length": patcher.max_patch_length,
    }
