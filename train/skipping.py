"""Steps whose loss or gradient is not finite: they are skipped, within a budget.

A skipped step changes neither weights nor moments. The learning-rate schedule and the data go on,
and the step keeps its number. One bad row of any microbatch of any rank spoils the whole step.

All ranks decide alike without a message of their own: :class:`FiniteLoss` makes the gradient NaN
wherever the loss is not finite, the ranks sum their gradients, and the norm of the sum is one
number for all of them. Each process reads that number once per step.

**After a restart.** Every skipped step is written to :data:`SKIPPED_FILE` beside the steps, with
the numbers of its rows. A run that continues from an earlier checkpoint meets the same rows again;
it passes over them at once, without computing anything, and does not count them again. So a run
that stopped because its budget was used up gets past these rows when it is started again, and
begins a new count of steps in a row; the total is that of the file. A step with another number of
rows is passed over if any of its rows was in a skipped step. Rows of other shards or settings have
other contents, so their records do not count. Whoever wants to try the rows again removes the file.

**Weights.** If the weights themselves are not finite, no step can be, and the run stops at once.
"""

import contextlib
import hashlib
import json
import math
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtitan.components.loss import IGNORE_INDEX, CrossEntropyLoss
from torchtitan.distributed import utils as dist_utils
from torchtitan.tools.logging import logger

from model.tokenizer import BYTE_OFFSET
from pipeline.errors import PipelineError
from train.checkpoints.collective import gathered, on_rank_0
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically

SKIPPED_FILE = "skipped-steps.jsonl"
SHOWN_ROWS = 4
"""Rows of each rank whose text is recorded."""
SHOWN_TOKENS = 80
"""Bytes, or tokens of a tokenizer, that are recorded for each of them."""


@dataclass(kw_only=True, slots=True)
class SkippingConfig:
    """How many steps may be skipped because their loss or gradient is not finite."""

    max_in_a_row: int = 5
    """Skipped steps in a row that a run bears; with one more it stops."""
    max_total: int = 100
    """Skipped steps that all runs into the same folder bear together."""


class FiniteLoss(CrossEntropyLoss):
    """Cross entropy whose gradient is NaN where the loss is not finite; otherwise it is the same.

    A loss may be infinite although its gradient is not: the logit of a label that is minus infinity
    has the gradient -1.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CrossEntropyLoss.Config):
        """torchtitan's settings; its ``build`` makes this class."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """torchtitan's loss; the factor is exactly 1 if the loss is finite, and NaN if not."""
        loss, metrics = super().__call__(*args, **kwargs)
        return loss * (1 + 0 * loss.detach()), metrics


class NonFiniteGradientError(Exception):
    """A step's gradient has a norm that is no finite number."""

    def __init__(self, norm: float):
        super().__init__(norm)
        self.norm = norm


@contextlib.contextmanager
def finite_gradients() -> Iterator[None]:
    """End torchtitan's ``train_step`` before the optimizer's step if the gradient is not finite.

    torchtitan shows the norm to no method of the trainer, so the function that computes it is
    wrapped while the step runs.

    Raises:
        NonFiniteGradientError: on all ranks alike.
    """
    clip = dist_utils.clip_grad_norm_

    def clip_finite(*args: Any, **kwargs: Any) -> Tensor:
        norm = clip(*args, **kwargs)
        if not math.isfinite(value := norm.item()):
            raise NonFiniteGradientError(value)
        return norm

    dist_utils.clip_grad_norm_ = clip_finite
    try:
        yield
    finally:
        dist_utils.clip_grad_norm_ = clip


@dataclass(frozen=True)
class BadRow:
    """A row whose own loss is not finite."""

    rank: int
    row: int
    """Its number in the sequence of all rows."""
    loss: str
    """``nan`` or ``inf``, which JSON has no numbers for."""
    text: str
    """The first bytes of its text."""


@dataclass(frozen=True)
class SkippedStep:
    """A line of :data:`SKIPPED_FILE`."""

    step: int
    first_row: int
    """Number of the first of the rows of all ranks in the sequence of rows."""
    stop_row: int
    rows_of: str
    """A hash of the shards and settings that the sequence was made from."""
    gradient_norm: str
    bad_rows: tuple[BadRow, ...]
    """Empty if the loss of each row is finite; then the gradient alone was not."""
    lanes: int
    """Lanes of the sequence: row n is row ``n // lanes`` of lane ``n % lanes``."""

    def __str__(self) -> str:
        text = f"step {self.step} (rows {self.first_row} to {self.stop_row - 1})"
        for bad in self.bad_rows[:SHOWN_ROWS]:
            text += f"; row {bad.row} on rank {bad.rank} has the loss {bad.loss}: {bad.text!r}"
        return text if self.bad_rows else f"{text}; the loss of each row is finite"


