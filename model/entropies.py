"""The interface of entropy models, and what they share: their packs, and the batch form."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from model.segments import cut_segments, fill_packs, pack_segments, token_positions
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

    @property
    def pack_sizes(self) -> tuple[int, ...]:
        """The sizes that packs are filled up to on the model's device, ascending; none where each
        pack is as long as its tokens."""

    def entropies_packed(self, tokens_T: Tensor, lengths_S: Tensor) -> Tensor:
        """Entropy (nats, float32) after each token of segments laid end to end."""


def segment_entropies(
    model: ByteEntropyModel,
    tokens_T: Tensor,
    lengths_S: Tensor,
    report: Callable[[int], None] = lambda tokens: None,
) -> Tensor:
    """The entropies (nats, float32, on the model's device) after each token of segments laid end to
    end, which are scored in packs that suit the device.

    A GPU is not waited for: packs are only queued there. Which segments share a pack follows from
    their lengths alone.

    Args:
        tokens_T: token ids.
        lengths_S: tokens of each segment.
        report: called with the tokens of each pack as it is handed to the device.
    """
    lengths_S = lengths_S.cpu()
    tokens_T = queue_copy(tokens_T, model.device)
    h_T = torch.empty(len(tokens_T), device=model.device)
    if not model.pack_sizes:
        for segments, tokens in pack_segments(lengths_S, model.token_budget):
            h_T[tokens] = model.entropies_packed(tokens_T[tokens], lengths_S[segments])
            report(tokens.stop - tokens.start)
        return h_T
    start_S = lengths_S.cumsum(0) - lengths_S
    for numbers in fill_packs(lengths_S, model.pack_sizes):
        lengths_P = lengths_S[numbers]
        size = int(lengths_P.sum())
        begin_P, length_P = (queue_copy(x, model.device) for x in (start_S[numbers], lengths_P))
        place_T = torch.repeat_interleave(begin_P, length_P, output_size=size)
        place_T += token_positions(length_P, size)
        h_T[place_T] = model.entropies_packed(tokens_T[place_T], lengths_P)
        report(size)
    return h_T


def queue_copy(values: Tensor, device: torch.device) -> Tensor:
    """The values on a device. A GPU copies them from pinned memory when their turn comes, while
    the host goes on; from other memory it would have to be waited for."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


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
    h_BS = torch.zeros(tokens_BS.shape, device=tokens_BS.device)
    h_BS[inside_BS] = segment_entropies(model, tokens_T, lengths_S).to(h_BS.device)
    return h_BS
