"""Choosing the next token from logits."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.generation.fused import fused
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
        if self.temperature == 0:
            return likeliest(logits_BV)
        if self.top_k is None and self.top_p is None:
            return drawn_from_all(logits_BV, noise_BV, self._temperature(logits_BV))
        return _drawn(self.probabilities(allowed(logits_BV)), noise_BV)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """The distributions to draw from, for a temperature above 0; each row sums to 1."""
        behind_BV = _behind(logits_BV, self._temperature(logits_BV))
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

    def _temperature(self, like: Tensor) -> Tensor:
        """As a tensor: what is compiled takes it as any number."""
        return torch.full((), self.temperature, dtype=torch.float64, device=like.device)


class Noise:
    """The noise that the next token of each row is drawn with; that of the token after it is drawn
    while a GPU works. A row that waits keeps both."""

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

    def turn(self, going_B: np.ndarray) -> np.ndarray:
        """Go on to the next token in some of the rows, ``[batch]`` bool. Returns :attr:`now`."""
        np.copyto(self.now, self._next_BV.numpy(), where=going_B[:, None])
        return self.now

    def draw(self, generators: Iterable[torch.Generator | None]) -> None:
        """Draw what :meth:`turn` gives next.

        Args:
            generators: that of each row; None for rows that stay where they are.
        """
        for noise_V, generator in zip(self._next_BV, generators, strict=True):
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
    token_V = torch.arange(logits.shape[-1], device=logits.device)
    follows_V = (token_V == EOS_ID) | ((token_V >= BYTE_OFFSET) & (token_V < VOCAB_SIZE))
    masked = torch.where(follows_V, logits, -torch.inf)
    # Minus infinity, or NaN if the largest is NaN or infinite.
    broken = -torch.inf - masked.amax(-1, keepdim=True) * 0
    return torch.where(token_V == BROKEN_ID, broken, masked)


@fused
def likeliest(logits: Tensor) -> Tensor:
    """The likeliest token that may follow."""
    return allowed(logits).argmax(-1)


@fused
def drawn_from_all(logits_BV: Tensor, noise_BV: Tensor, temperature: Tensor) -> Tensor:
    """A token of each row, drawn from all that may follow; see :meth:`Sampling.choose`."""
    p_BV = _behind(allowed(logits_BV), temperature).softmax(-1).float()
    return _drawn(p_BV, noise_BV)


def _behind(logits_BV: Tensor, temperature: Tensor) -> Tensor:
    """Differences to the largest, divided by the temperature; in double precision, because the
    smallest temperature must not overflow."""
    exact_BV = logits_BV.double()
    return (exact_BV - exact_BV.amax(-1, keepdim=True)) / temperature


def _drawn(p_BV: Tensor, noise_BV: Tensor) -> Tensor:
    return (p_BV / noise_BV).masked_fill(p_BV == 0, -1).argmax(-1)
