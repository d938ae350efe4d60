"""The tensors that tell steps which tokens they read; they stay where they are in memory."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FIXED = 5
"""Numbers of a row that are there once: see :attr:`Piece.segment_B`."""


class Piece:
    """The next tokens of every row of a batch, at most ``longest`` of each.

    A row that has fewer repeats its last one, at the same position: what a step keeps of it is
    written twice, and is the same.
    """

    def __init__(
        self, batch: int, longest: int, window: int, device: torch.device, vocab_size: int = 0
    ):
        """
        Args:
            longest: the most tokens of a row.
            window: how many patches gather from a byte.
            vocab_size: tokens to draw from; 0 if none is ever drawn.
        """
        self.batch, self.longest, self.window = batch, longest, window
        self.tokens_BM = torch.zeros(batch, longest, dtype=torch.int64, device=device)
        """Ids of the tokens; only steps that take them up read them, because a choice of the next
        token puts it into the first column."""
        self._starts = (FIXED, FIXED + longest, FIXED + 2 * longest)
        shape = batch, self._starts[-1] + window + longest
        # All that the host says, so that it is one copy: the numbers, and the noise as pairs.
        numbers, noise = shape[0] * shape[1], batch * vocab_size
        begin = numbers + numbers % 2  # aligned to 16 bytes
        self._told_X = torch.zeros(begin + (noise + 1) // 2, dtype=torch.int64, device=device)
        self._host_X = np.zeros(self._told_X.shape, np.int64)
        self._parts = {
            told: (self._told_X[:end], self._host_X[:end])
            for told, end in ((False, numbers), (True, len(self._host_X)))
        }
        self._host_BX = self._host_X[:numbers].reshape(shape)
        host_noise_X = self._host_X[begin:].view(np.float32)[:noise]
        self._host_noise_BV = host_noise_X.reshape(batch, vocab_size)
        self.numbers_BX = self._told_X[:numbers].view(shape)
        """All that the host says about the rows."""
        self.noise_BV = self._told_X[begin:].view(torch.float32)[:noise].view(batch, vocab_size)
        """The noise that the next tokens are drawn with, float32."""
        fixed: tuple[Tensor, ...] = self.numbers_BX[:, :FIXED].unbind(1)
        self.segment_B, self.patches_B, self.ended_B, self.end_B, self.count_B = fixed
        """The start of the entropy model's context of the first token; patches that ended before
        the piece, and in it; position of the last token of the last of them; tokens of the row in
        the piece."""
        self.heard_BM2 = torch.zeros(batch, longest, 2, device=device)
        """All that the host is told: each token, and the entropy after it in nats; float32."""

    def told(
        self,
        fixed: Sequence[np.ndarray | int],
        lists: tuple[np.ndarray, np.ndarray, np.ndarray],
        noise_BV: np.ndarray | None = None,
    ) -> tuple[Tensor, np.ndarray]:
        """The tensor that the host writes to say something, and the values to write.

        Args:
            fixed: what is there once per row, in the order of :attr:`segment_B`.
            lists: positions, latest patches and bounds, ``[batch, *]``, at most as many as there
                are places. A single latest patch is that of all tokens.
            noise_BV: :attr:`noise_BV`; it stays as it is by default.

        Returns:
            both one-dimensional; the values are overwritten by the next call.
        """
        numbers_BX = self._host_BX
        for i, values_B in enumerate(fixed):
            numbers_BX[:, i] = values_B
        positions, latest, bounds = self._starts
        position_BM, latest_BM, bounds_BX = lists
        numbers_BX[:, positions : positions + position_BM.shape[1]] = position_BM
        columns = self.longest if latest_BM.shape[1] == 1 else latest_BM.shape[1]
        numbers_BX[:, latest : latest + columns] = latest_BM
        numbers_BX[:, bounds : bounds + bounds_BX.shape[1]] = bounds_BX
        if noise_BV is not None:
            self._host_noise_BV[:] = noise_BV
        return self._parts[noise_BV is not None]

    def positions(self, columns: int, begin: int = 0) -> Tensor:
        """Positions of tokens in their rows, ``[batch, columns]``."""
        return self._list(0, begin, columns)

    def latest(self, columns: int, begin: int = 0) -> Tensor:
        """Index of the latest patch that has ended with each token or before it."""
        return self._list(1, begin, columns)

    def bounds(self, patches: int) -> Tensor:
        """Starts of the patches that may gather from a byte of the piece: ``window`` ones up to
        that of the first patch that ends in the piece, then those of the ``patches`` after it.
        Beyond the last patch that was started they are larger than any position."""
        return self._list(2, 0, self.window + patches)

    def _list(self, which: int, begin: int, columns: int) -> Tensor:
        first = self._starts[which] + begin
        return self.numbers_BX[:, first : first + columns]
