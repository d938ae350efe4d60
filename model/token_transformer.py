"""A transformer over the tokens of a tokenizer: the baseline that BLTs are compared with.

It has the blocks of all models here, full attention within a document, and the parameter names of
:class:`model.entropy_model.EntropyModel`. Token t of the tokenizer has the id t + 4, because the
ids below 4 mark structure as they do in byte models (:mod:`model.tokenizer`): a document is
``BOS + tokens + EOS``. The tokenizer's own special tokens are never made from text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.initialisation import InitStdFactor
from model.layers.attention import segment_attention
from model.layers.transformer import Stack, run_blocks
from model.segments import document_starts, since_start
from model.tokenizer import BOE_ID, BYTE_OFFSET, PAD_ID
from model.widths import StackShape

VOCAB_MULTIPLE = 128
"""The output layer has a multiple of so many rows, because matrix units multiply such fastest."""


def padded_vocab_size(tokens: int) -> int:
    """The ids of a model for a tokenizer with so many tokens.

    >>> [padded_vocab_size(tokens) for tokens in (252, 253, 128_256)]
    [256, 384, 128384]
    """
    return -(-(tokens + BYTE_OFFSET) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


@dataclass(frozen=True)
class TokenTransformerConfig(StackShape):
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


class TokenTransformer(Stack):
    """A causal transformer over tokens."""

    def __init__(self, config: TokenTransformerConfig):
        super().__init__(config)
        self.config = config

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
