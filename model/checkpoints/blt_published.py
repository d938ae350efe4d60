"""The arguments of the published BLTs; the names of their weights are ours.

The hub's layout holds the arguments in ``config.json`` under the key ``args``, consolidated
directories in ``params.json`` under ``model``. :mod:`model.checkpoints.blt` reads and writes the
files.
"""

from dataclasses import replace
from typing import Any

from model.blt_config import PARTS, ROW_READING, BLTConfig
from model.checkpoints.files import (
    CheckpointError,
    JsonObject,
    differences,
    published_initialisation,
    refuse_unknown,
)
from model.checkpoints.published_patching import PublishedPatching, published_patching_args
from model.initialisation import INITIALISATION
from model.tokenizer import EOS_ID
from model.widths import default_hidden_dim, hidden_dim_arguments

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
"""The arguments among them that weights' shapes do not tell and that differ between models."""
MAY_BE_NONE = ("local_attention_window_len", "n_kv_heads_global")
"""The arguments among them for which None is a value; for others it means the default."""
AS_PUBLISHED: JsonObject = dict.fromkeys(ROW_READING, True)
"""How the published code reads rows."""
LONGEST_ROW = 24_576
"""The most bytes, and therefore patches, for which the published code is told to make rotary
positions: as many as the local models of the published 1B have. Ours have no limit."""

