"""Questions for the probabilities of tokens, and their answers from the logits of rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.tokenizer import NEXT_IDS

FETCHED_ROWS = 256
"""Rows whose answers are fetched with one copy."""


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


Asked = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""``asked(at_N) -> (number, index_N, token_N)``: the questions about what follows the tokens
``at_N``: the number of each answer, the index of its token in ``at_N``, and the id asked for."""


def every_token(tokens_T: np.ndarray) -> Asked:
    """Each token after the first is asked for; its answer's number is its index."""
    return lambda at_N: (at_N + 1, np.arange(len(at_N)), tokens_T[at_N + 1].astype(np.int64))


def only(questions: Questions) -> Asked:
    """Nothing else is asked for; an answer's number is that of its question."""
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


class Answers(NamedTuple):
    """Answers that may still be computed: nats and choices are on the model's device."""

    number_N: np.ndarray
    nats_N: Tensor
    greedy_N: Tensor


class RowQuestions:
    """The questions about some rows of one width."""

    def __init__(
        self,
        asked: Asked,
        at_N: np.ndarray,
        place_N: np.ndarray,
        shape: tuple[int, ...],
        device: torch.device,
    ):
        """
        Args:
            at_N: index of tokens, among those of all documents.
            place_N: where each of them stands in the rows laid end to end.
            shape: rows and width.
        """
        number, index, token = asked(at_N)
        rows, width = shape
        place = place_N[index]
        order = np.argsort(place, kind="stable")
        self._number, place = number[order], place[order]
        self._bounds = np.searchsorted(place, np.arange(rows + 1) * width).tolist()
        self._column = copied(place % width, device)
        self._token = copied(token[order], device)
        self._possible_V = copied(np.array(NEXT_IDS), device)

    def answers(self, row: int, logits_TV: Tensor) -> Answers:
        """The answers that the logits of a row give."""
        of_row = slice(*self._bounds[row : row + 2])
        logits_NV = logits_TV[self._column[of_row]].float()
        token_N = self._token[of_row]
        nats_N = F.cross_entropy(logits_NV, token_N, reduction="none")
        best_N = self._possible_V[logits_NV[:, self._possible_V].argmax(-1)]
        return Answers(self._number[of_row], nats_N, best_N == token_N)


def fetched(answers: Sequence[Answers], count: int) -> Predictions:
    """All answers by their numbers. The device is waited for here and nowhere else."""
    result = Predictions(np.zeros(count, np.float32), np.ones(count, bool))
    for start in range(0, len(answers), FETCHED_ROWS):
        part = answers[start : start + FETCHED_ROWS]
        number_N = np.concatenate([each.number_N for each in part])
        result.nats_T[number_N] = torch.cat([each.nats_N for each in part]).cpu().numpy()
        result.greedy_T[number_N] = torch.cat([each.greedy_N for each in part]).cpu().numpy()
    return result


def copied(values: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device. A GPU makes it when its turn comes, and is not waited for."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
