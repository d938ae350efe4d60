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
>>> [share.rows(6, lanes=8).tolist() for share in shares]
[[8, 11], [6, 9], [7, 10]]
>>> [share.lanes(8) for share in shares]
[[0, 3, 6, 7], [1, 4, 6, 7], [2, 5, 6, 7]]
"""

import math
from typing import NamedTuple

import numpy as np


class RankShare(NamedTuple):
    """The part of each microbatch that a rank gets."""

    rank: int
    ranks: int
    batch: int
    """Rows per rank."""

    def lanes(self, lanes: int) -> list[int]:
        """The lanes that the rank reads, of so many."""
        groups = math.gcd(self.ranks, lanes)
        sharing, group_lanes = self.ranks // groups, lanes // groups
        group, member = self.rank % groups, self.rank // groups
        owned = group_lanes // sharing * sharing
        places = [*range(member, owned, sharing), *range(owned, group_lanes)]
        return [group + groups * place for place in places]

    def common_lanes(self, lanes: int) -> list[int]:
        """Those of them that other ranks read, too."""
        groups = math.gcd(self.ranks, lanes)
        sharing, group_lanes = self.ranks // groups, lanes // groups
        owned = group_lanes // sharing * sharing
        return [self.rank % groups + groups * place for place in range(owned, group_lanes)]

    def rows(self, start: int, lanes: int) -> np.ndarray:
        """Numbers of the rank's rows, in rising order, in the microbatch that begins with row
        ``start``."""
        groups = math.gcd(self.ranks, lanes)
        sharing, group_lanes = self.ranks // groups, lanes // groups
        group, member = self.rank % groups, self.rank // groups
        first = start + (group - start) % groups
        rows_G = first + groups * np.arange(sharing * self.batch)
        place_G = rows_G % lanes // groups
        owner_G = np.where(place_G < group_lanes // sharing * sharing, place_G % sharing, -1)
        common_G = owner_G < 0
        counts = np.bincount(owner_G[~common_G], minlength=sharing)
        owner_G[common_G] = np.repeat(np.arange(sharing), self.batch - counts)
        return rows_G[owner_G == member]

    def text_factor(self, lanes: int) -> float:
        """Lanes that the rank reads, as a multiple of the lanes per rank."""
        return len(self.lanes(lanes)) * self.ranks / lanes
