"""A transformer over the tokens of a tokenizer: the baseline that BLTs are compared with.

It has the blocks of all models here, full attention within a document, and the parameter names of
:class:`model.entropy_model.EntropyModel`. Token t of the tokenizer has the id t + 4, because the
ids below 4 mark structure as they do in byte models (:mod:`model.tokenizer`): a document is
``BOS + tokens + EOS``. The tokenizer's own special tokens are never made from text.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.initialisation import InitStdFactor, check_initialisation
from model.layers.attention import RotaryAngles, segment_attention
from model.layers.initializers import Initializer, init_weights, initializers
from model.layers.transformer import Block, run_blocks
from model.segments import document_starts, since_start
from model.tokenizer import BOE_ID, BYTE_OFFSET, PAD_ID, VOCAB_SIZE
from model.widths import BlockShape, check_heads, check_numbers, default_hidden_dim

VOCAB_MULTIPLE = 128
"""The output layer has a multiple of so many rows, because matrix units multiply such fastest."""


def padded_vocab_size(tokens: int) -> int:
    """The ids of a model for a tokenizer with so many tokens.

    >>> [padded_vocab_size(tokens) for tokens in (252, 253, 128_256)]
    [256, 384, 128384]
    """
    return -(-(tokens + BYTE_OFFSET) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class TokenTransformerConfig:
    """The shape of a token transformer; the defaults are those of the published 1B BLT's latent
    transformer, and the vocabulary of Llama 3.

    Raises:
        ValueError: values do not fit together; the message names one.
    """

    dim: int = 2048
    """Width of the model."""
    n_layers: int = 25
    """Layers."""
    n_heads: int = 16
    """Attention heads."""
    n_kv_heads: int | None = None
    """Key and value heads; as many as ``n_heads`` by default."""
    hidden_dim: int | None = None
    """Width of the feed-forward layers; from ``dim`` by default."""
    rope_theta: float = 500_000.0
    """Base of the rotary positions."""
    norm_eps: float = 1e-5
    """Added to the mean square that norms divide by."""
    vocab_size: int = padded_vocab_size(128_256)
    """Token ids: 4 special ones and the tokenizer's, filled up to a multiple of 128. The trainer
    takes it from the tokenizer."""
    tokenizer: str | None = None
    """The sha256 of the ``tokenizer.json`` that the weights were trained with, if it is known."""
    init_std_factor: InitStdFactor = "disabled"
    """The divisor of initial deviations: see :func:`model.initialisation.std_divisor`."""
    init_base_std: float | None = None
    """The deviation of the initial weights of all blocks, instead of the one that follows from
    their widths and the factor."""

    FOLLOWS: ClassVar[Mapping[str, str]] = {"n_kv_heads": "n_heads", "hidden_dim": "dim"}
    """Values that follow from another one where they are None; see :func:`model.widths.resized`."""

    def __post_init__(self) -> None:
        check_initialisation(self.init_std_factor, self.init_base_std)
        check_numbers(asdict(self))
        if self.n_kv_heads is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if self.hidden_dim is None:
            object.__setattr__(self, "hidden_dim", default_hidden_dim(self.dim))
        shape = self.block_shape
        check_heads(("n_heads", "n_kv_heads"), self.dim, self.n_heads, shape.n_kv_heads)
        if self.vocab_size < VOCAB_SIZE:
            raise ValueError(
                f"vocab_size: a tokenizer of bytes needs {VOCAB_SIZE}, got {self.vocab_size}"
            )

    @property
    def block_shape(self) -> BlockShape:
        """The shape of a layer."""
        assert self.n_kv_heads is not None and self.hidden_dim is not None
        return BlockShape(self.dim, self.n_heads, self.n_kv_heads, self.hidden_dim, self.norm_eps)


class TokenTransformer(nn.Module):
    """A causal transformer over tokens."""

    def __init__(self, config: TokenTransformerConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(*config.block_shape) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.rotary = RotaryAngles(config.dim // config.n_heads, config.rope_theta)

    def init_weights(self) -> None:
        """Fill the model with weights to begin training with."""
        init_weights(self, self.initializers())

    def initializers(self) -> dict[str, Initializer]:
        """The initializer of each parameter, by name."""
        return initializers(self, self.config.init_std_factor, self.config.init_base_std)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Logits of the token after each token. Documents, which end with their EOS, and rows do
        not see one another.

        Args:
            tokens_BS: ids, right-padded with -1.

        Returns:
            ``[batch, seq, vocab_size]`` float32; the logits of padding are meaningless.
        """
        position_T = since_start(document_starts(tokens_BS))
        attend = segment_attention(position_T, None)
        tokens_T = tokens_BS.masked_fill(tokens_BS == PAD_ID, BOE_ID).flatten()
        x_TD = self.tok_embeddings(tokens_T)
        attends = [attend] * len(self.layers)
        x_TD = run_blocks(self.layers, x_TD, self.rotary(position_T), attends)
        logits_TV: Tensor = self.output(self.norm(x_TD))
        return logits_TV.float().view(*tokens_BS.shape, -1)

    @property
    def device(self) -> torch.device:
        """The device that holds the model and computes."""
        return self.output.weight.device
