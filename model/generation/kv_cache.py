"""Keys and values of what was read before, for reading on token by token.

A stack with a window keeps a ring of its last positions, one without keeps them all. Rows of a
batch may have read unequally much. What is in a slot follows from how much a row has read: taking
tokens back needs no more than saying that less was read.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers.attention import Attend

PIECE = 256
"""Tokens of a row that are read at a time, at most."""


class KeyValueCache:
    """Of every layer of one stack of blocks."""

    def __init__(self, n_layers: int, window: int | None):
        """
        Args:
            window: keys that a query sees, itself included; None for all before it.
        """
        self.n_layers, self.window = n_layers, window
        # The longest piece more than the window: writing one overwrites only what nobody will see,
        # even if all of it is taken back.
        self.slots = window + PIECE if window else PIECE
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def attends(self, read_B: Tensor, columns: int, reach_BM: Tensor | None = None) -> list[Attend]:
        """Attention of each layer for the next tokens of each row; it keeps their keys and values.

        Args:
            read_B: tokens that each row has read before.
            columns: tokens to read now, at most PIECE; those of a row that has fewer are written
                over when it reads on.
            reach_BM: how far each of them may look back, if not to the row's start.
        """
        most = int(read_B.max()) + columns
        if self.window is None and most > self.slots:
            self._grow(max(most, 2 * self.slots))
        position_BM = read_B[:, None] + torch.arange(columns, device=read_B.device)
        # A slot holds the last position that is its index modulo the number of slots.
        slot_R = torch.arange(min(self.slots, most), device=read_B.device)
        last_B1 = position_BM[:, -1:]
        held_BR = last_B1 - (last_B1 - slot_R) % self.slots
        back_BMR = position_BM[:, :, None] - held_BR[:, None]
        seen_BMR = (back_BMR >= 0) & (held_BR >= 0)[:, None]
        if self.window is not None:
            seen_BMR &= back_BMR < self.window
        if reach_BM is not None:
            seen_BMR &= back_BMR <= reach_BM[:, :, None]
        index_BM = position_BM % self.slots
        return [
            functools.partial(self._attend, layer, index_BM, seen_BMR[:, None])
            for layer in range(self.n_layers)
        ]

    def _attend(
        self, layer: int, index_BM: Tensor, seen_B1MR: Tensor, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        batch, columns = index_BM.shape
        q_BMHD, k_BMHD, v_BMHD = (x.view(batch, columns, *x.shape[1:]) for x in (q, k, v))
        if layer not in self._kept:
            shape = (batch, self.slots, *k.shape[1:])
            self._kept[layer] = (k.new_zeros(shape), v.new_zeros(shape))
        keys_BRHD, values_BRHD = self._kept[layer]
        row_B1 = torch.arange(batch, device=q.device)[:, None]
        keys_BRHD[row_B1, index_BM] = k_BMHD
        values_BRHD[row_B1, index_BM] = v_BMHD
        used = seen_B1MR.shape[-1]
        out_BHMD = F.scaled_dot_product_attention(
            q_BMHD.transpose(1, 2),
            keys_BRHD[:, :used].transpose(1, 2),
            values_BRHD[:, :used].transpose(1, 2),
            attn_mask=seen_B1MR,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out_BHMD.transpose(1, 2).reshape(q.shape)

    def _grow(self, slots: int) -> None:
        more = slots - self.slots
        for layer, kept in self._kept.items():
            keys, values = (F.pad(x, (0, 0, 0, 0, 0, more)) for x in kept)
            self._kept[layer] = keys, values
        self.slots = slots
