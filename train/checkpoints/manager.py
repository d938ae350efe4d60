"""torchtitan's checkpoint manager for runs that resume by themselves.

A last step may hold weights only (``--checkpoint.last_save_model_only``,
``--checkpoint.last_save_in_hf``), and training cannot resume from it. This manager recognizes such
steps, and makes a last step of safetensors readable for the loaders of :mod:`model`.

A step is complete once its index exists, which is written last. With ``--checkpoint.async_mode
async`` that happens while training goes on; a run that is killed meanwhile leaves an incomplete
step, and resumes from the one before.
"""

import contextlib
import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from rich.console import Console
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.checkpointer.base import DATALOADER, LR_SCHEDULER, MODEL
from torchtitan.components.checkpointer.dcp import CheckpointManager
from torchtitan.tools import filesystem
from torchtitan.tools.logging import logger

from model.checkpoints.files import CheckpointError, reading
from pipeline.errors import ConfigError
from pipeline.storage.lease import held
from pipeline.storage.outages import let_s3fs_wait
from pipeline.storage.output import OutputDirectory
from train.checkpoints.collective import is_lost_connection, on_rank_0
from train.checkpoints.going_back import go_back, has_gone_back
from train.checkpoints.hub import is_on_hub, on_this_node
from train.checkpoints.leaving_out import record_left_out, still_left_out
from train.checkpoints.model_json import checkpoint_filesystem, complete_safetensors, steps_in
from train.checkpoints.steps import (
    INDEX,
    INDEXES,
    SET_ASIDE,
    StepReader,
    complete_steps,
    is_complete,
)


