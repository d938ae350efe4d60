"""Choosing the next token from logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.tokenizer import NEXT_IDS


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Raises:
        ValueError: a value is out of range; names it.
    """

    temperature: float = 0.0
    """Logits are divided by it; 0 takes the likeliest token (greedy)."""
    top_k: int | None = None
    """Only the k likeliest tokens."""
    top_p: float | None = None
    """Only the likeliest tokens that together have at least this probability."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: must be more than 0 and at most 1, got {self.top_p}")

    def choose(self, logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """The next token of each row, ``[batch]`` int64.

        Args:
            generators: one per row, on the CPU, so that rows do not depend on one another.
        """
        logits_BV = allowed(logits_BV)
        if self.temperature == 0:
            return logits_BV.argmax(-1)
        p_BV = self.probabilities(logits_BV).cpu()
        drawn = [
            torch.multinomial(p_V, 1, generator=g) for p_V, g in zip(p_BV, generators, strict=True)
        ]
        return torch.cat(drawn).to(logits_BV.device)

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """The distributions to draw from, for a temperature above 0; each row sums to 1."""
        # Differences, in double precision: the smallest temperature must not overflow.
        behind_BV = logits_BV.double() - logits_BV.double().amax(-1, keepdim=True)
        ordered_BV, token_BV = (behind_BV / self.temperature).sort(-1, descending=True)
        p_BV = ordered_BV.softmax(-1).float()
        if self.top_k is not None:
            p_BV[:, self.top_k :] = 0
        if self.top_p is not None:
            p_BV /= p_BV.sum(-1, keepdim=True)
            # A token stays if the likelier ones do not reach the sum without it.
            p_BV[p_BV.cumsum(-1) - p_BV >= self.top_p] = 0
        p_BV /= p_BV.sum(-1, keepdim=True)
        return torch.zeros_like(p_BV).scatter(-1, token_BV, p_BV)


def allowed(logits: Tensor) -> Tensor:
    """Logits that are minus infinity for the ids that never follow in text."""
    masked = torch.full_like(logits, -torch.inf)
    masked[..., list(NEXT_IDS)] = logits[..., list(NEXT_IDS)]
    return masked
