"""The size of a GPU's rows: fixed, because each further one costs a compilation, and fitted to the
data, because the latent transformer computes every patch that a row has room for.

The number of tokens is given. With room for few patches rows run out of patches before they run out
of tokens; with room for many, patches are padding. Where the first batch has p patches per token,
room for ``p * tokens`` would do if all windows had as many as the average; as they do not, a little
more is better. How much more is tried out on the batch itself: planning costs milliseconds.
"""

import numpy as np

from model.layers.attention import BLOCK
from pipeline.evaluate.rows import Plan, RowSize, plan_rows

ROOM = (1.0, 1.02, 1.04, 1.07, 1.1, 1.15, 1.2, 1.3)
"""Room for patches that is tried out, as multiples of the batch's average."""
MOST_SIZES = 4
"""Each costs the compilation of the latent transformer's layers."""
WASTE = 1.15
"""Work per needed work, above which another size is looked for. (The data changed.)"""
FEWEST_ROWS = 4
"""Rows of a batch that tell of a size whether it suits the data."""


class RowSizes:
    """The sizes of rows that a run has used: one, unless the data change much."""

    def __init__(self, tokens: int, token_cost: int, patch_cost: int):
        """
        Args:
            tokens: of each row.
            token_cost, patch_cost: what a token and a patch cost, in any unit.
        """
        self.tokens = tokens
        self._costs = token_cost, patch_cost
        self.used: list[RowSize] = []

    def plan(self, tokens_W: np.ndarray, patches_W: np.ndarray) -> tuple[RowSize, Plan]:
        """The size of the rows for windows, and the row of each.

        Args:
            tokens_W, patches_W: what each window takes of a row.
        """
        if not len(tokens_W):
            return RowSize(self.tokens, 1), plan_rows(tokens_W, patches_W, RowSize(1, 2))
        sizes = self.used
        if not sizes:
            sizes = self._candidates(tokens_W, patches_W)
        cost, size, plan = self._best(sizes, tokens_W, patches_W)
        needed = self._cost(int(tokens_W.sum()), int(patches_W.sum()))
        enough = tokens_W.sum() >= FEWEST_ROWS * self.tokens
        if sizes is self.used and enough and len(sizes) < MOST_SIZES and cost > WASTE * needed:
            sizes = self._candidates(tokens_W, patches_W)
            other = self._best(sizes, tokens_W, patches_W)
            if other[0] * WASTE < cost:
                cost, size, plan = other
        if size not in self.used:
            self.used.append(size)
        return size, plan

    def _candidates(self, tokens_W: np.ndarray, patches_W: np.ndarray) -> list[RowSize]:
        average = self.tokens * int(patches_W.sum()) / max(int(tokens_W.sum()), 1)
        rooms = {max(-int(-average * share // BLOCK), 1) * BLOCK for share in ROOM}
        return [RowSize(self.tokens, room) for room in sorted(rooms)]

    def _best(
        self, sizes: list[RowSize], tokens_W: np.ndarray, patches_W: np.ndarray
    ) -> tuple[int, RowSize, Plan]:
        """The cheapest of some sizes, with its cost; the smaller of equals."""
        plans = [plan_rows(tokens_W, patches_W, size) for size in sizes]
        costs = [plan.computed * self._cost(*size) for size, plan in zip(sizes, plans, strict=True)]
        best = costs.index(min(costs))
        return costs[best], sizes[best], plans[best]

    def _cost(self, tokens: int, patches: int) -> int:
        token_cost, patch_cost = self._costs
        return tokens * token_cost + patches * patch_cost
