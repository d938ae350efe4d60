"""What workers count of their work, for whoever watches a run."""

from dataclasses import dataclass, fields
from typing import Self


@dataclass(frozen=True)
class WorkCounts:
    """What was done of a piece of work, or of many."""

    bytes: int = 0
    """Bytes of text; of files, where they are copied."""
    documents: int = 0
    rejects: int = 0
    device_seconds: float = 0.0
    """Time that the model's device computed: on a CPU, the core of the worker."""

    def __add__(self, other: Self) -> Self:
        return self._each(other, 1)

    def __sub__(self, other: Self) -> Self:
        return self._each(other, -1)

    def _each(self, other: Self, sign: int) -> Self:
        names = [field.name for field in fields(self)]
        return type(self)(*(getattr(self, n) + sign * getattr(other, n) for n in names))
