"""The models that BLTs are compared with, as torchtitan's models: transformers over the tokens of a
tokenizer, or over bytes.

Their shapes are those of the latent transformers of the BLTs of the same size: a token, or a byte,
costs what a patch costs there. Flags of the shape fit their costs to others'.
"""

from dataclasses import dataclass
from typing import Any

from torchtitan.protocols.model_spec import ModelSpec

from model.blt_config import BLT_SIZES
from model.entropy_model_config import EntropyModelConfig
from model.token_transformer import TokenTransformer, TokenTransformerConfig
from train.model_spec import TrainedEntropyModel, TrainedModel, plain_spec


def _latent(size: str) -> dict[str, Any]:
    blt = BLT_SIZES[size]
    return {"dim": blt.dim_global, "n_layers": blt.n_layers_global, "n_heads": blt.n_heads_global}


BASELINE_SIZES = ("debug", "400m", "1b")
"""The sizes of ``BLT_SIZES`` that baselines have."""
CONTEXT = 8192
"""Bytes that a byte transformer sees: those of the rows of BLTs."""
TOKEN_SIZES = {size: TokenTransformerConfig(**_latent(size)) for size in BASELINE_SIZES}
"""Shapes of token transformers. The vocabulary is replaced by that of the tokenizer."""
BYTE_SIZES = {
    size: EntropyModelConfig(
        **_latent(size), window=CONTEXT, context_length=CONTEXT, rope_theta=500_000.0
    )
    for size in BASELINE_SIZES
}
"""Shapes of byte transformers: entropy models that see the whole row."""


class TrainedTokenTransformer(TokenTransformer, TrainedModel):
    """The token transformer as one of torchtitan's models."""

    @dataclass(kw_only=True, slots=True)
    class Config(TrainedModel.Config):
        shape: TokenTransformerConfig

    def __init__(self, config: Config):
        super().__init__(config.shape)

    init_weights = TrainedModel.init_weights


def byte_spec(size: str) -> ModelSpec:
    """A byte transformer of one of :data:`BYTE_SIZES`."""
    return plain_spec("bytes", size, TrainedEntropyModel.Config(shape=BYTE_SIZES[size]))


def token_spec(size: str) -> ModelSpec:
    """A token transformer of one of :data:`TOKEN_SIZES`."""
    return plain_spec("tokens", size, TrainedTokenTransformer.Config(shape=TOKEN_SIZES[size]))
