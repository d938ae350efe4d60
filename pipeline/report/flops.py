"""What patches cost: FLOPs a byte of the paper's models, beside a model on BPE tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.blt_config import BLT_SIZES, flops_by_part, transformer_flops

SIZES = ("400m", "1b", "2b", "4b", "8b")
"""The paper's, of BLT_SIZES."""
TRAINING = 3
"""Forward and backward passes cost three times the forward pass."""


@dataclass(frozen=True)
class TokenizerFigures:
    """A BPE tokenizer on a sample of text."""

    name: str
    vocabulary: int
    bytes_per_token: float
    sample_bytes: int


def flops(
    patch_size: float, entropy_model: float, context: int, tokenizer: TokenizerFigures | None
) -> Iterator[dict[str, Any]]:
    """FLOPs a byte by the paper's formulas (appendix on FLOPs), for each of its sizes.

    ``inference`` is a forward pass with the entropy model's; ``training`` takes patches as given.
    ``bpe``: a transformer of the latent one's shape that runs once a token of ``tokenizer``.
    """
    if not patch_size:
        return
    for size in SIZES:
        shape = BLT_SIZES[size]
        parts = flops_by_part(shape, patch_size=patch_size, context=context)
        forward = sum(parts.values())
        row: dict[str, Any] = {
            "size": size,
            "parts": parts,
            "entropy_model": entropy_model,
            "inference": forward + entropy_model,
            "training": TRAINING * forward,
        }
        if tokenizer is not None:
            tokens = context / tokenizer.bytes_per_token
            layers, dim = shape.n_layers_global, shape.dim_global
            token = transformer_flops(layers, dim, tokens, tokenizer.vocabulary)
            bpe = token / tokenizer.bytes_per_token
            row["bpe"] = {"inference": bpe, "training": TRAINING * bpe}
        yield row