class SkippedSteps:
    """The steps that runs into one folder have skipped, and the budget."""

    def __init__(self, config: SkippingConfig, folder: str | None, rows_of: dict[str, Any]):
        """
        Args:
            folder: directory or URL of the steps; None for a run that saves none.
            rows_of: what the sequence of rows was made from.

        Raises:
            PipelineError: the file is damaged; names the line. All ranks call this together.
        """
        self.config = config
        self.folder = folder
        self.rows_of = hashlib.sha256(json.dumps(rows_of).encode()).hexdigest()[:16]
        self.steps: list[SkippedStep] = []
        self.in_a_row = 0
        if folder is not None:
            self.filesystem, path = checkpoint_filesystem(folder)
            self.path = posixpath.join(path, SKIPPED_FILE)
            self.steps = on_rank_0(self._read)

    def _read(self) -> list[SkippedStep]:
        if not self.filesystem.exists(self.path):
            return []
        steps = []
        for number, line in enumerate(self.filesystem.cat_file(self.path).splitlines(), 1):
            try:
                values = json.loads(line)
                bad_rows = tuple(BadRow(**bad) for bad in values.pop("bad_rows"))
                steps.append(SkippedStep(bad_rows=bad_rows, **values))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise PipelineError(
                    f"{self.folder}/{SKIPPED_FILE}: line {number} is damaged; repair it, or remove "
                    "the file, and skipped steps are computed again"
                ) from error
        return steps

    def holding(self, first: int, stop: int, lanes: int) -> SkippedStep | None:
        """The skipped step that had one of these rows of so many lanes, if there is one."""
        return next(
            (
                step
                for step in self.steps
                if (step.rows_of, step.lanes) == (self.rows_of, lanes)
                and first < step.stop_row
                and step.first_row < stop
            ),
            None,
        )

    def add(self, step: SkippedStep) -> None:
        """Record a skipped step. All ranks call this with the same step.

        Raises:
            PipelineError: the budget is used up; the step is recorded all the same.
        """
        self.steps.append(step)
        self.in_a_row += 1
        if self.folder is not None and dist.get_rank() == 0:
            lines = [json.dumps(asdict(each)) + "\n" for each in self.steps]
            try:
                write_atomically(self.filesystem, self.path, "".join(lines).encode())
            except OSError as error:
                logger.warning(
                    f"{self.folder}/{SKIPPED_FILE}: cannot be written, so a restart computes these "
                    f"rows again: {error}"
                )
        logger.warning(
            f"The gradient's norm is {step.gradient_norm}: skipped {step}. Skipped steps: "
            f"{self.in_a_row} in a row, {len(self.steps)} in all."
        )
        for count, flag in ((self.in_a_row, "max_in_a_row"), (len(self.steps), "max_total")):
            if count > (most := getattr(self.config, flag)):
                raise PipelineError(
                    f"--skipping.{flag.replace('_', '-')}: {count} steps were skipped because "
                    f"their gradients are not finite, and {most} may be; the last one is {step}. "
                    "The same command continues from the last checkpoint and passes over the "
                    "skipped rows; if the training diverges, lower the learning rate or begin with "
                    "an earlier step (--checkpoint.load-step)"
                )


def check_weights(model: nn.Module, folder: str | None) -> None:
    """
    Raises:
        PipelineError: a weight is not finite, on any rank; names it. All ranks call this together.
    """
    bad = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    for of_rank in gathered(bad):
        if of_rank:
            where = f" in {folder}" if folder else ""
            raise PipelineError(
                f"the weights are not finite ({of_rank[0]} and {len(of_rank) - 1} more), so no "
                f"step can be; continue from an earlier step{where} (--checkpoint.load-step)"
            )


def _is_finite(weight: Tensor) -> bool:
    local = weight.to_local() if isinstance(weight, DTensor) else weight
    return bool(local.isfinite().all())


@torch.no_grad()
def find_bad_rows(
    model: nn.Module,
    batches: list[tuple[dict[str, Tensor], Tensor, Sequence[int]]],
    decode: Callable[[list[int]], str],
) -> tuple[BadRow, ...]:
    """The rows, of all ranks, whose own loss is not finite. All ranks call this together.

    Args:
        batches: inputs, labels and row numbers of each microbatch of this rank.
        decode: gives the text of ids.
    """
    bad: list[BadRow] = []
    for inputs, labels_BS, rows in batches:
        others = {name: value for name, value in inputs.items() if name != "input"}
        input_BS = inputs["input"]
        logits_BSV = model(input_BS, **others).float()
        labels_BS = labels_BS.to(input_BS.device).long()
        nats_BS = F.cross_entropy(
            logits_BSV.transpose(1, 2), labels_BS, ignore_index=IGNORE_INDEX, reduction="none"
        )
        nats_B = nats_BS.sum(1).tolist()
        texts = zip(rows, nats_B, input_BS.cpu(), strict=True)
        bad += [
            BadRow(dist.get_rank(), row, str(nats), _text(input_S, decode))
            for row, nats, input_S in texts
            if not math.isfinite(nats)
        ][: SHOWN_ROWS - len(bad)]
    # Ranks that share rows (tensor parallelism) find the same ones.
    found = {each.row: each for of_rank in reversed(gathered(bad)) for each in of_rank}
    return tuple(found[row] for row in sorted(found))


def _text(input_S: Tensor, decode: Callable[[list[int]], str]) -> str:
    return decode(input_S[input_S >= BYTE_OFFSET][:SHOWN_TOKENS].tolist())
