"""Entropies of documents that are read piece by piece; they equal those of whole documents.

So do the logits of an entropy model, which can write by itself."""

from typing import Protocol

import torch
from torch import Tensor

from model.entropies import batch_entropies
from model.entropy_model import EntropyModel, entropy_of
from model.generation.kv_cache import KeyValueCache
from model.layers.transformer import run_blocks
from model.ngram import NGramEntropyModel
from model.segments import NEWLINE_ID
from model.tokenizer import PAD_ID


class IncrementalEntropies(Protocol):
    """Reads the next pieces of a batch; the last piece can be taken back in part."""

    def read(self, tokens_BM: Tensor, read_B: Tensor) -> Tensor:
        """The entropy after each token of the next piece, ``[batch, piece]`` float32, nats.

        Args:
            tokens_BM: right-padded with any id.
            read_B: tokens that each row has read before.
        """

    def keep(self, kept_B: Tensor) -> None:
        """Take back the last piece except for its first tokens, ``kept_B`` of each row."""


def incremental_entropies(
    model: EntropyModel | NGramEntropyModel, reset_at_newline: bool
) -> IncrementalEntropies:
    """A reader for a model.

    Args:
        reset_at_newline: context starts again after each newline.
    """
    if isinstance(model, EntropyModel):
        return _TransformerReader(model, reset_at_newline)
    return _NGramEntropies(model, reset_at_newline)


class IncrementalEntropyModel:
    """A batch of documents that an entropy model reads on, as a model that writes: see
    :class:`model.generation.incremental_blt.IncrementalBLT`."""

    def __init__(self, model: EntropyModel, batch: int):
        """
        Args:
            batch: how many documents there are.
        """
        self.model = model
        self._reader = _TransformerReader(model, reset_at_newline=False)
        self._before_B = self.read_B = torch.zeros(batch, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def read(self, tokens_BM: Tensor, counts_B: Tensor) -> Tensor:
        """Logits after each of the next tokens, ``[batch, piece, vocab_size]`` float32.

        Args:
            tokens_BM: at most PIECE columns, right-padded with any id.
            counts_B: how many tokens each row has.
        """
        self._before_B = self.read_B
        logits_BMV = self._reader.logits(tokens_BM, self.read_B)
        self.keep(counts_B)
        return logits_BMV.float()

    def keep(self, kept_B: Tensor) -> None:
        """Take back the last piece except for its first tokens, ``kept_B`` of each row."""
        self.read_B = self._before_B + kept_B
        self._reader.keep(kept_B)


class _TransformerReader:
    def __init__(self, model: EntropyModel, reset_at_newline: bool):
        self._model, self._reset = model, reset_at_newline
        self._cache = KeyValueCache(model.config.n_layers, model.config.window)
        self._segment_start_BX = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        """The start of the segment of each token of the last piece, and of the token after it."""
        self._kept_B = torch.zeros(1, dtype=torch.int64, device=model.device)

    def read(self, tokens_BM: Tensor, read_B: Tensor) -> Tensor:
        return entropy_of(self.logits(tokens_BM, read_B).flatten(0, 1)).view(tokens_BM.shape)

    def logits(self, tokens_BM: Tensor, read_B: Tensor) -> Tensor:
        """``[batch, piece, vocab_size]``, in the weights' dtype."""
        model, (batch, columns) = self._model, tokens_BM.shape
        tokens_BM, read_B = tokens_BM.to(model.device), read_B.to(model.device)
        position_BM = read_B[:, None] + torch.arange(columns, device=read_B.device)
        before_B1 = self._segment_start_BX.expand(batch, -1).gather(
            1, self._kept_B.expand(batch)[:, None]
        )
        newline_BM = (tokens_BM == NEWLINE_ID) & self._reset
        after_BM = torch.where(newline_BM, position_BM + 1, 0)
        self._segment_start_BX = torch.cat([before_B1, after_BM], 1).cummax(1).values
        # Context and positions also start again after every context_length tokens.
        place_BM = (position_BM - self._segment_start_BX[:, :-1]) % model.context_length
        x_TD = run_blocks(
            model.layers,
            model.tok_embeddings(tokens_BM.flatten()),
            model.rotary(place_BM.flatten()),
            self._cache.attends(read_B, columns, place_BM),
        )
        logits_TV: Tensor = model.output(model.norm(x_TD))
        return logits_TV.view(batch, columns, -1)

    def keep(self, kept_B: Tensor) -> None:
        self._kept_B = kept_B.to(self._model.device)


class _NGramEntropies:
    """Scores each piece together with the few tokens before it, which are all its context."""

    def __init__(self, model: NGramEntropyModel, reset_at_newline: bool):
        self._model, self._reset = model, reset_at_newline
        self._rows_BX: Tensor | None = None
        """The context and the last piece; padding is on the left of rows that have read less."""
        self._kept_B = torch.zeros(1, dtype=torch.int64)

    def read(self, tokens_BM: Tensor, read_B: Tensor) -> Tensor:
        tokens_BM, (batch, columns) = tokens_BM.cpu(), tokens_BM.shape
        order = self._model.order
        if self._rows_BX is None:
            self._rows_BX = torch.full((batch, order), PAD_ID)
        kept_BC = self._kept_B.expand(batch)[:, None] + torch.arange(order)
        self._rows_BX = torch.cat([self._rows_BX.gather(1, kept_BC), tokens_BM], 1)
        # The batch form wants padding on the right: rotate the rows.
        missing_B1 = (self._rows_BX == PAD_ID).sum(1, keepdim=True)
        turned_BX = (torch.arange(order + columns) + missing_B1) % (order + columns)
        h_BX = batch_entropies(
            self._model, self._rows_BX.gather(1, turned_BX), reset_at_newline=self._reset
        )
        return h_BX.gather(1, torch.arange(order, order + columns) - missing_B1)

    def keep(self, kept_B: Tensor) -> None:
        self._kept_B = kept_B.cpu()