class Checkpointer(CheckpointManager):
    """Resumes from the last complete step, and adds ``config.json`` to a last step of safetensors.

    The folder of the steps has to hold ``model.json`` before the last step is saved: see
    :func:`train.checkpoints.model_json.write_model_description`.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        """torchtitan's settings; its ``build`` makes this class."""

        initial_load_path: str | None = None
        """Weights to begin with if the run has no step yet: a step, or, with initial_load_in_hf, a
        directory in another layout, or hf://owner/name or hf://owner/name@revision. A BLT begins
        with a BLT, or with a Llama, whose blocks become those of the latent transformer."""

        def __post_init__(self) -> None:
            initial = self.initial_load_path
            on_hub = self.initial_load_in_hf and is_on_hub(initial)
            if on_hub:  # torchtitan knows local directories alone, which it will be
                self.initial_load_path = "/"
            elif initial and "://" not in initial:  # and of these absolute ones
                initial = self.initial_load_path = str(Path(initial.strip()).absolute())
            CheckpointManager.Config.__post_init__(self)
            if on_hub:
                self.initial_load_path = initial

    initial_load_path: str | None
    exclude_from_loading: list[str]
    training_steps: float = math.inf
    """The length of the training, ``--training.steps``."""

    def __init__(self, config: Config, **settings: Any):
        super().__init__(config, **settings)
        # A run that has a complete step continues from it, and does not ask the hub.
        if self.enable and self.initial_load_in_hf and is_on_hub(self.initial_load_path):
            assert self.initial_load_path is not None
            if not on_rank_0(lambda: any(complete_steps(self.folder))):
                self.initial_load_path = on_this_node(self.initial_load_path)

    @contextlib.contextmanager
    def written_alone(self) -> Iterator[None]:
        """Keep other runs from writing steps into the folder while the block runs, as rank 0.

        Raises:
            PipelineError: another run writes there, or took the folder over while this one gave no
                sign of life.
        """
        if not self.enable or self.load_only:
            yield
            return
        with held(OutputDirectory(self.folder), "--dump-folder", Console(stderr=True)):
            yield

    def holds_final_weights(self, step: int) -> bool:
        """True if an earlier run trained to ``step`` and saved weights only. All ranks call this
        together."""
        return on_rank_0(lambda: _holds_weights_only(self._create_checkpoint_id(step)))

    def _load(self, step: int = -1) -> bool:
        """Load a step; storage that is away is waited for, then and from now on.

        Rank 0 looks which step it is: with many ranks storage is asked once, and none of them can
        find another one.

        Raises:
            CheckpointError: a step, or the directory of ``--checkpoint.initial_load_path``, cannot
                be loaded; names it.
            ConfigError: the step is behind the end of the training, or a state cannot be left out.
        """
        if self.folder.startswith("s3://"):
            let_s3fs_wait()
        goes_back = step != -1 and not self.load_only
        if goes_back and on_rank_0(lambda: has_gone_back(self.folder, step)):
            step, goes_back = -1, False
        found = on_rank_0(lambda: self._step_to_load(step))
        if found > self.training_steps:
            raise ConfigError(
                f"--training.steps: {self.training_steps:,}, but "
                f"{self._create_checkpoint_id(found)} is further; ask for more steps, go back with "
                "--checkpoint.load-step, or begin in another --dump-folder"
            )
        if (left_out := self.exclude_from_loading) and not self.load_only:
            left_out = on_rank_0(lambda: still_left_out(self.folder, found, left_out))
        self.exclude_from_loading = left_out
        initial = self.initial_load_path
        if found == -1 and initial:
            self._check_initial(initial)
        try:
            loaded = super()._load(found)
        except CheckpointException as error:  # holds the error of each rank
            cause = next(iter(error.failures.values()))[0]
            source = initial if found == -1 else self._create_checkpoint_id(found)
            raise CheckpointError(
                f"{source}: cannot be loaded: {type(cause).__name__}: {cause}; remove it to "
                "continue from the step before"
            ) from error
        self._set_rates()
        if left_out and not self.load_only:
            on_rank_0(lambda: record_left_out(self.folder, found, left_out))
        if goes_back:
            on_rank_0(lambda: go_back(self.folder, step))
        return loaded

    def _check_initial(self, initial: str) -> None:
        """
        Raises:
            CheckpointError: there is no such directory, or it has another layout; names it.
        """
        if not filesystem.isdir(initial):
            raise CheckpointError(f"--checkpoint.initial-load-path: {initial}: is no directory")
        if not self.initial_load_in_hf and _describes_itself(initial):
            raise CheckpointError(
                f"--checkpoint.initial-load-path: {initial}: is no step of a training, but "
                "weights in another layout; add --checkpoint.initial-load-in-hf"
            )

    def _set_rates(self) -> None:
        """Let the optimizers begin with the rates of the run's schedule. A checkpoint holds those
        of the schedule that it was trained with, which the first step would take otherwise."""
        for scheduler in self.states[LR_SCHEDULER] or ():
            groups = scheduler.optimizer.param_groups
            for group, rate in zip(groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate

    def dcp_load(
        self, state_dict: dict[str, Any], checkpoint_id: str, from_hf: bool, from_quantized: bool
    ) -> None:
        """Load what the model shares with the weights of another layout (``from_hf``), or a step.

        Raises:
            CheckpointError: the index of a step cannot be read.
            ConfigError: the dataloader cannot continue from the state that a step holds.
        """
        if from_hf:
            state_dict = self.sd_adapter.held(checkpoint_id, state_dict)
            super().dcp_load(state_dict, checkpoint_id, from_hf, from_quantized)
            return
        with reading("step", checkpoint_id):
            reader = StepReader(checkpoint_id, on_rank_0(lambda: _read_index(checkpoint_id)))
            keys = reader.read_metadata().state_dict_metadata
        if DATALOADER in state_dict:
            # Its keys depend on the text that the run began with.
            prefix = f"{DATALOADER}."
            state_dict[DATALOADER].expect(
                [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
            )
        dcp.load(state_dict, storage_reader=reader)
        if MODEL in self.states:  # the weights are no state of its own here, but keys beside others
            self.states[MODEL].load_state_dict(state_dict)

    def _step_to_load(self, step: int) -> int:
        """The number of the step to load, for one that the user gave, or for -1; -1 for none.

        Raises:
            CheckpointError: training cannot resume from it; names it.
        """
        if step == -1:
            return self._last_step()
        place = self._create_checkpoint_id(step)
        if not filesystem.isdir(place):
            raise CheckpointError(f"--checkpoint.load-step: {place}: there is no such step")
        if step > 0 and _holds_weights_only(place):
            raise CheckpointError(f"--checkpoint.load-step: {place}: {_WEIGHTS_ONLY}")
        return step

    def _last_step(self) -> int:
        """The last step that training can resume from; -1 if there are no steps.

        Raises:
            CheckpointError: all steps hold weights only, or the index of the last one is damaged.
        """
        weights = ""
        for place in steps_in(self.folder):
            step = int(place.rpartition("-")[2])
            try:
                weights_only = _holds_weights_only(place)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{error}; remove it to continue from the step before"
                ) from error
            if weights_only and step > 0:
                weights = weights or place
            elif filesystem.isfile(filesystem.join(place, INDEX)):
                if weights:
                    logger.warning(f"{weights}: {_WEIGHTS_ONLY}; continuing from {place}")
                return step
        if weights:
            raise CheckpointError(
                f"{weights}: {_WEIGHTS_ONLY}, and there is no other step; begin another run with "
                "these weights (--checkpoint.initial-load-path, another --dump-folder), or remove "
                "the step to start from the beginning"
            )
        return -1

    def _find_load_step(self, folder: str = "") -> int:
        """No step: torchtitan asks on each rank if :meth:`_load` has found that there is none."""
        return -1

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        """
        Raises:
            CheckpointError: the step, or the one before, cannot be written; names it.
        """
        if self._should_save(curr_step, last_step):
            self.maybe_wait_for_saving()
            self._remove_index(curr_step)
        with self._writing(curr_step):
            saved = super()._save(curr_step, last_step)
        if saved:
            self.pending_step = curr_step
        return saved

    def _wait_for_saving(self) -> None:
        """
        Raises:
            CheckpointError: the step that was being saved meanwhile cannot be written; names it.
        """
        with self._writing(self.pending_step):
            try:
                super()._wait_for_saving()
            except (Exception, CheckpointException):
                self.save_future = None  # it has ended, and is told once
                raise

    def finish_saving(self) -> None:
        """Wait for a step that is being saved while an error, which is to be told, ends the run."""
        try:
            self.maybe_wait_for_saving()
        except (CheckpointError, RuntimeError) as error:
            logger.error(f"{error}")

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, CheckpointException) as error:
            cause: BaseException = error
            if isinstance(error, CheckpointException):
                cause = next(iter(error.failures.values()))[0]
            if isinstance(cause, RuntimeError) and is_lost_connection(cause):
                raise cause from None  # it is not the storage that failed, but another rank
            lines = str(cause).splitlines() or [""]
            raise CheckpointError(
                f"{self._create_checkpoint_id(step)}: cannot be written (is there room?): "
                f"{type(cause).__name__}: {lines[0]}; the same command continues from the "
                "step before"
            ) from error

    def _remove_index(self, step: int) -> None:
        """Make a step that is about to be written anew incomplete until that is done."""
        if dist.is_initialized() and dist.get_rank() != 0:
            return
        files, path = checkpoint_filesystem(self._create_checkpoint_id(step))
        for name in (INDEX, *(each + SET_ASIDE for each in INDEXES)):
            if files.exists(index := posixpath.join(path, name)):
                with self._writing(step):
                    files.rm_file(index)

    def _purge_stale_checkpoints(self) -> None:
        """Remove all steps before the last ``keep_latest_k`` complete ones.

        torchtitan counts incomplete ones as well: that of a run that was killed, and the one that
        is being saved meanwhile, and might be left without any step to continue from.
        """
        if not self._should_purge():
            return
        complete = 0
        for place in steps_in(self.folder):  # the last one first
            if complete >= self.keep_latest_k:
                self.purge_queue.put(place)
            elif is_complete(place):
                complete += 1

    def _save_last_step(self, curr_step: int) -> None:
        super()._save_last_step(curr_step)
        if self.last_save_in_hf and (not dist.is_initialized() or dist.get_rank() == 0):
            complete_safetensors(self._create_checkpoint_id(curr_step))


_WEIGHTS_ONLY = "holds weights alone, which training cannot continue from"


def _read_index(step: str) -> bytes:
    with reading("step", step):
        return StepReader(step).read_index()


def _describes_itself(place: str) -> bool:
    """True if a directory is a checkpoint in a layout that is not torchtitan's own."""
    there = [filesystem.isfile(filesystem.join(place, n)) for n in ("config.json", "params.json")]
    return any(there) and not filesystem.isfile(filesystem.join(place, INDEX))


def _holds_weights_only(place: str) -> bool:
    """True if a directory is a complete step that lacks the state of the training."""
    if filesystem.isfile(filesystem.join(place, INDEX)):
        with reading("step", place):
            return "train_state.step" not in StepReader(place).read_metadata().state_dict_metadata
    return filesystem.isfile(filesystem.join(place, "config.json"))
