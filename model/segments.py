"""Segments: stretches of text that a model reads without context from outside.

A segment never crosses a document, is never longer than the model's context, and may be made to
end at newlines (arXiv 2412.09871, section 4.4). Models read segments laid end to end, so that no
token is spent on padding; positions and context start again with each segment.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.tokenizer import BYTE_OFFSET, EOS_ID, PAD_ID

NEWLINE_ID = ord("\n") + BYTE_OFFSET


def cut_segments(
    tokens_T: Tensor,
    document_lengths_D: Tensor,
    *,
    context_length: int | None,
    reset_at_newline: bool = False,
) -> Tensor:
    """The lengths (int64) of the segments of documents laid end to end.

    Args:
        tokens_T: token ids; only newlines matter.
        document_lengths_D: tokens of each document; all at least 1.
        context_length: the longest segment, or None where a model needs no limit.
        reset_at_newline: a segment also ends with every newline.
    """
    lengths_S = document_lengths_D
    if reset_at_newline:
        last_T = tokens_T == NEWLINE_ID
        last_T[document_lengths_D.cumsum(0) - 1] = True
        end_S = last_T.nonzero()[:, 0] + 1
        lengths_S = torch.diff(end_S, prepend=end_S.new_zeros(1))
    if context_length is None:
        return lengths_S
    return cut_long(lengths_S, context_length)


def cut_long(lengths_S: Tensor, longest: int) -> Tensor:
    """The lengths, each one above ``longest`` cut into pieces of that length and a rest: with
    ``longest`` 4, the lengths 3 and 9 become 3, 4, 4, 1."""
    pieces_S = (lengths_S + longest - 1) // longest
    last_piece_S = pieces_S.cumsum(0) - 1
    pieces = lengths_S.new_full((int(pieces_S.sum()),), longest)
    pieces[last_piece_S] = lengths_S - (pieces_S - 1) * longest
    return pieces


def pack_segments(lengths_S: Tensor, token_budget: int) -> Iterator[tuple[slice, slice]]:
    """Packs: runs of whole segments that hold at most ``token_budget`` tokens each (next-fit).

    A segment longer than the budget is a pack of its own.

    Yields:
        the slice of segments and the slice of tokens of each pack, one pack after the other.
    """
    end_S = lengths_S.cumsum(0).cpu()
    segment, token = 0, 0
    while segment < len(end_S):
        next_segment = int(torch.searchsorted(end_S, token + token_budget, right=True))
        next_segment = max(next_segment, segment + 1)
        next_token = int(end_S[next_segment - 1])
        yield slice(segment, next_segment), slice(token, next_token)
        segment, token = next_segment, next_token


def fill_packs(lengths_S: Tensor, sizes: Sequence[int]) -> Iterator[list[int]]:
    """Packs of fixed sizes, filled with whole segments in any order, so that little stays empty.

    Each pack takes the longest segment that still fits until none does; the short ones are left
    for the gaps. A pack has the largest size unless that would leave more than a quarter of it
    empty; what is left then goes into packs of the smallest size that holds it, or of the largest
    but one. With the sizes 8 and 16, the lengths 8, 2, 5, 6, 3 give the packs 8 + 6 + 2 and 5 + 3.

    The packs follow from the lengths and sizes alone.

    Args:
        sizes: tokens that a pack may have room for, ascending; the smallest holds the longest
            segment.

    Yields:
        the numbers of the segments of each pack.
    """
    order_S = lengths_S.argsort(stable=True)
    numbers, waiting = order_S.tolist(), lengths_S[order_S].tolist()
    left = sum(waiting)
    while waiting:
        size = next((size for size in sizes if left <= size), sizes[-1])
        if size == sizes[-1] and left < size * 3 // 4:
            size = sizes[max(len(sizes) - 2, 0)]
        pack: list[int] = []
        room = size
        while i := bisect_right(waiting, room):
            pack.append(numbers.pop(i - 1))
            room -= waiting.pop(i - 1)
        left -= size - room
        yield pack


def token_positions(lengths_S: Tensor, tokens: int) -> Tensor:
    """The position of each token in its segment, int64.

    Args:
        tokens: the sum of the lengths, which a GPU would have to be waited for to learn.
    """
    start_S = lengths_S.cumsum(0) - lengths_S
    start_T = torch.repeat_interleave(start_S, lengths_S, output_size=tokens)
    return torch.arange(tokens, device=lengths_S.device) - start_T


def document_starts(tokens_BS: Tensor) -> Tensor:
    """Mark each token that begins a document of a packed row: bool, of the tokens' shape.

    A document ends with its EOS or with the row. Each token of padding (-1) is a document of its
    own, so that it costs attention least.
    """
    starts_BS = (tokens_BS == PAD_ID) | (tokens_BS == EOS_ID).roll(1, 1)
    starts_BS[:, :1] = True
    return starts_BS


def since_start(starts_BX: Tensor) -> Tensor:
    """The distance of each column from the last start at or before it; rows are laid end to end."""
    column_X = torch.arange(starts_BX.shape[1], device=starts_BX.device)
    start_BX = torch.where(starts_BX, column_X, 0).cummax(1).values
    return (column_X - start_BX).flatten()
