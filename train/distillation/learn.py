"""Distillation: a cheap entropy model learns the entropies that a large one gave."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.conv_entropy_model import ConvEntropyConfig, ConvEntropyModel, embedding_rows
from train.distillation.lesson import Lesson
from train.distillation.student import Student

ROWS, ROW_TOKENS = 8, 1024
"""A step reads so many stretches of so many tokens, from random places."""
WARMUP_STEPS = 50
PEAK_LEARNING_RATE = 3e-3
BETAS = (0.9, 0.98)
BETA = 0.5
"""Nats: the loss of a larger difference grows with it and not with its square."""


def distil(
    lesson: Lesson,
    config: ConvEntropyConfig,
    *,
    steps: int,
    seed: int = 0,
    report: Callable[[int, float], None] = lambda tokens, loss: None,
) -> ConvEntropyModel:
    """A model that gives about the entropies of the lesson. The same arguments give the same model
    on one kind of CPU.

    The differences, squared where they are small, are minimised with Adam, whose rate falls to 0
    along a line. Boundaries compare entropies with a threshold: large differences decide less often
    than their squares would have it.

    Args:
        report: called after each step with the tokens that it read and its loss.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    student = Student(config)
    optimizer = torch.optim.Adam(student.parameters(), betas=BETAS)
    begins_S = lesson.lengths_S.cumsum() - lesson.lengths_S
    position_T = np.arange(len(lesson.tokens_T)) - np.repeat(begins_S, lesson.lengths_S)
    for step in range(1, steps + 1):
        rate = PEAK_LEARNING_RATE * min(step / WARMUP_STEPS, 1) * (1 - (step - 1) / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _loss(student, lesson, begins_S, position_T, random)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        report(ROWS * min(ROW_TOKENS, len(lesson.tokens_T)), loss.item())
    return student.model()


def _loss(
    student: Student,
    lesson: Lesson,
    begins_S: np.ndarray,
    position_T: np.ndarray,
    random: np.random.Generator,
) -> Tensor:
    """The loss of stretches from random places. Tokens whose context begins before their stretch do
    not count, because it is not read."""
    reach, size = student.config.reach, len(lesson.tokens_T)
    columns = np.arange(min(ROW_TOKENS, size))
    rows, places, counted, targets = [], [], [], []
    for start in random.integers(0, size - len(columns) + 1, ROWS).tolist():
        near = slice(start, start + len(columns))
        starts = begins_S[slice(*np.searchsorted(begins_S, [near.start, near.stop]))] - start
        rows.append(embedding_rows(lesson.tokens_T[near], starts, student.config))
        places.append(np.minimum(position_T[near], columns))
        counted.append((columns >= reach) | (position_T[near] <= columns))
        targets.append(lesson.entropies_T[near].astype(np.float32))
    rows_TK, place_T, counts_T, target_T = (
        torch.from_numpy(np.concatenate(parts)) for parts in (rows, places, counted, targets)
    )
    h_T = student(rows_TK, place_T)
    return F.smooth_l1_loss(h_T[counts_T], target_T[counts_T], beta=BETA)
