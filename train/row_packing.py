"""Documents of a shuffle window → rows of a batch. Plain numpy; no files, no torch.

A row is a sequence of *pieces*. A piece is a run of whole patches of one document: it predicts the
tokens ``a+1 .. b`` of the document (BOS, bytes, EOS) and takes ``b - a + 1`` positions of the row::

    input    x[a]  x[a+1]  ...  x[b-1]  EOS
    label   x[a+1] x[a+2]  ...   x[b]   ignored
    patches   [1] + lengths of the patches that cover a+1 .. b

``x[a]`` is BOS in the first piece of a document: the leading 1 is then the document's own first
patch. In a later piece it is the last token that the piece before predicted, read again as context.
The closing EOS is the document's own if the piece is its last, and a separator otherwise. A model's
documents end at EOS, so pieces of a row never see one another; nothing is predicted after EOS, so
nothing reads it either. BOS is never predicted; every other token of a document is predicted once.

Two things are scarce in a row: positions and patches. Documents with many patches for their length
(*dense* ones) run out of patches first, others of positions; a row of both kinds fills both.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, PAD_ID

IGNORE_LABEL = -100
"""What torchtitan's losses leave out."""
SMALL = 128
"""Of a row, 1 / SMALL is not worth cutting a document for."""


class Documents(NamedTuple):
    """Documents laid end to end."""

    text: np.ndarray
    """uint8: the UTF-8 bytes of all documents, one more byte before and two after them."""
    lengths_D: np.ndarray
    """int64: tokens of each document; all at least 2."""
    patch_lengths_P: np.ndarray | None
    """int32, tokens; the first patch of each document has one token. None: cut anywhere."""
    patches_D: np.ndarray | None
    """int64: patches of each document."""


class Rows(NamedTuple):
    """Which pieces make up each row. R rows, N pieces, in the order of the rows."""

    first_R: np.ndarray
    """R + 1 values: the first piece of each row, and N."""
    byte_N: np.ndarray
    """Where ``x[a]`` stands in :attr:`Documents.text`; some other byte if it is BOS."""
    tokens_N: np.ndarray
    """Positions that the piece takes."""
    opens_N: np.ndarray
    """Whether it is the first of its document: ``x[a]`` is BOS."""
    closes_N: np.ndarray
    """Whether it is the last of its document: ``x[b]`` is EOS."""
    patch_N: np.ndarray
    """The patch before those that are predicted, the leading 1 of the piece: ends with ``x[a]``."""
    patches_N: np.ndarray
    """Patches of the piece, its leading one included."""

    def __len__(self) -> int:
        return len(self.first_R) - 1


class _Head(NamedTuple):
    """What is left of a document: it begins with the patch before what is to be predicted."""

    document: int
    patch: int
    stop: int


