"""Reading documents piece by piece: the host's side, the same for every model that writes.

The host knows how many tokens and patches each row has read, so that positions and lengths are
never read back from the device. It waits for the device once per piece, to learn the tokens and
their entropies; then the boundary rule, which runs on the host, says which tokens end a patch.

Invariant: after a piece, all that is kept equals what reading the whole text at once would compute,
so that logits do not depend on how a text is cut into pieces. To take tokens back
(:meth:`Incremental.keep`) is to go back to smaller lengths; the next piece overwrites the rest.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.generation.graphs import StepRunner
from model.generation.kv_cache import power_of_2
from model.generation.lengths import Lengths
from model.generation.piece import Piece
from model.segments import NEWLINE_ID

LATER = 1 << 62
"""A position that no token has."""
ROOM = 64
"""Tokens and patches that room is made for at a time where steps run as graphs."""


class ReadingSteps(Protocol):
    """The steps of one model for one batch; what they keep is on the device."""

    piece: Piece

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers that shapes of all steps depend on, and that change."""

    logits_BMV: Tensor
    """Logits after each token of the piece, ``[batch, longest, vocab_size]`` float32."""

    def listen(self, columns: int, then: Callable[[], None] | None = None) -> None:
        """Take up the tokens of the piece and tell the host what it has to know; ``then`` is done
        as soon as the tokens are taken up."""

    def patch(self, patches: int, span: int) -> None:
        """Make the patches that ended in the piece: at most ``patches`` of a row, which gather from
        at most ``span`` bytes."""

    def predict(self, columns: int) -> None:
        """Compute :attr:`logits_BMV` for the tokens of the piece."""

    def repeat(self) -> None:
        """Take up again a token that was read, as the first of the piece, and predict."""

    def make_room(self, tokens: int, patches: int, span: int) -> bool:
        """Prepare for rows of so many tokens and patches, of which the last ``span`` tokens may be
        gathered from. Returns True if anything moved in memory."""

    def span(self, needed: int) -> int:
        """The span of a graph of :meth:`patch` that serves for so many bytes."""

    def take(
        self, row: int, other: Any, its_row: int, tokens: int, patches: int, begin: int
    ) -> None:
        """Go on in a row where other steps of the same model are in one of their rows, of so many
        tokens and patches; the open patch begins at token ``begin``. There must be room for
        them."""


