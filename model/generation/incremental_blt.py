"""Models that read on and write: a BLT with what places its patches, or an entropy model alone."""

import numpy as np
import torch

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.generation.blt_steps import BLTSteps
from model.generation.cached_blocks import JoinedWeights
from model.generation.graphs import StepRunner
from model.generation.incremental import Incremental
from model.generation.incremental_entropies import (
    CachedEntropyModel,
    EntropyModelSteps,
    ShortContextReader,
)
from model.generation.kv_cache import PIECE
from model.generation.piece import Piece
from model.layers.transformer import check_plain_layers
from model.patcher import Patcher
from model.short_context import ShortContextModel


def check_patching(
    model: BLT, entropy_model: EntropyModel | ShortContextModel | None, patcher: Patcher
) -> None:
    """Check that a BLT can read on with this rule and entropy model.

    Raises:
        ValueError: the rule needs an entropy model or the whole document, or starts no patch at
            token 1, as BLT needs it; or the models are on different devices.
    """
    if patcher.reads_entropies and entropy_model is None:
        raise ValueError(f"entropy_model: the {patcher.rule} rule needs one")
    if patcher.needs_whole_document:
        raise ValueError(f"patcher: the {patcher.rule} rule chooses among a whole document")
    if not patcher.boundary_rule.first_starts.get(1):
        raise ValueError(f"patcher: the {patcher.rule} rule as published has no patch at token 1")
    if isinstance(entropy_model, EntropyModel) and entropy_model.device != model.device:
        raise ValueError(
            f"entropy_model: it is on {entropy_model.device}, and the model on {model.device}"
        )


class IncrementalBLT(Incremental):
    """A batch of documents that a BLT reads on.

    Memory grows by latent keys and values with each patch; everything else keeps a window (unless
    the local models have none) or an open patch.
    """

    def __init__(
        self,
        model: BLT,
        entropy_model: EntropyModel | ShortContextModel | None,
        patcher: Patcher,
        batch: int,
        longest: int = PIECE,
        *,
        reset_at_newline: bool = False,
        weights: JoinedWeights | None = None,
    ):
        """
        Args:
            entropy_model: places the boundaries; None for a rule that ignores entropies.
            patcher: the boundary rule.
            batch: how many documents there are.
            longest: the most tokens of a row that are read, and may be taken back, at a time.
            reset_at_newline: the entropy model's context starts again after each newline.
            weights: joined for another batch of the same models, to share them.

        Raises:
            ValueError: see :func:`check_patching`.
            TypeError: see :func:`model.layers.transformer.check_plain_layers`.
        """
        check_patching(model, entropy_model, patcher)
        check_plain_layers(model)
        self.patcher, runner, weights = (
            patcher,
            StepRunner(model.device),
            weights or JoinedWeights(),
        )
        config = model.config
        piece = Piece(
            batch, longest, config.cross_attn_window_encoder, model.device, config.vocab_size
        )
        self._entropies, self._reader = None, None
        if isinstance(entropy_model, EntropyModel) and patcher.reads_entropies:
            check_plain_layers(entropy_model)
            self._entropies = CachedEntropyModel(
                entropy_model, piece, weights, reset_at_newline=reset_at_newline
            )
        elif isinstance(entropy_model, ShortContextModel) and patcher.reads_entropies:
            self._reader = ShortContextReader(
                entropy_model, batch, reset_at_newline=reset_at_newline
            )
        super().__init__(
            BLTSteps(model, piece, self._entropies, runner, weights),
            runner,
            reset_at_newline=reset_at_newline,
        )

    def _patch_ends(self) -> np.ndarray:
        before, tokens_BM = self._before, self.tokens_BM
        if self._reader is not None:
            self._h_BM = self._reader.read(torch.from_numpy(tokens_BM)).numpy()
        return self.patcher.ends_in_piece(
            np.concatenate([before.h_B[:, None], self._h_BM], 1),
            np.concatenate([before.token_B[:, None], tokens_BM], 1),
            before.read_B,
            before.start_BW[:, -1],
        )

    def keep(self, kept_B: np.ndarray) -> None:
        super().keep(kept_B)
        if self._reader is not None:
            self._reader.keep(torch.from_numpy(kept_B))

    def take(self, row: int, other: Incremental, its_row: int) -> None:
        super().take(row, other, its_row)
        if self._reader is not None:
            assert isinstance(other, IncrementalBLT) and other._reader is not None
            self._reader.take(row, other._reader, its_row)


class IncrementalEntropyModel(Incremental):
    """A batch of documents that an entropy model reads on, as a model that writes."""

    def __init__(
        self,
        model: EntropyModel,
        batch: int,
        longest: int = PIECE,
        *,
        reset_at_newline: bool = False,
        weights: JoinedWeights | None = None,
    ):
        """
        Args:
            batch: how many documents there are.
            longest: the most tokens of a row that are read, and may be taken back, at a time.
            reset_at_newline: the model's context starts again after each newline.
            weights: joined for another batch of the same model, to share them.

        Raises:
            TypeError: see :func:`model.layers.transformer.check_plain_layers`.
        """
        check_plain_layers(model)
        piece = Piece(batch, longest, 1, model.device, model.config.vocab_size)
        reset = reset_at_newline
        steps = EntropyModelSteps(model, piece, weights or JoinedWeights(), reset_at_newline=reset)
        super().__init__(steps, StepRunner(model.device), reset_at_newline=reset)
