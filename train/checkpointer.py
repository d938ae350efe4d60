"""torchtitan's checkpoint manager, whose last step our loaders can read."""

from dataclasses import dataclass

import torch.distributed as dist
from torchtitan.components.checkpointer.dcp import CheckpointManager

from train.model_description import complete_safetensors


class Checkpointer(CheckpointManager):
    """Makes a last step of safetensors complete with its ``config.json``.

    ``model.json`` has to be in the folder of the steps by then
    (:func:`train.model_description.write_model_description`).
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        """torchtitan's own."""

    def _save_last_step(self, curr_step: int) -> None:
        super()._save_last_step(curr_step)
        if self.last_save_in_hf and (not dist.is_initialized() or dist.get_rank() == 0):
            complete_safetensors(self._create_checkpoint_id(curr_step))
