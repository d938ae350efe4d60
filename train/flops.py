"""Training FLOPs for each byte, by the paper's formulas (arXiv 2412.09871, appendix on FLOPs)."""

from model import BLTConfig, EntropyModelConfig
from model.blt_config import flops_by_part, transformer_flops


def training_flops(
    shape: BLTConfig | EntropyModelConfig, *, patch_size: float, context: int
) -> dict[str, float]:
    """FLOPs for each byte, forward and backward, by part of the model.

    Args:
        patch_size: mean bytes a patch; an entropy model has none to depend on.
        context: bytes of a row.
    """
    if isinstance(shape, BLTConfig):
        parts = flops_by_part(shape, patch_size=patch_size, context=context)
    else:
        seen = min(shape.window, context)
        flops = transformer_flops(shape.n_layers, shape.dim, seen, shape.vocab_size)
        parts = {"entropy_model": flops}
    return {part: 3 * forward for part, forward in parts.items()}
