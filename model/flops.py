"""FLOPs per byte, by the formulas of the BLT paper (arXiv 2412.09871, appendix on FLOPs).

Feed-forward layers are taken as ``8 dim**2`` multiplications, whatever their width; hash embeddings
and norms cost nothing. A multiplication and an addition are two FLOPs. Trainings are measured by
:mod:`model.training_flops`, which rounds nothing.
"""

from collections.abc import Iterator
from typing import NotRequired, TypedDict

from model.blt_config import BLT_SIZES, BLTConfig
from model.entropy_model_config import EntropyModelConfig

PAPER_SIZES = ("400m", "1b", "2b", "4b", "8b")
"""The sizes of ``BLT_SIZES`` that the paper has."""
TRAINING = 3
"""Forward and backward passes cost three times the forward pass."""


def transformer_flops(layers: int, dim: int, context: float, vocabulary: int = 0) -> float:
    """Forward FLOPs per position of a transformer.

    Args:
        context: positions that each one sees.
        vocabulary: size of the output layer; 0 for none.
    """
    feed_forward = 2 * layers * 2 * dim * 4 * dim
    return (
        feed_forward
        + _qkvo(layers, dim, 1)
        + _attention(layers, dim, context)
        + 2 * dim * vocabulary
    )


def _attention(layers: int, dim: int, context: float) -> float:
    return 4 * layers * dim * (context + 1) / 2


def _qkvo(layers: int, dim: int, keys_per_query: float) -> float:
    return (keys_per_query * 2 + 2) * 2 * layers * dim**2


def _cross_attention(layers: int, dim: int, context: float, keys_per_query: float) -> float:
    return _attention(layers, dim, context) + _qkvo(layers, dim, keys_per_query)


def entropy_model_flops(shape: EntropyModelConfig, context: int | None = None) -> float:
    """Forward FLOPs per byte of a transformer entropy model.

    Args:
        context: bytes of a sequence, where it may be shorter than the model's window.
    """
    seen = shape.window if context is None else min(shape.window, context)
    return transformer_flops(shape.n_layers, shape.dim, seen, shape.vocab_size)


def flops_by_part(config: BLTConfig, *, patch_size: float, context: int) -> dict[str, float]:
    """Forward FLOPs per byte (equation for BLT) of the ``latent`` transformer, the local
    ``encoder`` and ``decoder``, and ``cross_attention``; the entropy model is not among them.

    Args:
        patch_size: mean bytes per patch.
        context: bytes of a sequence.
    """
    window = config.local_attention_window_len or context
    k, dim = config.cross_attn_k, config.dim_local
    latent = transformer_flops(config.n_layers_global, config.dim_global, context / patch_size)
    gather = _cross_attention(config.encoder_crossings, dim, patch_size, patch_size / k)
    read = _cross_attention(config.decoder_crossings, dim, k, k / patch_size)
    return {
        "latent": latent / patch_size,
        "encoder": transformer_flops(config.n_layers_local_encoder, dim, window),
        "decoder": transformer_flops(config.n_layers_local_decoder, dim, window, config.vocab_size),
        "cross_attention": gather * k / patch_size + read,
    }


def flops_per_byte(
    config: BLTConfig, *, patch_size: float, context: int, training: bool = False
) -> float:
    """The sum of :func:`flops_by_part`.

    Args:
        training: forward and backward, three times the forward pass.
    """
    forward = sum(flops_by_part(config, patch_size=patch_size, context=context).values())
    return forward * (TRAINING if training else 1)


class PassFlops(TypedDict):
    """FLOPs per byte of a forward pass, and of training."""

    inference: float
    training: float


class SizeFlops(PassFlops):
    """FLOPs per byte of one of the paper's sizes: a row of a report."""

    size: str
    parts: dict[str, float]
    """The parts of a forward pass, as :func:`flops_by_part` returns them."""
    entropy_model: float
    bpe: NotRequired[PassFlops]
    """A transformer of the latent one's shape that runs once per BPE token."""


def flops_by_size(
    *,
    patch_size: float,
    context: int,
    entropy_model: float,
    bpe: tuple[float, int] | None = None,
) -> Iterator[SizeFlops]:
    """FLOPs per byte of each of the paper's sizes; nothing where there are no patches.

    Args:
        patch_size: mean bytes per patch; 0 where there are none.
        context: bytes of a sequence.
        entropy_model: forward FLOPs per byte of the entropy model: part of inference, while
            training takes patches as given.
        bpe: bytes per token and vocabulary of a BPE tokenizer to compare with.
    """
    if not patch_size:
        return
    for size in PAPER_SIZES:
        shape = BLT_SIZES[size]
        parts = flops_by_part(shape, patch_size=patch_size, context=context)
        forward = sum(parts.values())
        row: SizeFlops = {
            "size": size,
            "parts": parts,
            "entropy_model": entropy_model,
            "inference": forward + entropy_model,
            "training": TRAINING * forward,
        }
        if bpe is not None:
            row["bpe"] = _bpe_flops(shape, context, *bpe)
        yield row


def _bpe_flops(
    shape: BLTConfig, context: int, bytes_per_token: float, vocabulary: int
) -> PassFlops:
    tokens = context / bytes_per_token
    per_token = transformer_flops(shape.n_layers_global, shape.dim_global, tokens, vocabulary)
    forward = per_token / bytes_per_token
    return {"inference": forward, "training": TRAINING * forward}