class Incremental:
    """A batch of documents that are read on. Rows are independent of one another.

    Lengths are numpy arrays: of so few numbers, a torch tensor takes three times as long.
    """

    def __init__(self, steps: ReadingSteps, runner: StepRunner, *, reset_at_newline: bool = False):
        """
        Args:
            reset_at_newline: the entropy model's context starts again after each newline.
        """
        self.steps, self.runner, self.piece = steps, runner, steps.piece
        self._reset = reset_at_newline
        self.lengths = Lengths.of_nothing(self.piece.batch, self.piece.window)
        # The last piece: lengths before it, its size, its positions and what was heard of it.
        self._before, self._counts_B = self.lengths, self.lengths.read_B
        self._position_BM = self.tokens_BM = np.zeros((self.piece.batch, 0), np.int64)
        self._h_BM = self._position_BM.astype(np.float32)
        self._ends_BM = self._position_BM.astype(bool)
        self._bounds_BX, self._segment_B = self.lengths.start_BW, self.lengths.segment_B
        self._any_ended = False
        self.unmade_B = np.zeros(self.piece.batch, bool)
        """Rows whose last token ended a patch that is still to be made."""
        self._spare = 0
        """Tokens that there is room for, by the row that has least."""
        self._row_B = np.arange(self.piece.batch)
        self._column_M = np.arange(self.piece.longest)
        self._offset_W = np.arange(self.piece.window)

    @torch.inference_mode()
    def read(self, tokens_BM: np.ndarray, counts_B: np.ndarray) -> Tensor:
        """Logits after each of the next tokens, ``[batch, piece, vocab_size]`` float32.

        Args:
            tokens_BM: int64 ids, right-padded with any id; at most as many columns as a piece may
                have.
            counts_B: how many tokens each row has.

        Raises:
            ValueError: the piece is longer: caches would lose what it still sees.
        """
        columns = tokens_BM.shape[1]
        if columns > self.piece.longest:
            raise ValueError(f"tokens: a piece has at most {self.piece.longest}, got {columns}")
        # A row that has fewer tokens repeats its last one.
        last_BM = np.minimum(self._column_M[:columns], counts_B[:, None] - 1)
        repeated_BM = np.take_along_axis(tokens_BM, last_BM.clip(0), 1)
        repeated_BM = np.where(last_BM >= 0, repeated_BM, self.lengths.token_B[:, None])
        self.runner.put(self.piece.tokens_BM[:, :columns], repeated_BM)
        self.open(counts_B, columns)
        self.runner.run_once(self.steps.listen, columns)
        self.close(graphs=False)
        self.runner.run_once(self.steps.predict, columns)
        return self.steps.logits_BMV[:, :columns].clone()

    def open(self, counts_B: np.ndarray, columns: int, noise_BV: np.ndarray | None = None) -> None:
        """Begin a piece: tell the steps which tokens they read.

        Args:
            counts_B: how many tokens each row has.
            columns: the most that a row has.
            noise_BV: what the next tokens are drawn with, if it has changed.
        """
        lengths = self._before = self.lengths
        self._counts_B = counts_B
        behind_BM = np.minimum(self._column_M[:columns], counts_B[:, None] - 1)
        self._position_BM = np.maximum(lengths.read_B[:, None] + behind_BM, 0)
        self._bounds_BX, self._segment_B = lengths.start_BW, lengths.segment_B
        if self._reset:
            after_newline_B = (lengths.token_B == NEWLINE_ID) & (counts_B > 0)
            self._segment_B = np.where(after_newline_B, lengths.read_B, lengths.segment_B)
        self._make_room(0)
        self._tell(lengths.patches_B[:, None] - 1, noise_BV=noise_BV)

    def _tell(
        self,
        latest_BM: np.ndarray,
        ended_B: np.ndarray | int = 0,
        end_B: np.ndarray | int = 0,
        noise_BV: np.ndarray | None = None,
    ) -> None:
        fixed = self._segment_B, self._before.patches_B, ended_B, end_B, self._counts_B
        lists = self._position_BM, latest_BM, self._bounds_BX
        self.runner.put(*self.piece.told(fixed, lists, noise_BV))

    def _make_room(self, patches: int) -> None:
        """Prepare for the piece, in which at most so many patches of a row end.

        As graphs, steps keep their shapes: then there is room for further pieces, too, so that this
        is seldom done. A token makes a row longer by one, its patches and its open ones by at most
        one.
        """
        columns = self._position_BM.shape[1]
        if self._spare >= columns:
            self._spare -= columns
            return
        before, after_B = self._before, self._position_BM[:, -1] + 1
        span = int((after_B - before.start_BW[:, 0]).max())
        needed = [int(after_B.max()), int(before.patches_B.max()) + patches, span]
        if self.runner.records:
            needed[1] += columns - patches
            room = [most + -most % ROOM for most in needed]
            self._spare = min(more - most for more, most in zip(room, needed, strict=True))
            needed = room
        if self.steps.make_room(*needed):
            self.runner.forget()
        self.runner.shape = self.steps.shape

    def close(self, *, graphs: bool = True) -> None:
        """Learn the tokens of the piece and make the patches that they end; the host waits for the
        device once. All tokens are kept until :meth:`keep` says otherwise.

        Args:
            graphs: run the steps as graphs.
        """
        self._learn()
        self._any_ended = bool(self._ends_BM.any())
        if self._any_ended:
            self._make_patches(graphs and self.runner.records)
        self.keep(self._counts_B)

    def hear(self) -> None:
        """Learn the tokens of a piece of one token per row, and keep them; the host waits for the
        device once. Rows in which a patch ended are now of :attr:`unmade_B`: what is predicted in
        them is wrong until :meth:`make_patches`, and they must read no further token before it.
        They can take part in pieces without one, and read their last token again."""
        self._learn()
        self._any_ended = False
        self.keep(self._counts_B)
        self.unmade_B = self.unmade_B | self._ends_BM[:, 0]

    def make_patches(self) -> None:
        """Make the patches of :attr:`unmade_B`, each of which ends with the last token of its
        row."""
        ended_B = self.unmade_B.astype(np.int64)
        self._ends_BM = self.unmade_B[:, None]
        self._make_patches(self.runner.records)
        # Until now these patches were none of the lengths.
        patches_B, start_BW = self._with_patches(ended_B)
        self.lengths = replace(self.lengths, patches_B=patches_B, start_BW=start_BW)
        self.unmade_B = np.zeros_like(self.unmade_B)

    def _learn(self) -> None:
        columns = self._position_BM.shape[1]
        heard_BM2 = self.runner.fetch(self.piece.heard_BM2[:, :columns])
        self.tokens_BM, self._h_BM = heard_BM2[:, :, 0].astype(np.int64), heard_BM2[:, :, 1]
        inside_BM = self._column_M[:columns] < self._counts_B[:, None]
        if np.isnan(self._h_BM).any() and np.isnan(self._h_BM[inside_BM]).any():
            raise FloatingPointError(
                "entropy_model: gave an entropy that is not a number; its weights are broken, or "
                "overflow in the dtype it is run in"
            )
        self._ends_BM = self._patch_ends() & inside_BM

    def _patch_ends(self) -> np.ndarray:
        """Mark each token of the piece that ends a patch."""
        return np.zeros(self.tokens_BM.shape, bool)

    def _make_patches(self, graphs: bool) -> None:
        ends_BM, before, position_BM = self._ends_BM, self._before, self._position_BM
        so_far_BM = ends_BM.cumsum(1)
        ended_B = so_far_BM[:, -1]
        patches = int(ended_B.max())
        if graphs:  # shapes that come again
            patches = min(power_of_2(patches), self.piece.longest)
        row_X, column_X = ends_BM.nonzero()
        after_BX = np.full((len(ends_BM), patches), LATER)
        after_BX[row_X, so_far_BM[row_X, column_X] - 1] = position_BM[row_X, column_X] + 1
        self._bounds_BX = np.concatenate([before.start_BW, after_BX], 1)
        end_B = (ends_BM * position_BM).max(1)
        span = int(((end_B + 1 - before.start_BW[:, 0]) * (ended_B > 0)).max())
        if graphs:
            span = self.steps.span(span)
        if not self.runner.records:
            self._make_room(patches)
        self._tell(before.patches_B[:, None] + so_far_BM - 1, ended_B, end_B)
        run = self.runner.run if graphs else self.runner.run_once
        run(self.steps.patch, patches, span)

    def keep(self, kept_B: np.ndarray) -> None:
        """Take back the last piece except for its first tokens, ``kept_B`` of each row."""
        before, columns = self._before, self._position_BM.shape[1]
        patches_B, start_BW = before.patches_B, before.start_BW
        if self._any_ended:
            ended_B = (self._ends_BM & (self._column_M[:columns] < kept_B[:, None])).sum(1)
            patches_B, start_BW = self._with_patches(ended_B)
        last_B, some_B = np.maximum(kept_B - 1, 0), kept_B > 0
        segment_B = before.segment_B
        if self._reset:
            newline_BM = self.tokens_BM == NEWLINE_ID
            newline_BM &= self._column_M[:columns] < last_B[:, None]
            after_B = (newline_BM * (self._position_BM + 1)).max(1)
            segment_B = np.where(some_B, np.maximum(self._segment_B, after_B), segment_B)
        self.lengths = Lengths(
            before.read_B + kept_B,
            patches_B,
            start_BW,
            segment_B,
            np.where(some_B, self.tokens_BM[self._row_B, last_B], before.token_B),
            np.where(some_B, self._h_BM[self._row_B, last_B], before.h_B),
        )

    def _with_patches(self, ended_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Patches of each row, and starts of the last ones, after so many of the piece."""
        window_BW = ended_B[:, None] + self._offset_W
        start_BW = self._bounds_BX[self._row_B[:, None], window_BW]
        return self._before.patches_B + ended_B, start_BW

    def recall(self, noise_BV: np.ndarray | None = None) -> None:
        """Make the last token of every row the first of the piece, for ``repeat``.

        Args:
            noise_BV: what the tokens after it are drawn with, if it has changed.
        """
        lengths = self._before = self.lengths
        self._counts_B = np.zeros_like(lengths.read_B)
        self._position_BM = np.maximum(lengths.read_B - 1, 0)[:, None]
        self._bounds_BX, self._segment_B = lengths.start_BW, lengths.segment_B
        self._make_room(0)
        self._tell(lengths.patches_B[:, None] - 1, noise_BV=noise_BV)
        self.runner.put(self.piece.tokens_BM[:, 0], lengths.token_B)

    def take(self, row: int, other: "Incremental", its_row: int) -> None:
        """Go on in a row where another batch of the same model is in one of its rows."""
        lengths, longest = other.lengths, self.piece.longest
        read, patches = int(lengths.read_B[its_row]), int(lengths.patches_B[its_row])
        span = read - int(lengths.start_BW[its_row, 0])
        if self.steps.make_room(read + longest, patches + longest, span + longest):
            self.runner.forget()
        self._spare = 0
        self.steps.take(
            row, other.steps, its_row, read, patches, int(lengths.start_BW[its_row, -1])
        )
        self.lengths.put(row, lengths, its_row)
        self.unmade_B[row] = False

    def drop(self, row: int) -> None:
        """Begin a row again, with nothing read."""
        self.lengths.put(row, Lengths.of_nothing(1, self.piece.window), 0)
        self.unmade_B[row] = False
