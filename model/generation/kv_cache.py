"""What models keep of the tokens and patches that they have read, so that reading can go on.

All of it lies in rings: position p is in slot p modulo the number of slots. The rows of a batch may
have read different numbers of tokens. The position that a slot holds follows from the number that a
row has read: tokens are taken back by lowering that number, and nothing is erased. With 4 slots,
for example, a row that has read 6 tokens holds the positions 4, 5, 2, 3.

Rings are allocated once and written in place, so that a CUDA graph that reads them stays right. A
ring that has to hold everything (of attention without a window) has more slots than positions, so
that it never comes round, and is doubled when it is full.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model import kernels
from model.generation.fused import unseen

PIECE = 256
"""The most tokens of a row that are read at a time."""
MULTIPLE = 16
"""Slots of attention come in multiples of this: fused kernels want masks of such widths."""
FIRST_SLOTS = 256
"""Slots of rings that grow, at first and on a GPU: when one grows, graphs are recorded again."""


MANY_ROWS, LEAST_USED = 16, 64
"""From so many rows on, steps that keep their shapes and have a mask look at no more slots than the
next power of 2, and at so many at least."""


def power_of_2(value: int) -> int:
    """The smallest power of 2 that is not less."""
    return 1 << max(value - 1, 0).bit_length()


def keeps_shapes(device: torch.device) -> bool:
    """True where steps are recorded as graphs, so that it pays to let them keep their shapes: on
    anything but a CPU."""
    return device.type != "cpu"


class Ring:
    """Values by position, ``[parts, batch, slots, ...]``, zeros at first."""

    def __init__(
        self, parts: int, batch: int, slots: int, *shape: int, like: Tensor, grows: bool = False
    ):
        """
        Args:
            like: a tensor of the dtype and on the device of the values.
            grows: more slots will be needed.
        """
        if grows and keeps_shapes(like.device):
            slots = max(slots, FIRST_SLOTS)
        self.data = like.new_zeros(parts, batch, slots, *shape)
        self._row_B1 = torch.arange(batch, device=like.device)[:, None]

    @property
    def slots(self) -> int:
        """How many positions there is room for."""
        return self.data.shape[2]

    def write(self, part: int, slot_BM: Tensor, values_BM: Tensor) -> None:
        """Put values into slots of each row: ``position % slots``."""
        self.data[part][self._row_B1, slot_BM] = values_BM

    def read(self, part: int, position_BM: Tensor) -> Tensor:
        """The values at positions of each row; those of other positions are anything."""
        return self.data[part][self._row_B1, position_BM % self.slots]

    def make_room(self, needed: int) -> bool:
        """Double the slots until there are ``needed`` ones.

        A position p of the last ones is then in one of the two copies of its old slot, whichever is
        p modulo the new number of slots. Returns True if the ring has moved in memory.
        """
        old = self.data
        while self.slots < needed:
            self.data = torch.cat([self.data, self.data], 2)
        return self.data is not old

    def take(self, row: int, other: "Ring", its_row: int, length: int) -> None:
        """Copy into a row what another ring holds of the first ``length`` positions of one of its
        rows; only the last ones, if they are more than the slots."""
        first = max(length - min(self.slots, other.slots), 0)
        position_X = torch.arange(first, length, device=self.data.device)
        new = other.data[:, its_row, position_X % other.slots]
        self.data[:, row, position_X % self.slots] = new


@dataclass(frozen=True)
class View:
    """What the tokens of one step see of a cache; made once for all layers."""

    position_BM: Tensor
    reach_BM: Tensor
    """How far each token may look back."""
    needed_B: Tensor | None
    """0 for rows whose result nobody needs; None if there is none."""
    slot_BM: Tensor | None = None
    """The slots that keep the tokens; None where a kernel does all of this."""
    mask_B1MR: Tensor | None = None
    """Minus infinity where a slot is not seen, else 0; None likewise."""


class KeyValueCache:
    """The keys and values of every layer of one stack of blocks.

    Invariant: a piece of M tokens from position n overwrites the positions before ``n + M - slots``
    and later tokens, even if all of the piece is taken back, see none before ``n - window + 1``.
    So ``window + M - 1`` slots are enough.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        heads: int,
        head_dim: int,
        window: int | None,
        longest: int,
        like: Tensor,
    ):
        """
        Args:
            heads: heads of keys, and of values.
            window: keys that a query sees, itself included; None for all before it.
            longest: the most tokens of a row that are read, and may be taken back, at a time.
            like: a tensor of the dtype and on the device of keys and values.
        """
        self.window, self.heads = window, heads
        self._singly = kernels.usable(like.device, like.dtype) and longest == 1
        slots = window + longest - 1 if window else longest
        slots += -slots % MULTIPLE
        shape = (2 * heads, head_dim)
        self.ring = Ring(n_layers, batch, slots, *shape, like=like, grows=window is None)
        self.used = self.ring.slots
        """Slots that steps look at. Where steps keep their shapes these are all, or, if many rows
        make reading them slow, a power of 2."""

    def make_room(self, most: int) -> bool:
        """Prepare for rows of at most ``most`` tokens. Returns True if anything moved in memory."""
        moved = self.window is None and self.ring.make_room(most)
        slots = self.ring.slots
        if not keeps_shapes(self.ring.data.device):
            self.used = min(slots, most)
        elif self.ring.data.shape[1] >= MANY_ROWS and not self._singly:
            self.used = min(slots, max(power_of_2(most), LEAST_USED))
        else:
            self.used = slots
        return moved

    def view(
        self,
        position_BM: Tensor,
        groups: int,
        reach_BM: Tensor | None = None,
        needed_B: Tensor | None = None,
    ) -> View:
        """What tokens see.

        Args:
            position_BM: their positions; a row's tokens follow one another, or are the same.
            groups: heads of queries for each head of keys.
            reach_BM: how far each token may look back; to the start of its row by default.
            needed_B: 0 for rows whose result nobody needs.
        """
        slots, dtype = self.ring.slots, self.ring.data.dtype
        reach_BM = position_BM if reach_BM is None else reach_BM
        view = View(position_BM, reach_BM, needed_B)
        if position_BM.shape[1] == 1 and kernels.usable(position_BM.device, dtype):
            return view
        window = self.window or slots
        mask_BMR = unseen(position_BM, reach_BM, window, slots, self.used, dtype)
        if groups > 1:
            mask_BMR = mask_BMR.repeat_interleave(groups, 1)
        return replace(view, slot_BM=position_BM % slots, mask_B1MR=mask_BMR[:, None])

    def attend_singly(self, layer: int, qkv_BE: Tensor, rotary_BF2: Tensor, view: View) -> Tensor:
        """Keep the keys and values of one new token per row, and attend; in one kernel.

        Args:
            qkv_BE: heads of queries, of keys and of values, not rotated.

        Returns:
            ``[batch, heads * head_dim]``.
        """
        from model.kernels.ring_attention import attend_to_ring

        ring = self.ring.data[layer]
        attended_BD: Tensor = attend_to_ring(
            *(qkv_BE, rotary_BF2, ring, view.position_BM[:, 0], view.reach_BM[:, 0]),
            *(view.needed_B, self.window or self.ring.slots),
        )
        return attended_BD

    def attend(self, layer: int, q_THD: Tensor, kv_TXD: Tensor, view: View) -> Tensor:
        """Keep keys and values of new tokens, and attend to all that the tokens see.

        Args:
            q_THD: queries, row by row.
            kv_TXD: the heads of the keys, then those of the values.

        Returns:
            ``[tokens, heads * head_dim]``.
        """
        assert view.slot_BM is not None
        batch, columns = view.slot_BM.shape
        self.ring.write(layer, view.slot_BM, kv_TXD.unflatten(0, (batch, columns)))
        k_BKRD, v_BKRD = self.ring.data[layer][:, : self.used].transpose(1, 2).chunk(2, dim=1)
        # The heads that share keys stand in a column, as if they were further tokens.
        q_BMKGD = q_THD.unflatten(0, (batch, columns)).unflatten(2, (self.heads, -1))
        q_BKXD = q_BMKGD.transpose(1, 2).flatten(2, 3)
        out_BKXD = F.scaled_dot_product_attention(q_BKXD, k_BKRD, v_BKRD, attn_mask=view.mask_B1MR)
        out_BMKGD = out_BKXD.unflatten(2, (columns, -1)).transpose(1, 2)
        attended_TD: Tensor = out_BMKGD.flatten(0, 1).flatten(1)
        return attended_TD
