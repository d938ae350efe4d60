"""The published code's requirements of a checkpoint that it loads, as tables and as a check.

Made from the format (docs/published-format.md), not from our reader or writer: the arguments and
their types, those without which no model is built or run, and the names and shapes of the weights
that the arguments ask for. The published loader leaves weights that it does not find as they are,
so that a missing one would go unnoticed there.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

OURS = {
    *("patch_provenance", "hash_across_documents", "cross_attn_across_documents"),
    "last_reads_last_patch",
}
"""Keys that may stand beside ``args``: the published code takes ``args`` alone."""

INT, FLOAT, BOOL, TEXT = (int,), (float, int), (bool,), (str,)
NONE = (type(None),)
FACTORS = ("disabled", "current_depth", "global_depth", "dim_ratio")

TRANSFORMER: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("dim", "n_layers", "multiple_of", "max_seqlen"), INT),
    **dict.fromkeys(("head_dim", "n_heads", "n_kv_heads", "eos_id"), INT + NONE),
    **dict.fromkeys(("norm_eps", "rope_theta"), FLOAT),
    **dict.fromkeys(("ffn_dim_multiplier", "init_base_std"), FLOAT + NONE),
    "rope_use_fp32_in_outer_product": BOOL,
    **dict.fromkeys(("init_std_factor", "init_device", "init_dtype"), TEXT),
    **dict.fromkeys(("attn_impl", "attn_bias_type"), TEXT + NONE),
}
"""Arguments of every published transformer."""
ENTROPY_MODEL = TRANSFORMER | {
    **dict.fromkeys(("seed", "vocab_size"), INT),
    "weight_tying": BOOL,
    "sliding_window": INT + NONE,
}
BLT = TRANSFORMER | {
    **dict.fromkeys(("seed", "vocab_size", "n_heads", "max_length", "output_size", "pm_size"), INT),
    **dict.fromkeys(("dim_global", "dim_local_decoder", "dim_local_encoder"), INT),
    **dict.fromkeys(("n_layers_global", "n_layers_local_decoder", "n_layers_local_encoder"), INT),
    **dict.fromkeys(("n_heads_global", "n_heads_local_decoder", "n_heads_local_encoder"), INT),
    **dict.fromkeys(("patching_batch_size", "full_logging_n_layers"), INT),
    **dict.fromkeys(("encoder_hash_byte_group_vocab", "encoder_hash_byte_group_nb_functions"), INT),
    **dict.fromkeys(("dim_token", "dim_token_emb", "dim_patch_emb"), INT + NONE),
    **dict.fromkeys(("max_patch_length", "max_encoder_seq_length"), INT + NONE),
    **dict.fromkeys(("cross_attn_window_encoder", "cross_attn_window_decoder"), INT + NONE),
    **dict.fromkeys(("cross_attn_k", "cross_attn_nheads", "n_kv_heads_global"), INT + NONE),
    **dict.fromkeys(
        ("local_attention_window_len", "ngram_vocab_sizes", "conv_kernel_size"), INT + NONE
    ),
    **dict.fromkeys(("ffn_dim_multiplier", "dropout"), FLOAT),
    **dict.fromkeys(("patch_size", "patching_threshold", "patching_threshold_add"), FLOAT + NONE),
    **dict.fromkeys(("encoder_preds_low_entropy_toks", "encoder_preds_random_toks"), FLOAT + NONE),
    **dict.fromkeys(
        ("weight_tying", "patch_in_forward", "monotonicity", "pad_to_max_length"), BOOL
    ),
    **dict.fromkeys(("tie_local_encoder_decoder_logits", "tie_local_encoder_decoder"), BOOL),
    **dict.fromkeys(("use_local_encoder_transformer", "encoder_lm_loss"), BOOL),
    **dict.fromkeys(("encoder_enable_byte_ngrams", "encoder_enable_byte_group_hash"), BOOL),
    **dict.fromkeys(("cross_attn_encoder", "cross_attn_decoder"), BOOL),
    **dict.fromkeys(("cross_attn_all_layers_decoder", "cross_attn_all_layers_encoder"), BOOL),
    **dict.fromkeys(("cross_attn_use_flex_attention", "cross_attn_init_by_pooling"), BOOL),
    **dict.fromkeys(("log_patch_lengths", "use_rope", "recompute_fc1_out"), BOOL),
    **dict.fromkeys(("recompute_fc3_out", "recompute_attn", "custom_bwd"), BOOL),
    **dict.fromkeys(("init_use_gaussian", "norm_affine", "pre_norm"), BOOL),
    **dict.fromkeys(("share_encoder_decoder_emb", "tokenize_with_bpe_delimiter"), BOOL),
    **dict.fromkeys(("entropy_model_is_ngram_model", "sequence_parallel", "loss_parallel"), BOOL),
    **dict.fromkeys(("fuse_sequence_parallel", "use_fsdp"), BOOL),
    **dict.fromkeys(("patching_device", "non_linearity", "layer_ckpt", "init_use_depth"), TEXT),
    **dict.fromkeys(("attn_bias_type", "alpha_depth", "norm_type", "architecture"), TEXT),
    "attn_to_keep": TEXT,
    **dict.fromkeys(("patching_mode", "patching_thresholds_str"), TEXT + NONE),
    **dict.fromkeys(
        ("global_local_decoder_residual_layer", "downsampling_by_pooling"), TEXT + NONE
    ),
    **dict.fromkeys(("encoder_ngram_table_dir", "encoder_ngram_to_size_str"), TEXT + NONE),
    "entropy_model_checkpoint_dir": TEXT + NONE,
    "encoder_hash_byte_group_size": (list, str, type(None)),
}
BUILT_FROM = (
    *("patch_size", "patching_mode", "max_encoder_seq_length", "ffn_dim_multiplier"),
    *("local_attention_window_len", "eos_id", "cross_attn_k", "cross_attn_nheads"),
)
"""Arguments that may be null or missing by their type, but without which a model is not built, or
not run with the masks of documents."""
TOLD = {
    "attn_impl": "xformers",
    "attn_bias_type": "block_causal",
    "cross_attn_init_by_pooling": True,
    "downsampling_by_pooling": "max",
    "use_local_encoder_transformer": True,
}
"""Arguments whose defaults make other models than ours."""
PATCHER = {
    "patching_mode": TEXT,
    "threshold": FLOAT,
    "patch_size": FLOAT,
    "threshold_add": FLOAT + NONE,
    "max_patch_length": INT + NONE,
    "monotonicity": BOOL,
}
PATCHER_MODES = ("entropy", "bpe", "bpe_patcher", "space")


def wrong_arguments(args: dict[str, Any], known: dict[str, tuple[type, ...]]) -> list[str]:
    """The faults of arguments by themselves, in words."""
    problems = [f"{name}: unknown" for name in args.keys() - known]
    for name in args.keys() & known:
        value = args[name]
        # For Python a truth value is an integer; for a type of the format it is not.
        if not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] != BOOL):
            problems.append(f"{name}: {value!r}")
    if args.get("init_std_factor", "disabled") not in FACTORS:
        problems.append(f"init_std_factor: {args['init_std_factor']!r}")
    return sorted(problems)


def wrong_blt_arguments(args: dict[str, Any]) -> list[str]:
    """The faults that keep the published code from building and running such a BLT."""
    problems = wrong_arguments(args, BLT)
    problems += [f"{name}: needed" for name in BUILT_FROM if args.get(name) is None]
    problems += [f"{k}: not {v!r}" for k, v in TOLD.items() if args.get(k) != v]
    if args.get("vocab_size", -1) <= 0:
        problems.append("vocab_size: needed")
    return problems


def block_weights(name: str, args: dict[str, Any], dim: int, heads: int, kv: int) -> dict:
    hidden = int(args["ffn_dim_multiplier"] * int(2 * 4 * dim / 3))
    multiple = args["multiple_of"]
    hidden = multiple * ((hidden + multiple - 1) // multiple)
    kv_dim = dim // heads * kv
    return {
        **{f"{name}.attention.{w}.weight": (dim, dim) for w in ("wq", "wo")},
        **{f"{name}.attention.{w}.weight": (kv_dim, dim) for w in ("wk", "wv")},
        **{f"{name}.feed_forward.{w}.weight": (hidden, dim) for w in ("w1", "w3")},
        f"{name}.feed_forward.w2.weight": (dim, hidden),
        **{f"{name}.{w}.weight": (dim,) for w in ("attention_norm", "ffn_norm")},
    }


def crossing_weights(name: str, dim: int, heads: int) -> dict:
    inner = heads * (dim // heads)
    return {
        **{f"{name}.{w}.weight": (inner, dim) for w in ("wq", "wk", "wv")},
        f"{name}.wo.weight": (dim, inner),
        **{f"{name}.cross_attn_norm_{w}.weight": (dim,) for w in ("q", "kv")},
    }


def blt_weights(args: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a published BLT, by name, with their shapes."""
    local, latent, k = args["dim_local_encoder"], args["dim_global"], args["cross_attn_k"]
    vocabulary, crossing = args["vocab_size"], args["cross_attn_nheads"]
    weights: dict[str, tuple[int, ...]] = {
        "local_encoder.tok_embeddings.weight": (vocabulary, local),
        "local_decoder.norm.weight": (local,),
        "local_decoder.output.weight": (vocabulary, local),
    }
    parts = (("local_encoder", local), ("local_decoder", local), ("global_transformer", latent))
    for part, dim in parts:
        key = part.removesuffix("_transformer")
        heads = args[f"n_heads_{key}"]
        kv = (args.get("n_kv_heads_global") if key == "global" else None) or heads
        for i in range(args[f"n_layers_{key}"]):
            weights |= block_weights(f"{part}.layers.{i}", args, dim, heads, kv)
    for side in ("encoder", "decoder"):
        layers = args[f"n_layers_local_{side}"] if args[f"cross_attn_all_layers_{side}"] else 1
        for i in range(layers if args[f"cross_attn_{side}"] else 0):
            name = f"local_{side}.cross_attn_layers.{i}"
            weights |= crossing_weights(name, local, crossing)
    incoming = local * k if args["cross_attn_encoder"] else local
    if args["cross_attn_encoder"]:
        weights["local_encoder.patch_embedding_projection.weight"] = (incoming, local)
    if incoming != latent:
        weights["global_transformer.token_embedding_projection.weight"] = (latent, incoming)
    if latent != local:
        read = local * k if args["cross_attn_decoder"] else local
        weights["local_decoder.patch_embedding_projection.weight"] = (read, latent)
    tables = len(args["encoder_hash_byte_group_size"] or ())
    tables *= args["encoder_hash_byte_group_nb_functions"]
    for i in range(tables):
        name = f"encoder_hash_tok_embedding.{i}.weight"
        weights[name] = (args["encoder_hash_byte_group_vocab"], local)
    return weights


