"""Ranks: which rows of the sequence a rank takes, and so which lanes it reads.

R ranks with B rows each take the next R * B rows of the sequence at a time, one *microbatch*. How
these are divided among the ranks decides how much text each of them reads, and nothing else: every
microbatch holds the same rows for any division.

**The division.** With G the greatest common divisor of R and the number V of lanes, rank r takes
rows ``n % G == r % G`` only, and so reads every G-th lane at most. If R divides V, that is all: G
is R, and no two ranks read the same lane. Otherwise R' = R / G ranks share V' = V / G lanes. Each
of the R' ranks *owns* ``V' // R'`` of the lanes, dealt round; the last ``V' % R'`` lanes are
*common*: all R' ranks read them.

In a microbatch a rank takes the rows of its own lanes, and common rows until it has B. That always
works out: without the common ones, the group's rows of a microbatch are rows of owned lanes in
cyclic order, dealt round. Hence no rank owns more than ``ceil(owned / R')``, which is at most B.

Example: V = 8 lanes and R = 3 ranks with 2 rows each. G is 1; lanes 0 and 3 belong to rank 0, 1
and 4 to rank 1, 2 and 5 to rank 2, and 6 and 7 are common. Rows 0-5 go to their owners. Rows 6-11
lie in lanes 6 7 0 1 2 3: rank 0 owns two of them (rows 8 and 11), ranks 1 and 2 one each (rows 9
and 10), so rank 1 also takes row 6 and rank 2 row 7.

>>> shares = [RankShare(rank, ranks=3, batch=2) for rank in range(3)]
>>> [share.rows(6, lanes=8) for share in shares]
[[8, 11], [6, 9], [7, 10]]
>>> [share.lanes(8) for share in shares]
[[0, 3, 6, 7], [1, 4, 6, 7], [2, 5, 6, 7]]
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class _Group(NamedTuple):
    """Ranks that share lanes; ``groups`` of them divide all lanes."""

    groups: int
    number: int
    ranks: int
    lanes: int
    owned: int
    """The first so many of the group's lanes have an owner each; the others are common."""


class RankShare(NamedTuple):
    """The part of each microbatch that a rank gets."""

    rank: int
    ranks: int
    batch: int
    """Rows per rank."""

    def _group(self, lanes: int) -> _Group:
        groups = math.gcd(self.ranks, lanes)
        sharing, group_lanes = self.ranks // groups, lanes // groups
        owned = group_lanes // sharing * sharing
        return _Group(groups, self.rank % groups, sharing, group_lanes, owned)

    def own_lanes(self, lanes: int) -> list[int]:
        """The lanes that this rank alone reads, of so many."""
        group = self._group(lanes)
        places = range(self.rank // group.groups, group.owned, group.ranks)
        return [group.number + group.groups * place for place in places]

    def common_lanes(self, lanes: int) -> list[int]:
        """The lanes that this rank reads, and others, too."""
        group = self._group(lanes)
        places = range(group.owned, group.lanes)
        return [group.number + group.groups * place for place in places]

    def lanes(self, lanes: int) -> list[int]:
        """The lanes that the rank reads, of so many."""
        return self.own_lanes(lanes) + self.common_lanes(lanes)

    def rows(self, start: int, lanes: int) -> Sequence[int]:
        """Numbers of the rank's rows, in rising order, in the microbatch that begins with row
        ``start``."""
        group = self._group(lanes)
        first = start + (group.number - start) % group.groups
        rows = range(first, start + self.ranks * self.batch, group.groups)
        if group.ranks == 1:
            return rows
        rows_G = np.array(rows)
        place_G = rows_G % lanes // group.groups
        owner_G = place_G % group.ranks
        common_G = place_G >= group.owned
        counts = np.bincount(owner_G[~common_G], minlength=group.ranks)
        owner_G[common_G] = np.repeat(np.arange(group.ranks), self.batch - counts)
        mine: list[int] = rows_G[owner_G == self.rank // group.groups].tolist()
        return mine

    def text_factor(self, lanes: int) -> float:
        """Lanes that the rank reads, as a multiple of the lanes per rank."""
        return len(self.lanes(lanes)) * self.ranks / lanes
