"""FLOPs per byte of training, one formula for all kinds of models: what PyTorch's counter counts.

:mod:`model.flops` has the paper's formulas, which round: feed-forward layers as ``8 dim**2``
whatever their width, a window as half full. Models of different kinds can be compared at equal cost
only by what they do, so that here every matrix product has its own widths, and attention costs the
pairs that it sees: a mask hides the others, and a fused kernel does not compute them. Norms, rotary
positions, softmax, hash look-ups and the optimizer are left out. A document is taken to fill its
row. A multiplication and an addition are two FLOPs.
"""

from model.blt_config import BLTConfig
from model.entropy_model_config import EntropyModelConfig
from model.flops import TRAINING
from model.token_transformer import TokenTransformerConfig
from model.widths import BlockShape


def training_flops(
    shape: BLTConfig | EntropyModelConfig | TokenTransformerConfig,
    *,
    patch_size: float,
    context: float,
) -> dict[str, float]:
    """FLOPs per byte, forward and backward, by part of the model.

    Args:
        patch_size: mean bytes per patch, or per token of a tokenizer; an entropy model, which reads
            bytes, does not depend on it.
        context: positions of a row: bytes, or tokens of a tokenizer.
    """
    if isinstance(shape, BLTConfig):
        parts = _blt_flops(shape, patch_size, context)
    elif isinstance(shape, EntropyModelConfig):
        segment = min(context, shape.context_length)
        block = shape.block_shape
        layers = shape.n_layers * _block_flops(block, keys_seen(segment, shape.window))
        parts = {"entropy_model": layers + _product(shape.dim, shape.vocab_size)}
    else:
        layers = shape.n_layers * _block_flops(shape.block_shape, keys_seen(context))
        per_token = layers + _product(shape.dim, shape.vocab_size)
        parts = {"token_transformer": per_token / patch_size}
    return {part: TRAINING * forward for part, forward in parts.items()}


def keys_seen(positions: float, window: float | None = None) -> float:
    """The mean number of keys that a query sees in a causal segment.

    >>> keys_seen(4), keys_seen(4, window=2)  # 1, 2, 3 and 4 keys; 1, 2, 2 and 2
    (2.5, 1.75)
    """
    if window is None or window >= positions:
        return (positions + 1) / 2
    return window - window * (window - 1) / (2 * positions)


def _product(width: float, out: float) -> float:
    """A vector times a matrix."""
    return 2 * width * out


def _block_flops(block: BlockShape, keys: float) -> float:
    """One position of a transformer block whose queries see so many keys."""
    dim = block.dim
    shared = dim // block.n_heads * block.n_kv_heads
    projections = 2 * _product(dim, dim) + 2 * _product(dim, shared)
    attention = 2 * _product(dim, keys)  # scores, and the sum of values
    return projections + attention + 3 * _product(dim, block.hidden_dim)


def _blt_flops(config: BLTConfig, patch_size: float, context: float) -> dict[str, float]:
    """Forward FLOPs per byte."""
    dim, latent_dim, vectors = config.dim_local, config.dim_global, config.patch_vectors
    window = config.local_attention_window_len
    keys = keys_seen(context, window)
    encoder = config.n_layers_local_encoder * _block_flops(
        config.block_shape("local_encoder"), keys
    )
    if config.cross_attn_encoder:  # the pooled bytes of a patch become its vectors
        encoder += _product(dim, vectors * dim) / patch_size
    latent = config.n_layers_global * _block_flops(
        config.block_shape("global"), keys_seen(context / patch_size)
    )
    if vectors * dim != latent_dim:
        latent += _product(vectors * dim, latent_dim)
    decoder = config.n_layers_local_decoder * _block_flops(
        config.block_shape("local_decoder"), keys
    )
    decoder += _product(dim, config.vocab_size)
    if config.projects_equal_widths:
        decoder += _product(latent_dim, config.read_vectors * dim) / patch_size
    return {
        "latent": latent / patch_size,
        "encoder": encoder,
        "decoder": decoder,
        "cross_attention": _gather_flops(config, patch_size) + _read_flops(config, patch_size),
    }


def _gather_flops(config: BLTConfig, patch_size: float) -> float:
    """Patches gather from bytes: k queries per patch, a key and a value per byte."""
    dim, k, heads = config.dim_local, config.cross_attn_k, config.cross_attn_nheads
    width = dim // heads * heads
    shared = dim // heads * config.cross_attn_n_kv_heads_encoder
    of_patch = k * (_product(dim, width) + _product(width, dim))
    pairs = config.cross_attn_window_encoder * k
    of_byte = 2 * _product(dim, shared) + pairs * 2 * _product(width, 1)
    return config.encoder_crossings * (of_patch / patch_size + of_byte)


def _read_flops(config: BLTConfig, patch_size: float) -> float:
    """Bytes read from patches: a query per byte, k keys and values per patch."""
    dim, k, heads = config.dim_local, config.cross_attn_k, config.cross_attn_nheads
    width = dim // heads * heads
    shared = dim // heads * config.cross_attn_n_kv_heads_decoder
    of_patch = k * 2 * _product(dim, shared)
    pairs = config.cross_attn_window_decoder * k
    of_byte = _product(dim, width) + _product(width, dim) + pairs * 2 * _product(width, 1)
    return config.decoder_crossings * (of_patch / patch_size + of_byte)
