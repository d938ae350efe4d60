"""The interface of entropy models, and the batch form that they all share."""

from typing import Protocol

import torch
from torch import Tensor

from model.segments import cut_segments, pack_segments
from model.tokenizer import EOS_ID, PAD_ID, VOCAB_SIZE


class ByteEntropyModel(Protocol):
    """A model that predicts the next byte; it reads segments laid end to end."""

    @property
    def device(self) -> torch.device:
        """The device that holds the model and computes."""

    @property
    def context_length(self) -> int | None:
        """Tokens of the longest segment that the model can read; None if there is no limit."""

    @property
    def token_budget(self) -> int:
        """Tokens that a pack should hold on the model's device."""

    def entropies_packed(self, tokens_T: Tensor, lengths_S: Tensor) -> Tensor:
        """Entropy (nats, float32) after each token of segments laid end to end."""


def batch_entropies(
    model: ByteEntropyModel, tokens_BS: Tensor, *, reset_at_newline: bool = False
) -> Tensor:
    """The entropies of a batch; rows and documents are independent of one another.

    A document ends with its EOS. Context and positions start again after each document, and after
    every ``context_length`` tokens of one. Padding (-1) is not read, and its entropy is 0.

    Args:
        tokens_BS: token ids, right-padded with -1.
        reset_at_newline: context also starts again after each newline.

    Returns:
        ``[batch, seq]`` float32, nats.

    Raises:
        ValueError: an id is outside the vocabulary.
    """
    inside_BS = tokens_BS != PAD_ID
    tokens_T = tokens_BS[inside_BS]
    if len(tokens_T) and not 0 <= int(tokens_T.min()) <= int(tokens_T.max()) < VOCAB_SIZE:
        raise ValueError(f"tokens: ids must be -1 (padding) or 0 to {VOCAB_SIZE - 1}")
    last_T = tokens_T == EOS_ID
    row_lengths_B = inside_BS.sum(-1)
    last_T[row_lengths_B.cumsum(0)[row_lengths_B > 0] - 1] = True
    ends_D = last_T.nonzero()[:, 0] + 1
    lengths_S = cut_segments(
        tokens_T,
        torch.diff(ends_D, prepend=ends_D.new_zeros(1)),
        context_length=model.context_length,
        reset_at_newline=reset_at_newline,
    )
    h_T = torch.zeros(len(tokens_T), device=tokens_T.device)
    for segments, tokens in pack_segments(lengths_S, model.token_budget):
        h_T[tokens] = model.entropies_packed(tokens_T[tokens], lengths_S[segments]).to(h_T.device)
    h_BS = torch.zeros(tokens_BS.shape, device=tokens_BS.device)
    h_BS[inside_BS] = h_T
    return h_BS
