"""torchtitan's checkpoint manager, whose last step our loaders can read, and which tells steps that
training can go on from those that hold weights alone (``--checkpoint.last_save_model_only``,
``--checkpoint.last_save_in_hf``).
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.checkpointer.dcp import CheckpointManager
from torchtitan.tools import filesystem
from torchtitan.tools.logging import logger

from model.checkpoints.files import CheckpointError, reading
from train.checkpoints.model_json import complete_safetensors, steps_in
from train.checkpoints.steps import INDEX, StepReader


class Checkpointer(CheckpointManager):
    """Makes a last step of safetensors complete with its ``config.json``, and goes on from the last
    step that is whole.

    ``model.json`` has to be in the folder of the steps by the last step
    (:func:`train.checkpoints.model_json.write_model_description`).
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        """torchtitan's own."""

    def holds_weights_of(self, step: int) -> bool:
        """Whether training to ``step`` was finished and left weights alone."""
        return _is_of_weights(self._create_checkpoint_id(step))

    def _load(self, step: int = -1) -> bool:
        """
        Raises:
            CheckpointError: a step, or what ``--checkpoint.initial_load_path`` names, cannot be
                loaded.
        """
        place = self._create_checkpoint_id(step)
        if step != -1 and not filesystem.isdir(place):
            raise CheckpointError(f"--checkpoint.load-step: {place}: there is no such step")
        if step > 0 and _is_of_weights(place):
            raise CheckpointError(f"--checkpoint.load-step: {place}: {_WEIGHTS_ALONE}")
        initial = self.initial_load_path
        if step == -1 and initial and not filesystem.isdir(initial) and not steps_in(self.folder):
            raise CheckpointError(f"--checkpoint.initial-load-path: {initial}: is no directory")
        try:
            return super()._load(step)
        except CheckpointException as error:  # it holds what went wrong on each rank
            cause = next(iter(error.failures.values()))[0]
            last = self._find_load_step() if step == -1 else step
            told = initial if last == -1 else self._create_checkpoint_id(last)
            raise CheckpointError(
                f"{told}: cannot be loaded: {type(cause).__name__}: {cause}; remove it to go on "
                "from the step before"
            ) from error

    def _find_load_step(self, folder: str = "") -> int:
        """The last step that training can go on from; -1 if there is none at all.

        Raises:
            CheckpointError: there are only weights.
        """
        weights = ""
        for place in steps_in(folder or self.folder):
            step = int(place.rpartition("-")[2])
            if _is_of_weights(place) and step > 0:
                weights = weights or place
            elif filesystem.isfile(filesystem.join(place, INDEX)):
                if weights:
                    logger.warning(f"{weights}: {_WEIGHTS_ALONE}; going on from {place}")
                return step
        if weights:
            raise CheckpointError(
                f"{weights}: {_WEIGHTS_ALONE}, and there is no other step; begin another run with "
                "these weights (--checkpoint.initial-load-path, another --dump-folder), or remove "
                "the step to begin anew"
            )
        return -1

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        """
        Raises:
            CheckpointError: the step, or the one before, cannot be written.
        """
        try:
            return super()._save(curr_step, last_step)
        except (OSError, RuntimeError, CheckpointException) as error:
            cause: BaseException = error
            if isinstance(error, CheckpointException):
                cause = next(iter(error.failures.values()))[0]
            lines = str(cause).splitlines() or [""]
            raise CheckpointError(
                f"{self._create_checkpoint_id(curr_step)}: cannot be written (is there room?): "
                f"{type(cause).__name__}: {lines[0]}; the same command goes on from the step before"
            ) from error

    def _save_last_step(self, curr_step: int) -> None:
        super()._save_last_step(curr_step)
        if self.last_save_in_hf and (not dist.is_initialized() or dist.get_rank() == 0):
            complete_safetensors(self._create_checkpoint_id(curr_step))


_WEIGHTS_ALONE = "holds weights alone, which training cannot go on from"


def _is_of_weights(place: str) -> bool:
    """Whether a directory is a step that was saved to its end, and without the training's state."""
    if filesystem.isfile(filesystem.join(place, INDEX)):
        with reading("step", place):
            return "train_state.step" not in StepReader(place).read_metadata().state_dict_metadata
    return filesystem.isfile(filesystem.join(place, "config.json"))
