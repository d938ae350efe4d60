"""The arguments of the published BLTs; the names of their weights are ours.

The hub's layout holds the arguments in ``config.json`` under the key ``args``, consolidated
directories in ``params.json`` under ``model``. :mod:`model.checkpoints.blt` reads and writes the
files.
"""

from dataclasses import dataclass, replace
from typing import TypedDict

from model.blt_config import PARTS, BLTConfig
from model.checkpoints.files import (
    CheckpointError,
    JsonObject,
    differences,
    published_initialisation,
    refuse_unknown,
)
from model.initialisation import INITIALISATION
from model.patcher import Patcher
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
    "hash_across_documents",  # ours alone
)
"""Published arguments that :class:`BLTConfig` calls the same."""

UNSEEN = ("n_heads_global", "n_heads_local_encoder", "n_heads_local_decoder", "cross_attn_nheads")
"""The arguments among them that weights' shapes do not tell and that differ between models."""
MAY_BE_NONE = ("local_attention_window_len", "n_kv_heads_global")
"""The arguments among them for which None is a value; for others it means the default."""
PLAIN_MODES = ("space", "byte", "bpe")
"""Published patching modes that are rules of ours by the same name, without settings."""

FIXED_ARGS: dict[str, tuple[object, ...]] = {
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
"""Published arguments of which we support the values that the published weights use."""

IGNORED_ARGS = {
    # Shapes, which the weights tell themselves, and lengths, which have no limit here.
    *("dim", "dim_token", "dim_token_emb", "dim_patch_emb", "head_dim", "n_heads", "n_kv_heads"),
    *("n_layers", "max_encoder_seq_length", "max_length", "max_seqlen", "output_size"),
    # How it was trained and run.
    *("alpha_depth", "attn_bias_type", "attn_impl", "attn_to_keep", "block_attention"),
    *("cross_attn_use_flex_attention", "custom_bwd", "data_loader_patching", "efficient_attn"),
    *("full_logging_n_layers", "full_logging_n_heads", "fuse_sequence_parallel"),
    *("init_use_depth", "init_use_gaussian", "layer_ckpt"),
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


@dataclass(frozen=True)
class PublishedPatching:
    """How the published code says that data is patched."""

    mode: str | None
    threshold: float | None
    threshold_add: float | None
    monotonicity: bool
    patch_size: float | None
    max_patch_length: int | None

    @classmethod
    def of_data(cls, args: JsonObject) -> "PublishedPatching":
        """From the arguments of the data's patcher."""
        return cls(
            args.get("patching_mode"),
            args.get("threshold"),
            args.get("threshold_add"),
            bool(args.get("monotonicity")),
            args.get("patch_size"),
            args.get("max_patch_length"),
        )

    @classmethod
    def of_model(cls, args: JsonObject) -> "PublishedPatching":
        """From the arguments of a model, which call the thresholds something else."""
        named = {"threshold": "patching_threshold", "threshold_add": "patching_threshold_add"}
        return cls.of_data({**args, **{ours: args.get(theirs) for ours, theirs in named.items()}})

    def patcher(self) -> Patcher | None:
        """The rule; None where there is none, or one that is not ours."""
        limit = self.max_patch_length
        if self.mode in PLAIN_MODES:
            return Patcher(rule=self.mode, max_patch_length=limit)
        if self.mode == "static" and self.patch_size:
            return Patcher(rule="static", patch_size=self.patch_size, max_patch_length=limit)
        if self.mode != "entropy" or self.threshold is None:
            return None
        if self.monotonicity:
            return Patcher(self.threshold, "monotonic", max_patch_length=limit, published=True)
        if (rise := self.threshold_add) is not None:
            return Patcher(self.threshold, "combined", rise, max_patch_length=limit, published=True)
        return Patcher(self.threshold, max_patch_length=limit)


class PatchingArgs(TypedDict, total=False):
    """The arguments of a published model that describe its boundary rule."""

    patching_mode: str
    patching_threshold: float | None
    patching_threshold_add: float | None
    monotonicity: bool
    patch_size: float | None
    max_patch_length: int | None


def from_published_args(args: JsonObject, patching: JsonObject) -> BLTConfig:
    """The shape that published arguments describe; each argument is used, known to be harmless, or
    refused.

    Args:
        patching: arguments with which the training data was patched, which count instead of the
            model's; empty if they are not known.

    Raises:
        ValueError: an argument's value is not supported; names it.
    """
    of_data = PublishedPatching.of_data(patching) if patching else PublishedPatching.of_model(args)
    patcher = of_data.patcher()
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
    hidden: JsonObject = {
        f"hidden_dim_{part}": default_hidden_dim(
            args["dim_global"] if part == "global" else dim_local, multiplier, multiple_of
        )
        for part in PARTS
    }
    windows: JsonObject = {
        name: args.pop(name, None) or 1
        for name in ("cross_attn_window_encoder", "cross_attn_window_decoder")
    }
    initialisation = published_initialisation(args)
    sizes = args.pop("encoder_hash_byte_group_size") or ()  # None: no hash embeddings
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
        **initialisation,
    )


def to_published_args(config: BLTConfig) -> JsonObject:
    """The published arguments that describe a shape.

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
        "dim_local_encoder": config.dim_local,
        "dim_local_decoder": config.dim_local,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple_of,
        **{name: getattr(config, name) for name in INITIALISATION},
        "encoder_hash_byte_group_size": list(config.encoder_hash_byte_group_size) or None,
        **windows,
        **_patching_args(config.patcher),
    }
    if not config.hash_across_documents:  # other readers know no such argument
        del args["hash_across_documents"]
    # config.json holds these beside the arguments.
    alone = replace(config, patch_provenance=(), latent_origin=None)
    for name, (value, read) in differences(alone, from_published_args(args, {})).items():
        raise CheckpointError(
            f"the published layout cannot hold this model; {name}: {value} would be read as {read}"
        )
    return args


def _patching_args(patcher: Patcher | None) -> PatchingArgs:
    """The arguments that come nearest to a rule: where they would be read as another one, the
    caller refuses the model."""
    if patcher is None:
        return {}
    return {
        "patching_mode": "entropy" if patcher.has_threshold else patcher.rule,
        "patching_threshold": patcher.threshold,
        "patching_threshold_add": patcher.threshold_add,
        "monotonicity": patcher.compares == "rise",
        "patch_size": patcher.patch_size,
        "max_patch_length": patcher.max_patch_length,
    }
