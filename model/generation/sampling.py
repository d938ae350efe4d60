"""Choosing the next token from logits."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.tokenizer import BOE_ID, BYTE_OFFSET, EOS_ID, VOCAB_SIZE

BROKEN_ID = BOE_ID
"""The id that is chosen where logits are no numbers. It never follows in text, and is the first:
of several that are no numbers, the first counts as the largest."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        ValueError: a value is out of range; names it.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the k likeliest tokens; of equally likely ones those with the lowest ids."""
    top_p: float | None = None
    """Only the likeliest tokens that together have at least this probability."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be more than 0 and at most 1, got {self.top_p}")

    def choose(self, logits_BV: Tensor, noise_BV: Tensor) -> Tensor:
        """The next token of each row, ``[batch]`` int64, without waiting for a device.

        To divide probabilities by exponential noise and take the largest draws from them: that is
        how torch.multinomial draws, so that the same generators give the same tokens.

        Args:
            noise_BV: from :func:`draw_noise`; not used where the temperature is 0.
        """
        logits_BV = allowed(logits_BV)
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        p_BV = self.probabilities(logits_BV)
        return (p_BV / noise_BV).masked_fill(p_BV == 0, -1).argmax(-1)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """The distributions to draw from, for a temperature above 0; each row sums to 1."""
        # Differences, in double precision: the smallest temperature must not overflow.
        behind_BV = logits_BV.double() - logits_BV.double().amax(-1, keepdim=True)
        behind_BV = behind_BV / self.temperature
        if self.top_k is None and self.top_p is None:
            return behind_BV.softmax(-1).float()
        # Equal logits, as bfloat16 often gives, stay in the order of their ids, as argmax has it.
        ordered_BV, token_BV = behind_BV.sort(dim=-1, descending=True, stable=True)
        p_BV = ordered_BV.softmax(-1).float()
        if self.top_k is not None:
            p_BV[:, self.top_k :].fill_(0)
        if self.top_p is not None and self.top_p < 1:  # sums that are rounded reach 1 too early
            p_BV /= p_BV.sum(-1, keepdim=True)
            # A token stays if the likelier ones do not reach the sum without it.
            p_BV.masked_fill_(p_BV.cumsum(-1) - p_BV >= self.top_p, 0)
        p_BV /= p_BV.sum(-1, keepdim=True)
        return torch.zeros_like(p_BV).scatter(-1, token_BV, p_BV)


class Noise:
    """The noise that the next token of each row is drawn with, and that of the token after it: a GPU
    works meanwhile."""

    def __init__(self, batch: int, vocab_size: int):
        self._now_BV, self._next_BV = (torch.ones(batch, vocab_size) for _ in range(2))

    @property
    def now(self) -> np.ndarray:
        """For the next token, ``[batch, vocab_size]`` float32."""
        values_BV: np.ndarray = self._now_BV.numpy()
        return values_BV

    def begin(self, row: int, generator: torch.Generator) -> None:
        """Begin a text in a row."""
        for noise_BV in (self._now_BV, self._next_BV):
            draw_noise(noise_BV[row], generator)

    def turn(self) -> np.ndarray:
        """Go on to the next token. Returns :attr:`now`."""
        self._now_BV, self._next_BV = self._next_BV, self._now_BV
        return self.now

    def draw(self, generators: Iterable[torch.Generator | None]) -> None:
        """Draw what :meth:`turn` gives next.

        Args:
            generators: that of each row; None where no text is written.
        """
        for noise_V, generator in zip(self._next_BV.unbind(), generators, strict=True):
            if generator is not None:
                draw_noise(noise_V, generator)


def draw_noise(noise_V: Tensor, generator: torch.Generator) -> None:
    """Fill a row of noise for one draw; on the CPU, so that a seed means the same on any device."""
    noise_V.exponential_(generator=generator)


def allowed(logits: Tensor) -> Tensor:
    """Logits that are minus infinity for the ids that never follow in text.

    Where a logit of those that may follow is no number, that of :data:`BROKEN_ID` is none either,
    and is the one that is chosen: so the host learns of it with the token, and waits for nothing.
    """
    masked = torch.full_like(logits, -torch.inf)
    for first, after in ((EOS_ID, EOS_ID + 1), (BYTE_OFFSET, VOCAB_SIZE)):
        masked[..., first:after] = logits[..., first:after]
    # Minus infinity, or NaN if the largest is NaN or infinite.
    masked[..., BROKEN_ID] -= masked.amax(-1) * 0
    return masked
