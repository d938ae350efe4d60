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
reads patch 2); otherwise it is taken to belong to the last patch, as here. Windows add neighbours
within the document: the patches after a byte's own that gather from it, too, and the patches before
the latest that it reads, too.

The steps are vectorised, and their shapes depend on the batch's shape alone, so that a device is
never waited for.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.segments import document_starts, since_start
from model.tokenizer import BOE_ID, EOS_ID, PAD_ID


@dataclass(frozen=True)
class PatchLayout:
    """T tokens (rows times their width) and N patches (rows times the most that a row has)."""

    tokens_T: Tensor
    """int64 ids; BOE in place of padding."""
    position_T: Tensor
    """Position of each byte in its document."""
    row_position_T: Tensor
    """Position of each byte in its row."""
    position_N: Tensor
    """Position of each patch in its document."""
    gathering_TW: Tensor
    """Indices of the patches that gather from each byte, its own first; N for none."""
    read_TW: Tensor
    """Indices of the patches that each byte reads from, the latest first; -1 for none."""

    @classmethod
    def of(
        cls, tokens_BS: Tensor, patch_lengths_BP: Tensor, window_encoder: int, window_decoder: int
    ) -> "PatchLayout":
        """The layout of a batch that :func:`check_batch` accepts.

        Args:
            tokens_BS: ids, right-padded with -1.
            patch_lengths_BP: tokens of each patch, right-padded with 0.
            window_encoder: how many patches gather from a byte.
            window_decoder: how many patches a byte reads from.
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
        # If the lengths leave out the next token, it is taken to belong to the last patch.
        last_B1 = (patch_lengths_BP > 0).sum(1, keepdim=True) - 1
        known_BS = (torch.minimum(next_BS, last_B1) - 1).clamp(min=0) + row_B1
        own_T = torch.where(inside_BS, own_BS + row_B1, total).flatten()

        eos_N = _any_by_patch((tokens_BS == EOS_ID).flatten(), own_T, total)
        patch_starts_BP = eos_N.view(batch, patches).roll(1, 1)
        patch_starts_BP[:, :1] = True
        document_N = patch_starts_BP.flatten().cumsum(0)

        gathering_TW = _neighbours(own_T, document_N, window_encoder, 1, total)
        read_TW = _neighbours(known_BS.flatten(), document_N, window_decoder, -1, -1)
        return cls(
            tokens_T=tokens_BS.masked_fill(~inside_BS, BOE_ID).long().flatten(),
            position_T=since_start(document_starts(tokens_BS)),
            row_position_T=slot_BS.flatten(),
            position_N=since_start(patch_starts_BP),
            gathering_TW=gathering_TW,
            read_TW=read_TW,
        )


def _any_by_patch(marked_T: Tensor, patch_T: Tensor, patches: int) -> Tensor:
    """Mark each patch that owns a marked token."""
    count_N = torch.zeros(patches + 1, dtype=torch.int32, device=marked_T.device)
    return count_N.index_add(0, patch_T, marked_T.int())[:patches] > 0


def _neighbours(
    patch_T: Tensor, document_N: Tensor, window: int, direction: int, none: int
) -> Tensor:
    """``patch_T`` and the patches next to it, as far as its document goes: ``[tokens, window]``.

    Args:
        patch_T: index of a patch for each token.
        document_N: a number for each patch that differs between documents.
        window: how many patches, ``patch_T`` included.
        direction: 1 for the patches after it, -1 for those before it.
        none: what stands for no patch.
    """
    if window == 1:
        return patch_T[:, None]
    patches = len(document_N)
    offset_W = torch.arange(window, device=patch_T.device) * direction
    index_TW = patch_T[:, None] + offset_W
    exists_TW = (index_TW >= 0) & (index_TW < patches) & (patch_T < patches)[:, None]
    index_TW = index_TW.where(exists_TW, patch_T.clamp(max=patches - 1)[:, None])
    own_T = document_N[patch_T.clamp(max=patches - 1)]
    same_TW = exists_TW & (document_N[index_TW] == own_T[:, None])
    return index_TW.where(same_TW, none)


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