def entropy_model_weights(args: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a published entropy model, by name, with their shapes."""
    dim, heads, vocabulary = args["dim"], args["n_heads"], args["vocab_size"]
    weights: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (vocabulary, dim),
        "norm.weight": (dim,),
        "output.weight": (vocabulary, dim),
    }
    for i in range(args["n_layers"]):
        weights |= block_weights(f"layers.{i}", args, dim, heads, args.get("n_kv_heads") or heads)
    return weights


def shapes_in(directory: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights in ``model.safetensors``."""
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def check_published_blt(directory: Path) -> None:
    """Check that ``ByteLatentTransformer.from_pretrained`` and the loader of patcher and tokenizer
    find in a directory what they require."""
    config = json.loads((directory / "config.json").read_text())
    args = config.pop("args")
    assert config.keys() <= OURS
    assert not wrong_blt_arguments(args)
    assert shapes_in(directory) == blt_weights(args)
    if not (directory / "train_args.json").exists():
        return
    train = json.loads((directory / "train_args.json").read_text())
    assert train.keys() == {"data"} and train["data"].keys() == {"patcher_args", "tokenizer_args"}
    assert train["data"]["tokenizer_args"] == {"name": "blt"}
    patcher = train["data"]["patcher_args"]
    assert not wrong_arguments(patcher, PATCHER)
    assert patcher["patching_mode"] in PATCHER_MODES


def check_published_entropy_model(directory: Path) -> None:
    """As :func:`check_published_blt`, for ``LMTransformer.from_pretrained``."""
    config = json.loads((directory / "config.json").read_text())
    assert config.keys() == {"args"}
    args = config["args"]
    assert not wrong_arguments(args, ENTROPY_MODEL)
    told = {"attn_impl": "xformers", "attn_bias_type": "local_block_causal"}
    assert told.items() <= args.items() and args["sliding_window"] == 512 and args["eos_id"] == 2
    assert args["vocab_size"] > 0
    assert shapes_in(directory) == entropy_model_weights(args)
