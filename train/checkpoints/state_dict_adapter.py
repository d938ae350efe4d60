"""Weights in and out of torchtitan: ``--checkpoint.initial_load_in_hf`` and ``.last_save_in_hf``.

torchtitan's names of weights are those of :mod:`model`, which are the published ones, so nothing is
renamed here: the reader shows a checkpoint of any layout under these names. Weights are mapped into
memory, and each rank reads only the slices that it holds, also of the one table in which
transformers' layout keeps all hash tables.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future
from torchtitan.protocols.state_dict_adapter import BaseStateDictAdapter

from model.blt_config import ROW_READING, BLTConfig
from model.checkpoints.files import CheckpointError, fitting, reading
from train.checkpoints.kinds import Shape, build_model, kind_of
from train.checkpoints.model_json import argument_differences

logger = logging.getLogger(__name__)


class WeightsAdapter(BaseStateDictAdapter):
    """The adapter of all kinds of models.

    It reads every layout that the loaders of :mod:`model` read, and writes one safetensors file,
    which :class:`train.checkpoints.manager.Checkpointer` completes.

    Args:
        model_config: its ``shape`` is one of :data:`train.checkpoints.kinds.Shape`.
        hf_assets_path: where torchtitan looks if no ``--checkpoint.initial_load_path`` is given.
    """

    def __init__(self, model_config: Any, hf_assets_path: str | None):
        self.shape: Shape = model_config.shape
        self.hf_assets_path = hf_assets_path
        self.fqn_to_index_mapping = None  # all weights go into one file

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The names and weights as they are: the reader does the adapting."""
        return dict(state_dict)

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """The names and weights as they are."""
        return dict(hf_state_dict)

    def get_hf_storage_reader(self, path: str, from_quantized: bool = False) -> "WeightsReader":
        """A reader of the checkpoint in the directory ``path``.

        Raises:
            CheckpointError: the checkpoint cannot be read, or belongs to another model than the
                one that is trained; names the file, argument or weight.
        """
        if from_quantized:
            raise CheckpointError(
                "--checkpoint.initial_load_in_hf_quantized: no layout of these models is "
                "quantized; leave it out"
            )
        return WeightsReader(path, read_weights(Path(path), self.shape))


class WeightsReader(HuggingFaceStorageReader):
    """Shows weights in memory, or mapped into it, to DCP as a checkpoint."""

    def __init__(self, path: str, weights: Mapping[str, Tensor]):
        super().__init__(path)
        self.weights = weights

    def read_metadata(self) -> Metadata:
        """The index of a checkpoint that stores each weight in one piece."""
        return Metadata(
            state_dict_metadata={
                name: TensorStorageMetadata(
                    TensorProperties(dtype=weight.dtype),
                    weight.shape,
                    [ChunkStorageMetadata(torch.Size([0] * weight.dim()), weight.shape)],
                )
                for name, weight in self.weights.items()
            },
            storage_data={},
            storage_meta=StorageMeta(load_id=self.load_id),
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the slices that this rank holds, and convert them to their dtype in training."""
        for item in plan.items:
            weight = self.weights[item.storage_index.fqn]
            for dim, (start, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                weight = weight.narrow(dim, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(weight)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def read_weights(directory: Path, shape: Shape) -> dict[str, Tensor]:
    """The weights, mapped into memory, of a checkpoint of a model of this shape, which may read
    rows otherwise: the log says how the training does.

    Raises:
        CheckpointError: the checkpoint cannot be read, or belongs to another model; names the file,
            argument or weight.
    """
    theirs, weights = kind_of(shape).read(directory)
    differing = argument_differences(theirs, shape, ignore=ROW_READING)
    if differing:
        raise CheckpointError(
            f"{directory}: is of another model than the one that is trained: {differing}; "
            f"train the model of the checkpoint: --shape.file {directory}"
        )
    _log_reading(theirs, shape, directory)
    with torch.device("meta"):
        model = build_model(shape)
    with reading("checkpoint", str(directory)):
        return fitting(model.state_dict(), weights)


def _log_reading(there: Shape, here: Shape, directory: Path) -> None:
    """Log, on the first rank, how the training reads rows of packed documents, and whether its
    initial weights were trained so."""
    if not isinstance(there, BLTConfig) or not isinstance(here, BLTConfig):
        return
    if dist.is_initialized() and dist.get_rank() != 0:
        return
    for name in ROW_READING:
        before, now = getattr(there, name), getattr(here, name)
        if before == now:
            logger.info(f"{directory}: {name} is {now}, as it was for these weights.")
            continue
        logger.warning(
            f"{directory}: {name} is {now} in this training, and was {before} for these weights; "
            f"--shape.{name.replace('_', '-')} {before} goes on as before."
        )
