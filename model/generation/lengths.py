"""The host's record of the rows of a batch that is read on."""

from dataclasses import dataclass, fields

import numpy as np


@dataclass
class Lengths:
    """The host's record of each row; int64 and ``[batch]`` unless stated."""

    read_B: np.ndarray
    """Tokens that were read."""
    patches_B: np.ndarray
    """Patches that have ended."""
    start_BW: np.ndarray
    """Starts of the last patches that gather together, ``[batch, window]``; the last is open."""
    segment_B: np.ndarray
    """The position at which the entropy model's context of the last token starts."""
    token_B: np.ndarray
    """The last token."""
    h_B: np.ndarray
    """The entropy after it, float32."""

    @classmethod
    def of_nothing(cls, batch: int, window: int) -> "Lengths":
        """The lengths of rows that have read nothing."""
        zeros_B = np.zeros(batch, np.int64)
        start_BW = np.zeros((batch, window), np.int64)
        return cls(zeros_B, zeros_B, start_BW, zeros_B, zeros_B, np.zeros(batch, np.float32))

    def put(self, row: int, other: "Lengths", its_row: int) -> None:
        """Give a row the lengths of another batch's row."""
        for field in fields(self):
            values = getattr(self, field.name).copy()
            values[row] = getattr(other, field.name)[its_row]
            setattr(self, field.name, values)
