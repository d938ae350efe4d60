"""Documents → a byte model's predictions of all their tokens: the hot path of evaluation.

Windows of many documents are packed into rows (:mod:`pipeline.evaluate.rows`), and the model reads
a row at a time. On a CPU a row is as long as what it holds, and nothing is padded. On a GPU all
rows are padded to one size (:mod:`pipeline.evaluate.row_sizes`), and layers are compiled for it.
The rows of a batch are copied to the device together, and their predictions are fetched together,
so that the device never waits for the host.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.blt import BLT
from model.entropy_model import EntropyModel
from model.layers.attention import BLOCK
from model.layers.cross_attention import CrossAttention
from model.layers.hash_embedding import HashEmbedding
from model.layers.transformer import Block
from model.tokenizer import NEXT_IDS
from pipeline.evaluate.row_sizes import RowSizes
from pipeline.evaluate.rows import Plan, Rows, RowSize, Windows, cut_windows, fill_rows, plan_rows

CPU_TOKENS = 4096
"""Tokens per row of a BLT on a CPU, about."""
GPU_TOKENS = 32768
"""Tokens per row of a BLT on a GPU, about."""
GROUP_TOKENS = 1 << 20
"""Tokens of rows that are written and copied to the device together: they bound the memory."""
NO_LIMIT = 1 << 60
COMPILED = (Block, CrossAttention, HashEmbedding)
"""The parts of a BLT that are compiled for a GPU, each once per shape whatever the number of
layers."""


class Predictions(NamedTuple):
    """A model's prediction of each token of documents laid end to end, given all that stands before
    the token in its document; or of each token that :class:`Questions` ask about."""

    nats_T: np.ndarray
    """float32: minus the log-probability; 0 for BOS, which is given."""
    greedy_T: np.ndarray
    """bool: true if the token is the most likely of the bytes and EOS; true for BOS."""


class Questions(NamedTuple):
    """Questions for the probabilities of tokens after beginnings of documents."""

    at_Q: np.ndarray
    """int64: index of the last token of the beginning, among the tokens of all documents."""
    token_Q: np.ndarray
    """int64: id of the token after it, which need not be the document's own."""


