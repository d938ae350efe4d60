"""Entropies of documents that are read piece by piece; they equal those of whole documents."""

from collections.abc import Callable

import torch
from torch import Tensor

from model.entropies import batch_entropies
from model.entropy_model import EntropyModel
from model.generation.cached_blocks import CachedBlocks, JoinedWeights
from model.generation.fused import angles, entropy
from model.generation.piece import Piece
from model.segments import NEWLINE_ID
from model.short_context import ShortContextModel
from model.tokenizer import PAD_ID


class CachedEntropyModel:
    """An entropy model that reads the tokens of a :class:`Piece`, in steps of fixed shapes."""

    def __init__(
        self, model: EntropyModel, piece: Piece, weights: JoinedWeights, *, reset_at_newline: bool
    ):
        """
        Args:
            reset_at_newline: context starts again after each newline.
        """
        self.model, self.reset, self.piece = model, reset_at_newline, piece
        self.blocks = CachedBlocks(
            model.layers, piece.batch, model.config.window, piece.longest, weights
        )

    def logits(self, columns: int) -> Tensor:
        """Logits after each token, ``[batch, columns, vocab_size]``, in the weights' dtype."""
        model, position_BM = self.model, self.piece.positions(columns)
        # Context and positions also start again after every context_length tokens.
        place_BM = (position_BM - self._segment_starts(columns)) % model.context_length
        x_TD = model.tok_embeddings(self.piece.tokens_BM[:, :columns].flatten())
        view = self.blocks.view(position_BM, place_BM)
        x_TD = self.blocks.run(x_TD, angles(place_BM.flatten(), model.rotary.bits_F), view)
        logits_TV: Tensor = model.output(model.norm(x_TD))
        return logits_TV.view(*position_BM.shape, logits_TV.shape[-1])

    def _segment_starts(self, columns: int) -> Tensor:
        before_B1 = self.piece.segment_B[:, None]
        if columns == 1 or not self.reset:
            return before_B1
        newline_BM = self.piece.tokens_BM[:, : columns - 1] == NEWLINE_ID
        position_BM = self.piece.positions(columns)
        # A newline that is repeated is not a token after itself.
        follows_BM = position_BM[:, 1:] > position_BM[:, :-1]
        start_BM = torch.where(newline_BM & follows_BM, position_BM[:, 1:], 0)
        return torch.cat([before_B1, start_BM], 1).cummax(1).values

    def score(self, columns: int) -> None:
        """Tell the host the entropy after each token."""
        h_T = entropy(self.logits(columns).flatten(0, 1))
        self.piece.heard_BM2[:, :columns, 1] = h_T.view(-1, columns)


class EntropyModelSteps:
    """The steps in which an entropy model reads on as a model that writes; there are no patches."""

    def __init__(
        self,
        model: EntropyModel,
        piece: Piece,
        weights: JoinedWeights,
        *,
        reset_at_newline: bool = False,
    ):
        """
        Args:
            reset_at_newline: context starts again after each newline.
        """
        self.piece = piece
        self._model = CachedEntropyModel(model, piece, weights, reset_at_newline=reset_at_newline)
        self.logits_BMV = torch.zeros(
            piece.batch, piece.longest, model.config.vocab_size, device=model.device
        )

    def listen(self, columns: int, then: Callable[[], None] | None = None) -> None:
        """Read tokens, and say to the host which.

        Args:
            then: what is to be done after that.
        """
        self.piece.heard_BM2[:, :columns, 0] = self.piece.tokens_BM[:, :columns]
        self.logits_BMV[:, :columns] = self._model.logits(columns)
        if then is not None:
            then()

    def patch(self, patches: int, span: int) -> None:
        """Never called: no patch ends."""
        raise AssertionError("an entropy model has no patches")

    def predict(self, columns: int) -> None:
        """The logits are there already."""

    def repeat(self) -> None:
        """Read the last token again."""
        self.listen(1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers that shapes of all steps depend on, and that change."""
        return (self._model.blocks.cache.used,)

    def make_room(self, tokens: int, patches: int, span: int) -> bool:
        """Prepare for rows of so many tokens."""
        return self._model.blocks.cache.make_room(tokens)

    def span(self, needed: int) -> int:
        """As many; nothing is gathered."""
        return needed

    def take(
        self, row: int, other: "EntropyModelSteps", its_row: int, tokens: int, _: int, __: int
    ) -> None:
        """Go on in a row where other steps are in one of their rows, of so many tokens."""
        its = other._model.blocks.cache.ring
        self._model.blocks.cache.ring.take(row, its, its_row, tokens)


class ShortContextReader:
    """Scores each piece together with the few tokens before it, which are all its context. It runs
    on the host."""

    def __init__(self, model: ShortContextModel, batch: int, *, reset_at_newline: bool):
        self._model, self._reset = model, reset_at_newline
        # The context, and the last piece; padding is on the left of rows that have read less.
        self._rows_BX = torch.full((batch, model.order), PAD_ID)
        self._kept_B = torch.zeros(batch, dtype=torch.int64)

    def read(self, tokens_BM: Tensor) -> Tensor:
        """The entropy after each token of the next piece, ``[batch, piece]`` float32, nats.

        Args:
            tokens_BM: ids on the CPU, right-padded with any id.
        """
        order, columns = self._model.order, tokens_BM.shape[1]
        self._rows_BX = torch.cat([self._context(), tokens_BM], 1)
        # The batch form wants padding on the right: rotate the rows.
        missing_B1 = (self._rows_BX == PAD_ID).sum(1, keepdim=True)
        turned_BX = (torch.arange(order + columns) + missing_B1) % (order + columns)
        h_BX = batch_entropies(
            self._model, self._rows_BX.gather(1, turned_BX), reset_at_newline=self._reset
        )
        return h_BX.gather(1, torch.arange(order, order + columns) - missing_B1)

    def keep(self, kept_B: Tensor) -> None:
        """Take back the last piece except for its first tokens, ``kept_B`` of each row."""
        self._kept_B = kept_B

    def take(self, row: int, other: "ShortContextReader", its_row: int) -> None:
        """Go on in a row where another reader is in one of its rows."""
        context_BC = self._context()
        context_BC[row] = other._context()[its_row]
        self._rows_BX, self._kept_B = context_BC, torch.zeros_like(self._kept_B)

    def _context(self) -> Tensor:
        place_BC = self._kept_B[:, None] + torch.arange(self._model.order)
        return self._rows_BX.gather(1, place_BC)
