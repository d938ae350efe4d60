"""Weights for tests: sharp ones, and a checkpoint that would run code."""

import os
from pathlib import Path

import torch


def sharpen(model: torch.nn.Module, factor: float, seed: int = 0) -> None:
    """Spread scores and logits, and tell norms from one another: all are 1 to begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


class Malicious:
    """Whoever unpickles it makes a directory."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)
