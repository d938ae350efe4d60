"""Documents that begin alike → trees whose branches leave out what was read before. Plain numpy.

Requests of a task often share a context: four continuations of one question, or a hundred
questions after the same examples. In alphabetical order, documents that begin alike are neighbours.
Each one becomes a *branch*: what it does not share with the document before it, from the beginning
of a patch on, so that shared patches are whole. A *tree* is a run of branches of which the first
shares nothing. :mod:`model.layers.tree_attention` says how branches see what they continue. With
patches marked by bars::

    |The |sky |is |blue     is read whole
    |The |sky |is |bright   shares "The sky is b", branches before the patch "bright"
    |The |sea               shares "The s", branches before "sea"
    |Water                  begins the next tree
"""

from typing import NamedTuple

import numpy as np

from pipeline.evaluate.rows import RowSize

LEAST_SHARED = 16
"""Tokens that are worth a branch."""


class Branches(NamedTuple):
    """Documents in their order, and the part of each that is a branch."""

    first_D: np.ndarray
    """int64: index of the document's first token among those of all documents."""
    tokens_D: np.ndarray
    """int64: tokens that are read of it: all but EOS."""
    shared_D: np.ndarray
    """int64: tokens that are read with the document before; 0 where a tree begins."""
    patches_D: np.ndarray
    """int64: patches of the branch."""

    def trees(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The number of each tree's first branch, and the tokens and the patches of each tree."""
        (first_N,) = (self.shared_D == 0).nonzero()
        if not len(first_N):
            return first_N, first_N, first_N
        tokens_N = np.add.reduceat(self.tokens_D - self.shared_D, first_N)
        return first_N, tokens_N, np.add.reduceat(self.patches_D, first_N)

    def of_trees(self, tree_G: np.ndarray) -> "Branches":
        """The branches of these trees, tree by tree."""
        (first_N,) = (self.shared_D == 0).nonzero()
        count_G = np.diff(first_N, append=len(self.shared_D))[tree_G]
        shift_G = first_N[tree_G] - (count_G.cumsum() - count_G)
        number = np.arange(int(count_G.sum())) + np.repeat(shift_G, count_G)
        return Branches(*(values[number] for values in self))


def grow_trees(
    tokens_T: np.ndarray, lengths_D: np.ndarray, starts_T: np.ndarray, most: RowSize
) -> Branches:
    """Find what each document shares with the one before it.

    Args:
        tokens_T: ids; each document is BOS + bytes + EOS. In alphabetical order they share most.
        starts_T: marks the tokens that start a patch. Where neighbours that should have the same
            patches do not (entropies are rounded), they share what comes before.
        most: a tree that would outgrow this is ended before it does.
    """
    first_D = lengths_D.cumsum() - lengths_D
    read_D = lengths_D - 1
    (start_P,) = starts_T.nonzero()
    until_D = np.searchsorted(start_P, first_D + read_D)
    patches_D = until_D - np.searchsorted(start_P, first_D)
    shared_D = np.zeros_like(first_D)
    tokens, patches = 0, 0
    for number, (first, read, of_document) in enumerate(
        zip(first_D.tolist(), read_D.tolist(), patches_D.tolist(), strict=True)
    ):
        shared = 0
        if number:
            before = int(first_D[number - 1])
            alike = _alike(tokens_T, before, first, min(read, int(read_D[number - 1])) - 1)
            # A patch has to begin in both.
            alike = min(alike, _alike(starts_T, before, first, alike + 1) - 1)
            patch = int(np.searchsorted(start_P, first + max(alike, 0), side="right")) - 1
            shared = int(start_P[patch]) - first
            own = until_D[number] - patch
            if (
                shared < LEAST_SHARED
                or tokens + read - shared > most.tokens
                or patches + own >= most.patches
            ):
                shared = 0
        if not shared:
            own, tokens, patches = of_document, 0, 0
        tokens, patches = tokens + read - shared, patches + own
        shared_D[number], patches_D[number] = shared, own
    return Branches(first_D, read_D, shared_D, patches_D)


def _alike(values_T: np.ndarray, one: int, other: int, most: int) -> int:
    """How many values from two places on are the same, at most ``most``."""
    differs = values_T[one : one + most] != values_T[other : other + most]
    return int(differs.argmax()) if differs.any() else most


class TreeRows(NamedTuple):
    """R rows of branches, as a model reads them, T tokens each.

    X stands for the tokens of all documents of these rows, each one whole: the hashes of a branch's
    first n-grams reach back into what it shares.
    """

    read_X: np.ndarray
    """int64 ids."""
    position_X: np.ndarray
    """int64: position of each token in its document."""
    at_X: np.ndarray
    """int64: index of the token among those of all documents."""
    original_X: np.ndarray
    """int64: number in X of the token that is read for this one."""
    place_X: np.ndarray
    """int64: where that is, in the rows laid end to end."""
    x_RT: np.ndarray
    """int32: the number in X of each token of the rows; 0 for padding."""
    tokens_RT: np.ndarray
    """int32 ids; 0 (BOE) for padding."""
    position_RT: np.ndarray
    """int32: position of each token in its document."""
    last_RT: np.ndarray
    """int32: place in the row of the last token that follows it in a document."""
    tokens_R: np.ndarray
    """int64: tokens of each row without padding."""


class PatchRows(NamedTuple):
    """The patches of :class:`TreeRows`, N of each row."""

    own_RT: np.ndarray
    """int32: the patch of each token; the row's last patch for padding."""
    known_RT: np.ndarray
    """int32: the latest patch that is complete when the next token is predicted."""
    position_RN: np.ndarray
    """int32: position of each patch in its document."""
    last_RN: np.ndarray
    """int32: number in the row of the last patch that follows it in a document."""
    patches_R: np.ndarray
    """int64: patches of each row without padding."""


def fill_tree_rows(
    branches: Branches, row_D: np.ndarray, width: int | None, tokens_T: np.ndarray
) -> TreeRows:
    """Write branches into rows.

    Args:
        branches: by row; whole trees.
        row_D: the row of each: 0 to R - 1, rising.
        width: tokens of the rows; None for what they need.
        tokens_T: ids of all documents.
    """
    first_D, read_D, shared_D, _ = branches
    end_D = read_D.cumsum()
    begin_D = end_D - read_D
    position_X = np.arange(int(end_D[-1])) - np.repeat(begin_D, read_D)
    at_X = position_X + np.repeat(first_D, read_D)
    is_own_X = position_X >= np.repeat(shared_D, read_D)
    tokens_R = np.bincount(row_D, read_D - shared_D).astype(np.int64)
    width = width or int(tokens_R.max())
    place_X = _places(is_own_X, np.repeat(row_D, read_D), tokens_R, width)
    original_X, last_X = _follow(begin_D, read_D, shared_D, place_X[end_D - 1])
    place_X = place_X[original_X]
    (own,) = is_own_X.nonzero()
    last_RT = np.tile(np.arange(width, dtype=np.int32), (len(tokens_R), 1))
    last_RT.reshape(-1)[place_X[own]] = last_X[own] % width
    shape = len(tokens_R), width
    return TreeRows(
        read_X=tokens_T[at_X].astype(np.int64),
        position_X=position_X,
        at_X=at_X,
        original_X=original_X,
        place_X=place_X,
        x_RT=_filled(shape, place_X[own], own),
        tokens_RT=_filled(shape, place_X[own], tokens_T[at_X[own]]),
        position_RT=_filled(shape, place_X[own], position_X[own]),
        last_RT=last_RT,
        tokens_R=tokens_R,
    )


def fill_patch_rows(rows: TreeRows, patches: int | None, starts_T: np.ndarray) -> PatchRows:
    """Number the patches of rows.

    Args:
        patches: of each row; None for what they need.
        starts_T: as for :func:`grow_trees`.
    """
    width, count = rows.tokens_RT.shape[1], len(rows.tokens_R)
    starts_X = starts_T[rows.at_X]
    patch_X = starts_X.cumsum() - 1
    (first_P,) = starts_X.nonzero()
    is_own_X = rows.original_X == np.arange(len(starts_X))
    # A document's row is that of any token that is read for it.
    row_P = rows.place_X[first_P] // width
    patches_R = np.bincount(row_P, is_own_X[first_P], count).astype(np.int64)
    patches = patches or int(patches_R.max()) + 1
    place_P = _places(is_own_X[first_P], row_P, patches_R, patches)
    place_P = place_P[patch_X[rows.original_X[first_P]]]
    (own,) = is_own_X.nonzero()
    own_RT = np.full((count, width), patches - 1, np.int32)
    own_RT.reshape(-1)[rows.place_X[own]] = (place_P % patches)[patch_X[own]]
    known_X = patch_X + starts_T[rows.at_X + 1] - 1
    (first,) = (rows.position_X == 0).nonzero()
    before_D = patch_X[first]
    position_P = np.arange(len(first_P)) - np.repeat(
        before_D, np.diff(before_D, append=len(first_P))
    )
    (own_P,) = is_own_X[first_P].nonzero()
    place_N, token_N = place_P[own_P], rows.place_X[first_P[own_P]]
    last_N = token_N - token_N % width + rows.last_RT.reshape(-1)[token_N]
    last_RN = np.tile(np.arange(patches, dtype=np.int32), (count, 1))
    last_RN.reshape(-1)[place_N] = own_RT.reshape(-1)[last_N]
    return PatchRows(
        own_RT=own_RT,
        known_RT=_filled((count, width), rows.place_X[own], (place_P % patches)[known_X[own]]),
        position_RN=_filled((count, patches), place_N, position_P[own_P]),
        last_RN=last_RN,
        patches_R=patches_R,
    )


def _filled(shape: tuple[int, int], places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows with values at these places, int32, and 0 elsewhere."""
    filled = np.zeros(shape, np.int32)
    filled.reshape(-1)[places] = values
    return filled


def _places(is_own: np.ndarray, row: np.ndarray, counts_R: np.ndarray, width: int) -> np.ndarray:
    """The places of things that are written one after the other into rows of ``width``; those of
    things that are not written have no meaning."""
    before_R = counts_R.cumsum() - counts_R
    places: np.ndarray = is_own.cumsum() - 1 - before_R[row] + row * width
    return places


def _follow(
    begin_D: np.ndarray, read_D: np.ndarray, shared_D: np.ndarray, end_D: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Follow the trees branch by branch.

    The *path* holds, for the document at hand, where each of its tokens is read. The next document
    shares a beginning of it, and nothing follows the rest any more.

    Args:
        begin_D: number in X of each document's first token.
        read_D, shared_D: as in :class:`Branches`.
        end_D: place of each document's last token.

    Returns:
        for each token of X the number in X of the token that is read for it, and (of tokens that
        are read) the place of the last token that follows it.
    """
    total = int(begin_D[-1] + read_D[-1])
    original_X, last_X = np.arange(total), np.zeros(total, np.int64)
    path = np.zeros(0, np.int64)
    for begin, read, shared, end in zip(
        begin_D.tolist(), read_D.tolist(), shared_D.tolist(), [0, *end_D[:-1].tolist()], strict=True
    ):
        last_X[path[shared:]] = end
        original_X[begin : begin + shared] = path[:shared]
        path = original_X[begin : begin + read]
    last_X[path] = end_D[-1]
    return original_X, last_X