class _Packer:
    """Fills rows with the heads of two queues, one of dense documents and one of the others."""

    def __init__(
        self,
        ends_P: Sequence[int],
        dense: list[_Head],
        sparse: list[_Head],
        tokens: int,
        patches: int,
    ):
        """
        Args:
            ends_P: tokens up to the end of each patch.
            dense, sparse: the queues; what comes first is at their ends.
            tokens, patches: what a row has room for.
        """
        self.ends = ends_P
        self.dense, self.sparse = dense, sparse
        self.tokens, self.patches = tokens, patches
        self.pieces: list[tuple[int, int, int]] = []
        """Document, leading patch, number of patches."""
        self.first_pieces = [0]

    def pack(self) -> None:
        while self.dense or self.sparse:
            self._fill_row()
            self.first_pieces.append(len(self.pieces))

    def _fill_row(self) -> None:
        tokens, patches = self.tokens, self.patches
        small_tokens, small_patches = tokens // SMALL, patches // SMALL
        while tokens > max(small_tokens, 1) and patches > max(small_patches, 1):
            if self.dense and self.sparse:
                taken = self._balance(self.dense[-1], self.sparse[-1], tokens, patches)
            elif self.dense or self.sparse:
                queue = self.dense or self.sparse
                taken = [(queue, self._most(queue[-1], tokens, patches))]
            else:
                return
            whole = [(queue, n) for queue, n in taken if n == queue[-1].stop - queue[-1].patch]
            for queue, n in whole or taken:
                if n:
                    tokens -= self._take(queue, n)
                    patches -= n
            if not whole:
                return

    def _take(self, queue: list[_Head], patches: int) -> int:
        """Put the first ``patches`` patches of a queue's head into the row; gives its tokens."""
        document, patch, stop = queue.pop()
        last = patch + patches - 1
        self.pieces.append((document, patch, patches))
        if last + 1 < stop:
            queue.append(_Head(document, last, stop))
        return self.ends[last] - self.ends[patch] + 1

    def _most(self, head: _Head, tokens: int, patches: int) -> int:
        """The most patches of a head that there is room for; 0 if there is for none."""
        _, patch, stop = head
        reach = bisect_right(self.ends, self.ends[patch] + tokens - 1, patch, stop) - patch
        most = min(reach, patches)
        return most if most > 1 else 0

    def _size(self, head: _Head, patches: int) -> int:
        """Tokens of the first ``patches`` patches of a head."""
        return self.ends[head.patch + patches - 1] - self.ends[head.patch] + 1 if patches else 0

    def _balance(
        self, dense: _Head, sparse: _Head, tokens: int, patches: int
    ) -> list[tuple[list[_Head], int]]:
        """How many patches of each head fill what is left of a row, both positions and patches."""
        ends, (_, first, stop) = self.ends, dense
        whole = stop - first
        # The more of the dense one, the fewer patches are left over when positions run out: look
        # for the number that leaves none, by secants, and by halves where these are slow.
        low, high, n = 0, self._most(dense, tokens, patches), 0
        slope = max(self._rate(dense) - self._rate(sparse), 1e-3)
        guess = (patches - tokens * self._rate(sparse)) / slope
        for attempt in range(20):
            at = ends[first] + int(guess) - 1
            n = min(max(bisect_right(ends, at, first, stop) - first, low), high)
            size = ends[first + n - 1] - ends[first] + 1 if n else 0
            left = patches - n - self._most(sparse, tokens - size, tokens)
            if abs(left) <= self.patches // (2 * SMALL) or low == high:
                break
            low, high = (n, high) if left > 0 else (low, n - 1)
            halves = self._size(dense, (low + high + 1) // 2)
            guess = size + left / slope if attempt < 4 else halves
        if n < whole and (n < 2 or self._size(dense, n) <= self.tokens // SMALL):
            n = 0
        rest = self._most(sparse, tokens - self._size(dense, n), patches - n)
        return [(self.dense, n), (self.sparse, rest)]

    def _rate(self, head: _Head) -> float:
        """Patches a token, of what is left of a document."""
        patches = head.stop - head.patch
        return patches / self._size(head, patches)


def pack_rows(documents: Documents, order_D: np.ndarray, tokens: int, patches: int | None) -> Rows:
    """Rows that hold every document once.

    Args:
        order_D: a permutation of the documents; those that come first go to the first rows.
        tokens: positions of a row.
        patches: the most patches of a row; None where documents have no patches.

    Raises:
        ValueError: a patch has more tokens than a row has room for; see :func:`cut_patches`.
    """
    ends_P: Sequence[int]
    if documents.patch_lengths_P is None or documents.patches_D is None:
        # A patch for every token: cut anywhere.
        patches_D, patches = documents.lengths_D, tokens
        ends_P = range(1, int(documents.lengths_D.sum()) + 1)
    else:
        assert patches is not None
        patches_D = documents.patches_D
        if documents.patch_lengths_P.max(initial=0) >= tokens:
            raise ValueError(f"patch_lengths: one does not fit in a row of {tokens} tokens")
        ends_P = documents.patch_lengths_P.cumsum(dtype=np.int64).data
    stop_D = patches_D.cumsum()
    dense_D = patches_D * tokens > documents.lengths_D * patches
    first = (stop_D - patches_D).tolist()
    stop = stop_D.tolist()
    # What comes first is taken from the end.
    queues = [
        [_Head(d, first[d], stop[d]) for d in order_D[dense_D[order_D] == dense][::-1].tolist()]
        for dense in (True, False)
    ]
    packer = _Packer(ends_P, queues[0], queues[1], tokens, patches)
    packer.pack()
    document_N, patch_N, patches_N = np.array(packer.pieces, np.int64).reshape(-1, 3).T
    last_N = patch_N + patches_N - 1
    if isinstance(ends_P, range):
        token_N, tokens_N = patch_N, patches_N
    else:
        ends = np.asarray(ends_P)
        token_N, tokens_N = ends[patch_N] - 1, ends[last_N] - ends[patch_N] + 1
    return Rows(
        first_R=np.array(packer.first_pieces),
        byte_N=token_N - 2 * document_N,  # two tokens of each document have no byte
        tokens_N=tokens_N,
        opens_N=patch_N == (stop_D - patches_D)[document_N],
        closes_N=last_N + 1 == stop_D[document_N],
        patch_N=patch_N,
        patches_N=patches_N,
    )


def join(parts: Sequence[Documents]) -> Documents:
    """Parts whose text has no bytes around it → documents laid end to end."""
    text = np.concatenate([np.zeros(1, np.uint8), *(p.text for p in parts), np.zeros(2, np.uint8)])
    lengths_D = np.concatenate([np.zeros(0, np.int64), *(part.lengths_D for part in parts)])
    lengths_P = [part.patch_lengths_P for part in parts if part.patch_lengths_P is not None]
    patches_D = [part.patches_D for part in parts if part.patches_D is not None]
    if parts and not lengths_P:
        return Documents(text, lengths_D, None, None)
    return Documents(
        text,
        lengths_D,
        np.concatenate([np.zeros(0, np.int32), *lengths_P]),
        np.concatenate([np.zeros(0, np.int64), *patches_D]),
    )


def cut_patches(documents: Documents, longest: int) -> Documents:
    """Documents whose patches above ``longest`` tokens are cut into such pieces and a rest."""
    lengths_P, patches_D = documents.patch_lengths_P, documents.patches_D
    if lengths_P is None or patches_D is None or lengths_P.max(initial=0) <= longest:
        return documents
    pieces_P = -(-lengths_P // longest)
    cut = np.full(int(pieces_P.sum()), longest, lengths_P.dtype)
    cut[pieces_P.cumsum() - 1] = lengths_P - (pieces_P - 1) * longest
    document_P = np.repeat(np.arange(len(patches_D)), patches_D)
    patches_D = np.bincount(document_P, pieces_P, len(patches_D)).astype(np.int64)
    return documents._replace(patch_lengths_P=cut, patches_D=patches_D)


def fill_rows(
    documents: Documents,
    rows: Rows,
    which: np.ndarray,
    input_BS: np.ndarray,
    labels_BS: np.ndarray,
    patch_lengths_BP: np.ndarray | None,
) -> None:
    """Write the rows ``which`` (B of them) into arrays of int64; padded with -1, -100 and 0."""
    first_B, last_B = rows.first_R[which], rows.first_R[which + 1]
    pieces_M = np.concatenate([np.arange(*ends) for ends in zip(first_B, last_B, strict=True)])
    row_M = np.repeat(np.arange(len(which)), last_B - first_B)
    byte_M, tokens_M = rows.byte_N[pieces_M], rows.tokens_N[pieces_M]
    end_M, used_B = _lay(documents.text, byte_M, tokens_M, row_M, input_BS)
    _lay(documents.text, byte_M + 1, tokens_M, row_M, labels_BS)
    input_BS += BYTE_OFFSET
    labels_BS += BYTE_OFFSET
    input_T, labels_T = input_BS.reshape(-1), labels_BS.reshape(-1)
    input_T[(end_M - tokens_M)[rows.opens_N[pieces_M]]] = BOS_ID
    input_T[end_M - 1] = EOS_ID
    labels_T[end_M[rows.closes_N[pieces_M]] - 2] = EOS_ID
    labels_T[end_M - 1] = IGNORE_LABEL
    for row, used in enumerate(used_B):
        input_BS[row, used:] = PAD_ID
        labels_BS[row, used:] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        assert documents.patch_lengths_P is not None
        patch_M, patches_M = rows.patch_N[pieces_M], rows.patches_N[pieces_M]
        end_M, _ = _lay(documents.patch_lengths_P, patch_M, patches_M, row_M, patch_lengths_BP)
        patch_lengths_BP.reshape(-1)[end_M - patches_M] = 1


def _lay(
    source: np.ndarray,
    start_M: np.ndarray,
    length_M: np.ndarray,
    row_M: np.ndarray,
    out_BX: np.ndarray,
) -> tuple[np.ndarray, list[int]]:
    """Copy stretches of ``source`` into rows, one after another, and zeros after them.

    Returns:
        Where each stretch ends, rows laid end to end, and how much of each row is used.
    """
    rows, width = out_BX.shape
    used_B = np.bincount(row_M, length_M, rows).astype(np.int64)
    before_B = used_B.cumsum() - used_B
    end_M = length_M.cumsum() + (np.arange(rows) * width - before_B)[row_M]
    blank = np.zeros(width, source.dtype)
    stretches: list[np.ndarray] = []
    row, used = 0, used_B.tolist()
    stop_M = start_M + length_M
    for owner, start, stop in zip(row_M.tolist(), start_M.tolist(), stop_M.tolist(), strict=True):
        if owner != row:
            stretches.append(blank[used[row] :])
            row = owner
        stretches.append(source[start:stop])
    stretches.append(blank[used[row] :])
    np.concatenate(stretches, out=out_BX.reshape(-1))
    return end_M, used


def empty_rows(
    input_BS: np.ndarray, labels_BS: np.ndarray, patch_lengths_BP: np.ndarray | None
) -> None:
    """Write rows that teach nothing: one EOS without label; models read no row without token."""
    input_BS[:] = PAD_ID
    input_BS[:, 0] = EOS_ID
    labels_BS[:] = IGNORE_LABEL
    if patch_lengths_BP is not None:
        patch_lengths_BP[:] = 0
        patch_lengths_BP[:, 0] = 1