@dataclass
class Work:
    """What a predictor has computed, to tell how much of it was padding."""

    rows: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    """Tokens with padding."""
    patches: int = 0
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
        self._possible_V = torch.tensor(NEXT_IDS, device=model.device)
        self.row_tokens = CPU_TOKENS
        self.sizes: RowSizes | None = None
        """None where rows are as long as what they hold."""
        if isinstance(model, EntropyModel):
            self.row_tokens = model.token_budget  # the model pads a row to it by itself
            return
        self.model = _reading_alone(model, compiled=not on_cpu)
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
        questions: Questions | None = None,
        report: Callable[[int], None] = lambda tokens: None,
    ) -> Predictions:
        """The predictions of all tokens of documents laid end to end, or the answers to questions.

        They are those of each document alone, up to the rounding of the device's kernels, whatever
        the other documents are.

        Args:
            tokens_T: ids; each document is BOS + bytes + EOS.
            lengths_D: tokens of each document.
            patch_lengths_P: tokens of each patch, for a BLT; they sum to those of the documents.
            context: see :func:`pipeline.evaluate.rows.cut_windows`.
            report: called with the tokens that are predicted as each row is handed to the device.
        """
        if isinstance(self.model, EntropyModel):
            longest = self.model.context_length
            context, patch_lengths_P = min(context or longest, longest - 1), None
        answers = len(tokens_T) if questions is None else len(questions.at_Q)
        result = Predictions(np.zeros(answers, np.float32), np.ones(answers, bool))
        if not answers:
            return result
        windows = cut_windows(lengths_D, context)
        patches_W, starts_T = np.zeros_like(windows.start_W), None
        if patch_lengths_P is not None:
            first_P = patch_lengths_P.cumsum() - patch_lengths_P
            patches_W = windows.patches(first_P)
            starts_T = np.zeros(len(tokens_T), bool)
            starts_T[first_P] = True
        size, plan = self._plan(windows.lengths_W, patches_W)
        asked = _every_token(tokens_T) if questions is None else _asked(questions)
        queued = []
        for window_W, row_W, times in plan.groups(max(GROUP_TOKENS // size.tokens, 1)):
            part = Windows(*(values[window_W] for values in windows))
            padded = RowSize(size.tokens * times, size.patches * times) if self.sizes else None
            rows = fill_rows(part, row_W, padded, tokens_T, starts_T)
            self._count(rows)
            queued += self._answers(rows, asked, report)
        # Fetched last, so that rows queue up on the device.
        number_N, nats_N, greedy_N = zip(*queued, strict=True)
        answer_N = np.concatenate(number_N)
        result.nats_T[answer_N] = torch.cat(nats_N).cpu().numpy()
        result.greedy_T[answer_N] = torch.cat(greedy_N).cpu().numpy()
        return result

    def _plan(self, tokens_W: np.ndarray, patches_W: np.ndarray) -> tuple[RowSize, Plan]:
        """The size of the rows, and the row of each window."""
        if self.sizes:
            return self.sizes.plan(tokens_W, patches_W)
        size = RowSize(self.row_tokens, NO_LIMIT)
        return size, plan_rows(tokens_W, patches_W, size)

    def _count(self, rows: Rows) -> None:
        work, padded = self.work, self.sizes is not None
        tokens, patches = int(rows.tokens_R.sum()), int(rows.patches_R.sum())
        work.rows += len(rows.tokens_R)
        work.tokens += tokens
        work.patches += patches
        work.computed_tokens += rows.tokens_RT.size if padded else tokens
        work.computed_patches += rows.patch_lengths_RP.size if padded else patches

    def _answers(
        self, rows: Rows, asked: "Asked", report: Callable[[int], None]
    ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Let the model read rows.

        Yields:
            for each row the numbers of its answers, their nats, and whether each is the greedy
            choice; the last two on the model's device.
        """
        device = self.model.device
        number_N, index_N, token_N = asked(rows.at_N)
        place_N = rows.place_N[index_N]
        width = rows.tokens_RT.shape[1]
        rows_N = np.searchsorted(place_N, np.arange(len(rows.tokens_R) + 1) * width)
        predicted_R = np.bincount(rows.place_N // width, minlength=len(rows.tokens_R))
        to_device = (rows.tokens_RT, rows.patch_lengths_RP, place_N % width, token_N)
        tokens_RT, patch_lengths_RP, column_N, target_N = (_copied(x, device) for x in to_device)
        windows_R = rows.windows_R.cumsum()
        for row, tokens in enumerate(rows.tokens_R.tolist()):
            if isinstance(self.model, EntropyModel):
                stop = int(windows_R[row])
                lengths_W = rows.lengths_W[stop - int(rows.windows_R[row]) : stop]
                read_T = tokens_RT[row, :tokens]
                logits_TV = self.model.logits_packed(read_T, torch.from_numpy(lengths_W))
            else:
                used = slice(None), slice(None)
                if not self.sizes:
                    used = slice(tokens), slice(int(rows.patches_R[row]))
                read_1T, lengths_1P = tokens_RT[row, None, used[0]], patch_lengths_RP[row, None]
                logits_TV = self.model(read_1T, lengths_1P[:, used[1]])[0]
            of_row = slice(*rows_N[row : row + 2].tolist())
            logits_NV = logits_TV[column_N[of_row]].float()
            nats_N = F.cross_entropy(logits_NV, target_N[of_row], reduction="none")
            best_N = self._possible_V[logits_NV[:, self._possible_V].argmax(-1)]
            yield number_N[of_row], nats_N, best_N == target_N[of_row]
            report(int(predicted_R[row]))


Asked = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""``asked(at_N) -> (number, index_N, token_N)``: the questions about the tokens after ``at_N``, by
``at_N``: the number of each answer, the index of its token in ``at_N``, and the id asked for."""


def _every_token(tokens_T: np.ndarray) -> Asked:
    """Each token is asked for; its answer's number is its index."""
    return lambda at_N: (at_N + 1, np.arange(len(at_N)), tokens_T[at_N + 1].astype(np.int64))


def _asked(questions: Questions) -> Asked:
    order_Q = np.argsort(questions.at_Q, kind="stable")
    sorted_Q = questions.at_Q[order_Q]

    def asked(at_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first_N = np.searchsorted(sorted_Q, at_N, side="left")
        count_N = np.searchsorted(sorted_Q, at_N, side="right") - first_N
        index = np.repeat(np.arange(len(at_N)), count_N)
        within = np.arange(len(index)) - (count_N.cumsum() - count_N)[index]
        number = order_Q[first_N[index] + within]
        return number, index, questions.token_Q[number]

    return asked


def _copied(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; a GPU is not waited for."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _row_width(context: int | None) -> int:
    """Tokens per row on a GPU: some of the longest windows, which then leave no gap."""
    longest = context + 1 if context else BLOCK
    return -(-max(GPU_TOKENS // longest, 1) * longest // BLOCK) * BLOCK


def _reading_alone(model: BLT, *, compiled: bool) -> BLT:
    """The model with the same weights that reads each document of a row as if it were alone.

    Args:
        compiled: compile its layers. Those of ``model`` stay as they are, because others call them
            with other shapes.
    """
    weights = {id(x): x for x in (*model.parameters(), *model.buffers())}
    alone = copy.deepcopy(model, weights)
    alone.config = replace(model.config, hash_across_documents=False)
    for part in alone.modules() if compiled else ():
        if isinstance(part, COMPILED):
            part.compile(dynamic=False)
    return alone


def predict(
    model: BLT | EntropyModel,
    tokens_T: np.ndarray,
    lengths_D: np.ndarray,
    patch_lengths_P: np.ndarray | None,
    context: int | None,
    report: Callable[[int], None] = lambda tokens: None,
) -> Predictions:
    """The predictions of one batch; see :meth:`Predictor.__call__`."""
    predictor = Predictor(model, context)
    return predictor(tokens_T, lengths_D, patch_lengths_P, context, report=report)
