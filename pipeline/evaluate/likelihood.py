"""Documents → a byte model's predictions of their tokens: the hot path of evaluation.

Windows of many documents are packed into rows (:mod:`pipeline.evaluate.rows`), or documents that
begin alike into rows of trees (:mod:`pipeline.evaluate.trees`), and the model reads a row at a
time. On a CPU a row is as long as what it holds, and nothing is padded. On a GPU all rows are
padded to one size (:mod:`pipeline.evaluate.row_sizes`), and layers are compiled for it. Rows are
copied to the device many at a time, and their predictions are fetched together, so that the device
never waits for the host.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.layers.attention import BLOCK
from pipeline.evaluate.answers import (
    Answers,
    Predictions,
    Questions,
    RowQuestions,
    every_token,
    fetched,
    only,
)
from pipeline.evaluate.reading import read_rows, read_tree_rows, reading_alone
from pipeline.evaluate.row_sizes import RowSizes
from pipeline.evaluate.rows import Plan, Rows, RowSize, Windows, cut_windows, fill_rows, plan_rows
from pipeline.evaluate.trees import (
    PatchRows,
    TreeRows,
    fill_patch_rows,
    fill_tree_rows,
    grow_trees,
)
from pipeline.prefetch import prefetch

CPU_TOKENS = 4096
"""Tokens per row of a BLT on a CPU, about."""
GPU_TOKENS = 32768
"""Tokens per row of a BLT on a GPU, about."""
GROUP_TOKENS = 1 << 18
"""Tokens of rows that are written and copied to the device together: they bound the memory. A
thread writes the next ones in the meantime."""
CPU_TREE = 4
"""The largest tree on a CPU, in rows."""
NO_LIMIT = 1 << 60


@dataclass
class Work:
    """What a predictor has computed, to tell how much of it was padding."""

    rows: int = 0
    tokens: int = 0
    patches: int = 0
    computed_tokens: int = 0
    """Tokens with padding."""
    computed_patches: int = 0
    """Patches with padding."""


class Predictor:
    """A model that predicts the tokens of documents, one batch after the other."""

    def __init__(
        self, model: BLT | EntropyModel, context: int | None, *, one_size: bool | None = None
    ):
        """
        Args:
            context: the usual context of a call; rows are as long as suits it.
            one_size: pad all rows to one size; by default on a GPU only.
        """
        on_cpu = model.device.type == "cpu"
        self.model, self.work = model, Work()
        self.row_tokens = CPU_TOKENS
        self.sizes: RowSizes | None = None
        """None where rows are as long as what they hold."""
        if isinstance(model, EntropyModel):
            self.row_tokens = model.token_budget  # the model pads a row to it by itself
            return
        self.model = reading_alone(model, compiled=model.device.type == "cuda")
        if one_size or (one_size is None and not on_cpu):
            self.row_tokens = _row_width(context)
            counts = model.parameter_counts()
            local = counts["local_encoder"] + counts["local_decoder"]
            self.sizes = RowSizes(self.row_tokens, local, counts["global_transformer"])

    @torch.inference_mode()
    def __call__(
        self,
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        patch_lengths_P: np.ndarray | None,
        context: int | None,
        report: Callable[[int], None] = lambda predictions: None,
        questions: Questions | None = None,
    ) -> Predictions:
        """The predictions of all tokens of documents laid end to end, or the answers to questions.

        They are those of each document alone, up to the rounding of the device's kernels, whatever
        the other documents are.

        Args:
            tokens_T: ids; each document is BOS + bytes + EOS.
            lengths_D: tokens of each document.
            patch_lengths_P: tokens of each patch, for a BLT; they sum to those of the documents.
            context: see :func:`pipeline.evaluate.rows.cut_windows`.
            report: called with the number of predictions of each row as it is handed to the device.
        """
        if isinstance(self.model, EntropyModel):
            longest = self.model.context_length
            context, patch_lengths_P = min(context or longest, longest - 1), None
        windows = cut_windows(lengths_D, context)
        patches_W, starts_T = np.zeros_like(windows.start_W), None
        if patch_lengths_P is not None:
            patches_W = windows.patches(patch_lengths_P.cumsum() - patch_lengths_P)
            starts_T = _marked(patch_lengths_P, len(tokens_T))
        asked, count = every_token(tokens_T), len(tokens_T)
        if questions is not None:
            asked, count = only(questions), len(questions.at_Q)
        answers: list[Answers] = []
        device = self.model.device
        size, plan = self._plan(windows.lengths_W, patches_W)

        def filled() -> Iterator[Rows]:
            for window_G, row_G, times in plan.groups(self._rows_at_once(size)):
                part = Windows(*(values[window_G] for values in windows))
                yield fill_rows(part, row_G, self._padded(size, times), tokens_T, starts_T)

        for rows in prefetch(filled()):
            self._count(rows.tokens_RT, rows.patch_lengths_RP, rows.tokens_R, rows.patches_R)
            asking = RowQuestions(asked, rows.at_N, rows.place_N, rows.tokens_RT.shape, device)
            logits = read_rows(self.model, rows, padded=self.sizes is not None)
            answers += _answers(logits, asking, report)
        return fetched(answers, count)

    @torch.inference_mode()
    def answer(
        self,
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        patch_lengths_P: np.ndarray,
        questions: Questions,
        report: Callable[[int], None] = lambda predictions: None,
    ) -> Predictions:
        """As a call with these questions and without a limit of the context, but what documents
        have in common from their beginnings on is read once, if they follow one another.

        A BLT of which a byte meets several patches reads each document by itself.
        """
        model = self.model
        assert isinstance(model, BLT)
        config = model.config
        if max(config.cross_attn_window_encoder, config.cross_attn_window_decoder) > 1:
            return self(tokens_T, lengths_D, patch_lengths_P, None, report, questions)
        starts_T = _marked(patch_lengths_P, len(tokens_T))
        starts_T[lengths_D.cumsum() - lengths_D + 1] = True  # as where windows begin
        branches = grow_trees(
            tokens_T, lengths_D, starts_T, self._largest_tree(lengths_D, starts_T)
        )
        first_N, tokens_N, patches_N = branches.trees()
        branches_N = np.diff(first_N, append=len(lengths_D))
        asked, device = only(questions), model.device
        answers: list[Answers] = []
        size, plan = self._plan(tokens_N, patches_N)

        def filled() -> Iterator[tuple[TreeRows, PatchRows]]:
            for tree_G, row_G, times in plan.groups(self._rows_at_once(size)):
                part = branches.of_trees(tree_G)
                row_D = np.repeat(row_G, branches_N[tree_G])
                padded = self._padded(size, times)
                rows = fill_tree_rows(part, row_D, padded and padded.tokens, tokens_T)
                yield rows, fill_patch_rows(rows, padded and padded.patches, starts_T)

        for rows, patches in prefetch(filled()):
            self._count(rows.tokens_RT, patches.position_RN, rows.tokens_R, patches.patches_R)
            asking = RowQuestions(asked, rows.at_X, rows.place_X, rows.tokens_RT.shape, device)
            answers += _answers(read_tree_rows(model, rows, patches), asking, report)
        return fetched(answers, len(questions.at_Q))

    def _count(
        self,
        tokens_RT: np.ndarray,
        patches_RN: np.ndarray,
        tokens_R: np.ndarray,
        patches_R: np.ndarray,
    ) -> None:
        work, tokens, patches = self.work, int(tokens_R.sum()), int(patches_R.sum())
        work.rows += len(tokens_R)
        work.tokens += tokens
        work.patches += patches
        work.computed_tokens += tokens_RT.size if self.sizes else tokens
        work.computed_patches += patches_RN.size if self.sizes else patches

    def _plan(self, tokens_W: np.ndarray, patches_W: np.ndarray) -> tuple[RowSize, Plan]:
        """The size of the rows, and the row of each window or tree."""
        if self.sizes:
            return self.sizes.plan(tokens_W, patches_W)
        size = RowSize(self.row_tokens, NO_LIMIT)
        return size, plan_rows(tokens_W, patches_W, size)

    def _padded(self, size: RowSize, times: int) -> RowSize | None:
        """The size of rows that hold several times as much as usual; None for what they need."""
        return RowSize(size.tokens * times, size.patches * times) if self.sizes else None

    def _rows_at_once(self, size: RowSize) -> int:
        return max(GROUP_TOKENS // size.tokens, 1)

    def _largest_tree(self, lengths_D: np.ndarray, starts_T: np.ndarray) -> RowSize:
        if not self.sizes:
            return RowSize(CPU_TREE * self.row_tokens, NO_LIMIT)
        rooms = [size.patches for size in self.sizes.used]
        average = int(self.row_tokens * starts_T.sum() / max(lengths_D.sum(), 1))
        return RowSize(self.row_tokens, max(rooms, default=average))


def _answers(
    logits: Iterable[Tensor], questions: RowQuestions, report: Callable[[int], None]
) -> list[Answers]:
    """The answers that the logits of rows give, one after the other."""
    answers = []
    for row, logits_TV in enumerate(logits):
        answers.append(questions.answers(row, logits_TV))
        report(len(answers[-1].number_N))
    return answers


def _row_width(context: int | None) -> int:
    """Tokens per row on a GPU: some of the longest windows, which then leave no gap."""
    longest = context + 1 if context else BLOCK
    return -(-max(GPU_TOKENS // longest, 1) * longest // BLOCK) * BLOCK


def _marked(lengths_P: np.ndarray, tokens: int) -> np.ndarray:
    """Mark the first token of each patch."""
    starts_T = np.zeros(tokens, bool)
    starts_T[lengths_P.cumsum() - lengths_P] = True
    return starts_T


def predict(
    model: BLT | EntropyModel,
    tokens_T: np.ndarray,
    lengths_D: np.ndarray,
    patch_lengths_P: np.ndarray | None,
    context: int | None,
    report: Callable[[int], None] = lambda predictions: None,
) -> Predictions:
    """The predictions of one batch; see :meth:`Predictor.__call__`."""
    predictor = Predictor(model, context)
    return predictor(tokens_T, lengths_D, patch_lengths_P, context, report)
