"""The bytes, patches and documents of a batch that belong together, found once for all layers.

Rows are laid end to end. A patch *owns* its bytes and gathers from them. A byte reads from the
latest patch that is complete when the next byte is predicted: the patch before the one that the
next byte belongs to. It must not read from a patch that contains the byte that it predicts. For a
row of 5 tokens in patches of 1, 2 and 2::

    token            0 1 2 3 4
    own patch        0 1 1 2 2
    next byte's      1 1 2 2 ?
    reads patch      0 0 1 1 1

Token 2 ends patch 1, so the patch is complete with it and token 2 reads from it. The last token's
next byte belongs to patch 3 if the lengths count it (in training they are 1, 2, 2, 1, and token 4
reads patch 2); otherwise it is taken to belong to the last patch, as here, or, as published
(``last_reads_last_patch``), to one after it. Windows add neighbours within the document (or, as
published, within the row): the patches after a byte's own that gather from it, too, and the patches
before the latest that it reads, too.

The steps are vectorised, and their shapes depend on the batch's shape alone, so that a device is
never waited for.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.segments import document_starts, since_start
from model.tokenizer import BOE_ID, EOS_ID, PAD_ID


class PatchLayout(NamedTuple):
    """T tokens (rows times their width) and N patches (rows times the most that a row has, and what
    is missing to a multiple: these have no bytes).

    Where a byte has no patch, its index is ``~i``, which is negative; the i of all bytes never fall
    within a column.
    """

    tokens_T: Tensor
    """int64 ids; BOE in place of padding."""
    position_T: Tensor
    """Position of each byte in its document."""
    row_position_T: Tensor
    """Position of each byte in its row."""
    position_N: Tensor
    """Position of each patch in its document."""
    gathering_TW: Tensor
    """Indices of the patches that gather from each byte, its own first."""
    read_TW: Tensor
    """Indices of the patches that each byte reads from, the latest first."""

    @classmethod
    def of(
        cls,
        tokens_BS: Tensor,
        patch_lengths_BP: Tensor,
        window_encoder: int,
        window_decoder: int,
        multiple: int = 1,
        *,
        across_documents: bool = False,
        last_reads_last: bool = False,
    ) -> "PatchLayout":
        """The layout of a batch that :func:`check_batch` accepts.

        Args:
            tokens_BS: ids, right-padded with -1.
            patch_lengths_BP: tokens of each patch, right-padded with 0.
            window_encoder: how many patches gather from a byte.
            window_decoder: how many patches a byte reads from.
            multiple: N is rounded up to a multiple of this.
            across_documents: windows end with the row, not with the document.
            last_reads_last: a row's last token reads the last patch where lengths leave out the
                token after it, and not the patch before.
        """
        (batch, width), patches = tokens_BS.shape, patch_lengths_BP.shape[1]
        device, total = tokens_BS.device, batch * patches
        column_S = torch.arange(width, device=device)
        row_B1 = torch.arange(batch, device=device)[:, None] * patches
        inside_BS = tokens_BS != PAD_ID

        # A slot belongs to the patch whose index is the number of patches that end at or before it.
        ends_BP = patch_lengths_BP.long().cumsum(1)
        slot_BS = column_S.expand(batch, width).contiguous()
        own_BS = torch.searchsorted(ends_BP, slot_BS, right=True)
        next_BS = torch.searchsorted(ends_BP, slot_BS + 1, right=True)
        # If the lengths leave out the next token, it is taken to belong to the last patch, or to
        # one after it.
        last_B1 = (patch_lengths_BP > 0).sum(1, keepdim=True) - (0 if last_reads_last else 1)
        known_BS = (torch.minimum(next_BS, last_B1) - 1).clamp(min=0) + row_B1
        # Padding after the last patch counts to the next row's first one, or to the last of all.
        own_T = (own_BS + row_B1).clamp(max=total - 1).flatten()
        inside_T = inside_BS.flatten()

        eos_T = (tokens_BS == EOS_ID).flatten()
        eos_N = torch.zeros(total, dtype=torch.int32, device=device)
        eos_N = eos_N.index_add(0, own_T, eos_T.int())
        patch_starts_BP = (eos_N > 0).view(batch, patches).roll(1, 1)
        patch_starts_BP[:, :1] = True
        if across_documents:
            group_N = row_B1.expand(batch, patches).flatten()
        else:
            group_N = patch_starts_BP.flatten().cumsum(0)

        gathering_TW = _neighbours(own_T, inside_T, group_N, window_encoder, 1)
        read_TW = _neighbours(known_BS.flatten(), None, group_N, window_decoder, -1)
        return cls(
            tokens_T=tokens_BS.masked_fill(~inside_BS, BOE_ID).long().flatten(),
            position_T=since_start(document_starts(tokens_BS)),
            row_position_T=slot_BS.flatten(),
            position_N=F.pad(since_start(patch_starts_BP), (0, -total % multiple)),
            gathering_TW=gathering_TW,
            read_TW=read_TW,
        )


def _neighbours(
    patch_T: Tensor, exists_T: Tensor | None, group_N: Tensor, window: int, direction: int
) -> Tensor:
    """``patch_T`` and the patches next to it, as far as its group goes: ``[tokens, window]``, with
    ``~i`` where there is none.

    Args:
        patch_T: index of a patch for each token; never falls.
        exists_T: false where there is no patch; None if there is one everywhere.
        group_N: a number for each patch that differs between groups: documents, or rows.
        window: how many patches, ``patch_T`` included.
        direction: 1 for the patches after it, -1 for those before it.
    """
    index_TW = patch_T[:, None]
    if window > 1:
        offset_W = torch.arange(window, device=patch_T.device) * direction
        index_TW = (index_TW + offset_W).clamp(0, len(group_N) - 1)
        same_TW = group_N[index_TW] == group_N[patch_T][:, None]
        # Beyond the first and the last patch of all there are none.
        same_TW &= index_TW == patch_T[:, None] + offset_W
        index_TW = torch.where(same_TW, index_TW, ~index_TW)
    if exists_T is not None:
        index_TW = torch.where(exists_T[:, None], index_TW, index_TW.minimum(~index_TW))
    return index_TW


def check_batch(tokens_BS: Tensor, patch_lengths_BP: Tensor, vocab_size: int) -> None:
    """Check that ids are in the vocabulary, and that patches cover the n tokens of each row, or
    n + 1 with the token after them.

    Raises:
        ValueError: they are not, or do not; says where.
    """
    if tokens_BS.dim() != 2 or patch_lengths_BP.dim() != 2:
        raise ValueError(
            f"tokens and patch_lengths: must be [batch, seq] and [batch, patches], got "
            f"{list(tokens_BS.shape)} and {list(patch_lengths_BP.shape)}"
        )
    if len(tokens_BS) != len(patch_lengths_BP):
        raise ValueError(
            f"patch_lengths: {len(patch_lengths_BP)} rows for {len(tokens_BS)} rows of tokens"
        )
    for name, values in (("tokens", tokens_BS), ("patch_lengths", patch_lengths_BP)):
        if values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(f"{name}: must be integers, got {values.dtype}")
    tokens_BS, patch_lengths_BP = tokens_BS.long(), patch_lengths_BP.long()
    inside_BS = tokens_BS != PAD_ID
    known_BS = (tokens_BS >= PAD_ID) & (tokens_BS < vocab_size)
    if not bool(known_BS.all()):
        row, column = (~known_BS).nonzero()[0].tolist()
        raise ValueError(
            f"tokens: ids must be -1 (padding) or 0 to {vocab_size - 1}, got "
            f"{int(tokens_BS[row, column])} (row {row}, column {column})"
        )
    n_B, sum_B = inside_BS.sum(1), patch_lengths_BP.sum(1)
    used_BP = patch_lengths_BP > 0
    for wrong_B, what in (
        ((inside_BS[:, 1:] & ~inside_BS[:, :-1]).any(1), "tokens: padding stands before a token"),
        ((patch_lengths_BP < 0).any(1), "patch_lengths: one is negative"),
        (patch_lengths_BP[:, :1].ne(1).any(1) | (sum_B == 0), "patch_lengths: the first is not 1"),
        ((used_BP[:, 1:] & ~used_BP[:, :-1]).any(1), "patch_lengths: 0 stands before a patch"),
        ((sum_B != n_B) & (sum_B != n_B + 1), "patch_lengths: do not sum to the row's tokens"),
    ):
        if bool(wrong_B.any()):
            row = int(wrong_B.nonzero()[0])
            raise ValueError(
                f"{what} (row {row}: {int(n_B[row])} tokens, lengths "
                f"{patch_lengths_BP[row].tolist()[:12]}, sum {int(sum_B[row])})"
            )
