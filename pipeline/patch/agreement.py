"""Two devices that score the same text: do they compute the same bits, and how far are they apart?

Each device scores a built-in text and saves what it would store. No Ray in here.
"""

import base64
import hashlib
import json
import random
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from model.checkpoints.entropy_model import computed_in, fingerprint
from model.device import software
from model.tokenizer import encode_documents
from pipeline.errors import ConfigError, PipelineError
from pipeline.patch.scoring import Scorer

MEAN_NATS = 0.02
"""Mean difference of entropies up to which two devices agree."""
BOUNDARIES = 0.02
"""Share of the boundaries that may differ then, at the threshold for ``PATCH_SIZE``."""
PATCH_SIZE = 4.5
"""Tokens per patch at which boundaries are compared."""
TEXT_BYTES = 100_000
"""Enough for a full pack on a GPU and a few small ones; a minute or more on a CPU."""
WORDS = """
the of and to a in is that it was for on are as with his they be at one have this from entropy
patches models bytes window learning 1918 3.14 def return(x) {0: None} http://example.org/a?b=c
größer naïve español слово язык 言語 模型 नमस्ते שלום 🙂
"""
"""Words of the built-in text."""


def built_in_text() -> list[bytes]:
    """Documents of 10 to 20,000 bytes: words drawn with a fixed seed, the same everywhere."""
    draw = random.Random(18).random  # the one method whose numbers no release of Python changes
    words = WORDS.split()
    documents: list[bytes] = []
    size = 0
    while size < TEXT_BYTES:
        length, text = 10 ** (1 + 3.3 * draw()), ""
        while len(text) < length:
            text += words[int(draw() * len(words))] + (" " if draw() < 0.9 else ".\n")
        documents.append(text.encode())
        size += len(documents[-1])
    return documents


@dataclass(frozen=True)
class Measured:
    """The entropies of the built-in text that a device would store."""

    computed_in: str
    software: dict[str, str]
    entropy_model: str
    """Its fingerprint."""
    text: str
    """The sha256 of the text's tokens."""
    entropies: str
    """float16, little-endian, in base64."""

    @classmethod
    def by(cls, scorer: Scorer) -> Self:
        """Score the text, twice.

        Raises:
            PipelineError: the second time gives other bits.
        """
        identity = fingerprint(scorer.model)
        tokens_T, lengths_D = encode_documents(built_in_text())
        once, again = (scorer.entropies(tokens_T, lengths_D).tobytes() for _ in range(2))
        device = computed_in(scorer.model)
        if once != again:
            raise PipelineError(f"{device}: computes other bits when it scores a text again")
        text = hashlib.sha256(tokens_T.tobytes()).hexdigest()
        return cls(device, software(), identity, text, base64.b64encode(once).decode())

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """
        Args:
            where: flag and path, for errors.

        Raises:
            ConfigError: this is not what :meth:`to_json` gave.
        """
        try:
            measured = cls(**json.loads(data))
            measured.values()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: is no output of check_device.py: {error}") from error
        return measured

    def to_json(self) -> str:
        """All values, one per line."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def values(self) -> np.ndarray:
        """The entropies, float16."""
        return np.frombuffer(base64.b64decode(self.entropies, validate=True), "<f2")

    def hash(self) -> str:
        """The first digits of the sha256 of the entropies: what to compare by eye."""
        return hashlib.sha256(self.values().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Agreement:
    """How far the entropies of two devices are apart."""

    identical: bool
    """True if all bits are equal."""
    most: float
    """The largest difference, nats."""
    mean: float
    """The mean difference, nats."""
    boundaries: float
    """The share of the other's boundaries that differ."""

    @classmethod
    def between(cls, one: Measured, other: Measured, where: str) -> Self:
        """
        Args:
            where: flag and path of ``other``, for errors.

        Raises:
            ConfigError: another model or another text was scored.
        """
        for name, what in (("entropy_model", "another entropy model"), ("text", "another text")):
            if getattr(one, name) != getattr(other, name):
                raise ConfigError(f"{where}: is of {what}; make it anew with the same release")
        h, g = (each.values().astype(np.float32) for each in (one, other))
        if len(h) != len(g):
            raise ConfigError(f"{where}: has {len(g):,} entropies, not {len(h):,}: it is damaged")
        apart = np.abs(h - g)
        threshold = np.quantile(g, 1 - 1 / PATCH_SIZE)
        differ = ((h > threshold) != (g > threshold)).sum() / max((g > threshold).sum(), 1)
        return cls(not apart.any(), float(apart.max()), float(apart.mean()), float(differ))

    @property
    def tolerable(self) -> bool:
        """True if the two may score one corpus, up to rounding."""
        return self.mean <= MEAN_NATS and self.boundaries <= BOUNDARIES

    def to_json(self) -> dict[str, Any]:
        """The figures, and whether they are tolerable."""
        return asdict(self) | {"tolerable": self.tolerable}

    def __str__(self) -> str:
        if self.identical:
            return "the same bits"
        verdict = "within the tolerance" if self.tolerable else "beyond the tolerance"
        return (
            f"entropies differ by {self.mean:.4f} nats on average and {self.most:.4f} at most, "
            f"{self.boundaries:.2%} of the boundaries at {PATCH_SIZE} tokens per patch differ: "
            f"{verdict} of {MEAN_NATS} nats and {BOUNDARIES:.0%}"
        )