FIXED_ARGS: dict[str, tuple[object, ...]] = {
    "architecture": ("vanilla",),
    "cross_attn_decoder": (True, False),
    "cross_attn_encoder": (True, False),
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
"""Published arguments of which we support a few values; the first is meant where there is none."""

IGNORED_ARGS = {
    # Shapes, which the weights tell themselves, and lengths, which have no limit here.
    *("dim", "dim_token", "dim_token_emb", "dim_patch_emb", "head_dim", "n_heads"),
    *("n_layers", "max_encoder_seq_length", "max_length", "max_seqlen", "output_size"),
    # How it was trained and run.
    *("alpha_depth", "attn_bias_type", "attn_impl", "attn_to_keep", "block_attention"),
    *("cross_attn_use_flex_attention", "custom_bwd", "data_loader_patching", "efficient_attn"),
    *("full_logging_n_layers", "full_logging_n_heads", "fuse_sequence_parallel"),
    *("init_device", "init_dtype", "init_use_depth", "init_use_gaussian", "layer_ckpt"),
    *("log_patch_lengths", "loss_parallel", "pad_to_max_length", "recompute_attn"),
    *("recompute_fc1_out", "recompute_fc3_out", "rope_use_fp32_in_outer_product", "seed"),
    *("sequence_parallel", "share_encoder_decoder_emb", "sliding_window", "use_fsdp"),
    # Patching, which is done outside of the model; PublishedPatching reads the rule.
    *("entropy_model_checkpoint_dir", "entropy_model_is_ngram_model", "max_patch_length"),
    *("monotonicity", "patch_in_forward", "patch_size", "patching_batch_size", "patching_device"),
    *("patching_mode", "patching_threshold", "patching_threshold_add", "patching_thresholds_str"),
    *("realtime_patching", "tokenize_with_bpe_delimiter"),
    # Sizes of tables of plain n-grams, which encoder_enable_byte_ngrams would switch on.
    *("encoder_enable_byte_group_hash", "encoder_ngram_table_dir", "encoder_ngram_to_size_str"),
    "ngram_vocab_sizes",
}
"""Published arguments that don't change what the weights compute."""


def from_published_args(args: JsonObject, patching: JsonObject) -> BLTConfig:
    """The shape that published arguments describe, which reads rows as the published code does;
    each argument is used, known to be harmless, or refused.

    Args:
        patching: arguments with which the training data was patched, which count instead of the
            model's; empty if they are not known.

    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    of_data = PublishedPatching.of_data(patching) if patching else PublishedPatching.of_model(args)
    patcher = of_data.patcher()
    # The published code builds no model without the longest row. Earlier releases of this project
    # wrote none: their models read rows in our own way and project all latent states.
    ours = "max_encoder_seq_length" not in args
    reading = dict.fromkeys(ROW_READING, False) if ours else AS_PUBLISHED
    args = {name: value for name, value in args.items() if name not in IGNORED_ARGS}
    crossing = _checked(args)
    dim_local = _local_width(args)
    hidden = _hidden_dims(args, dim_local)
    windows: JsonObject = {
        name: args.pop(name, None) or 1
        for name in ("cross_attn_window_encoder", "cross_attn_window_decoder")
    }
    initialisation = published_initialisation(args)
    sizes: Any = args.pop("encoder_hash_byte_group_size", None) or ()  # None: no hash embeddings
    if isinstance(sizes, str):
        sizes = [int(size) for size in sizes.split(",") if size]
    across = {name: args.pop(name) for name in ROW_READING if name in args}  # earlier releases'
    for name in UNSEEN:
        if not args.get(name):
            raise ValueError(f"argument {name} is missing")
    used = {name: args.pop(name) for name in SAME_NAMES if name in args}
    used = {name: v for name, v in used.items() if v is not None or name in MAY_BE_NONE}
    refuse_unknown(args)
    return BLTConfig(
        dim_local=dim_local,
        projects_equal_widths=ours,
        encoder_hash_byte_group_size=sizes,
        patcher=patcher,
        **crossing,
        **hidden,
        **windows,
        **used,
        **initialisation,
        **{**reading, **across},
    )


def _checked(args: JsonObject) -> JsonObject:
    """Take the arguments out that have a few values which we support; returns those that
    :class:`BLTConfig` has.

    Raises:
        ValueError: one has another value; names it.
    """
    values: JsonObject = {}
    for name, known in FIXED_ARGS.items():
        values[name] = args.pop(name, known[0])
        if values[name] not in known:
            raise ValueError(f"argument {name}={values[name]!r} is not supported")
    pooling = values["downsampling_by_pooling"]
    if not values["cross_attn_encoder"] and pooling != "max":
        raise ValueError(
            f"argument cross_attn_encoder=False is not supported with "
            f"downsampling_by_pooling={pooling!r}: ours pools with 'max'"
        )
    return {name: values[name] for name in ("cross_attn_encoder", "cross_attn_decoder")}


def _local_width(args: JsonObject) -> int:
    """Take the width of both local models out.

    Raises:
        ValueError: they have different ones, or groups of heads of which cross attention has none.
    """
    encoder, decoder = args.pop("dim_local_encoder"), args.pop("dim_local_decoder")
    if encoder != decoder:
        raise ValueError(
            f"argument dim_local_decoder={decoder} is not supported: the encoder is {encoder} wide"
        )
    kv_heads = args.pop("n_kv_heads", None)
    heads = {args.get("n_heads_local_encoder"), args.get("n_heads_local_decoder")}
    if kv_heads is not None and heads != {kv_heads}:
        raise ValueError(
            f"argument n_kv_heads={kv_heads} is not supported: there cross attention would not "
            "group its heads as the local models do"
        )
    width: int = encoder
    return width


def _hidden_dims(args: JsonObject, dim_local: int) -> JsonObject:
    """Take the arguments of the feed-forward layers out; returns their widths."""
    multiplier, multiple_of = args.pop("ffn_dim_multiplier", None), args.pop("multiple_of", 256)
    widths = {part: args["dim_global"] if part == "global" else dim_local for part in PARTS}
    return {
        f"hidden_dim_{part}": default_hidden_dim(width, multiplier, multiple_of)
        for part, width in widths.items()
    }


def to_published_args(config: BLTConfig) -> JsonObject:
    """The published arguments that describe a shape, as the published code requires them
    (docs/published-format.md), but for how it reads rows.

    Raises:
        CheckpointError: the published arguments cannot say what the model is; says why.
    """
    multiplier, multiple_of = hidden_dim_arguments(
        {(config.dim_of(part), getattr(config, f"hidden_dim_{part}")) for part in PARTS}
    )
    windows = {
        name: getattr(config, name) if getattr(config, name) > 1 else None
        for name in ("cross_attn_window_encoder", "cross_attn_window_decoder")
    }
    args: JsonObject = {
        **{name: values[0] for name, values in FIXED_ARGS.items()},
        **{name: getattr(config, name) for name in SAME_NAMES},
        "cross_attn_encoder": config.cross_attn_encoder,
        "cross_attn_decoder": config.cross_attn_decoder,
        "dim_local_encoder": config.dim_local,
        "dim_local_decoder": config.dim_local,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        **{name: getattr(config, name) for name in INITIALISATION},
        "encoder_hash_byte_group_size": list(config.encoder_hash_byte_group_size) or None,
        "max_encoder_seq_length": LONGEST_ROW,
        "max_seqlen": LONGEST_ROW,
        # The class's own default runs no local model.
        "attn_impl": "xformers",
        "attn_bias_type": "block_causal",
        **windows,
        **published_patching_args(config.patcher),
    }
    for wrong, what in (
        (
            config.local_attention_window_len is None,
            "local_attention_window_len: the published local models have a window",
        ),
        (
            config.dim_global == config.dim_local and config.read_vectors > 1,
            "cross_attn_k: where dim_global equals dim_local, bytes read one vector of a patch",
        ),
    ):
        if wrong:
            raise CheckpointError(f"the published layout cannot hold this model; {what}")
    # The file holds these beside the arguments.
    alone = replace(config, patch_provenance=(), latent_origin=None, **AS_PUBLISHED)
    for name, (value, read) in differences(alone, from_published_args(args, {})).items():
        raise CheckpointError(
            f"the published layout cannot hold this model; {name}: {value} would be read as {read}"
        )
    return args
