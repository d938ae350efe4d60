"""Weights in and out of torchtitan: ``--checkpoint.initial_load_in_hf`` and ``.last_save_in_hf``.

torchtitan's names of weights are those of :mod:`model`, which are the published ones, so nothing is
renamed here: the reader shows a checkpoint of any layout under these names. Weights are mapped into
memory, and each rank reads only the slices that it holds, also of the one table in which
transformers' layout keeps all hash tables.

A BLT may also begin with a Llama, whose blocks become those of the latent transformer; the other
weights keep their initial values.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
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
from torchtitan.tools.logging import logger

from model.blt_config import ROW_READING, BLTConfig
from model.checkpoints.building import fitting
from model.checkpoints.files import CheckpointError, reading
from model.checkpoints.llama import BLOCKS, LatentWeights, holds_token_model, read_latent
from train.checkpoints.kinds import Shape, build_model, kind_of
from train.checkpoints.model_json import argument_differences


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
        directory, shape = Path(path), self.shape
        if isinstance(shape, BLTConfig) and holds_token_model(directory):
            latent = read_latent_weights(directory, shape)
            return WeightsReader(path, latent.weights, latent.row_orders)
        return WeightsReader(path, read_weights(directory, shape))

    def held(self, path: str, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The part of the model's weights that the checkpoint in the directory ``path`` holds: of a
        Llama, the blocks of the latent transformer; of all others, everything.

        Raises:
            CheckpointError: the checkpoint's configuration cannot be read.
        """
        if not isinstance(self.shape, BLTConfig) or not holds_token_model(Path(path)):
            return state_dict
        return {name: w for name, w in state_dict.items() if name.startswith(BLOCKS)}


class WeightsReader(HuggingFaceStorageReader):
    """Shows weights in memory, or mapped into it, to DCP as a checkpoint.

    Args:
        row_orders: the rows of some weights, in the model's order. Only those rows of a weight are
            read that this rank holds, wherever they lie.
    """

    def __init__(
        self,
        path: str,
        weights: Mapping[str, Tensor],
        row_orders: Mapping[str, Tensor] = MappingProxyType({}),
    ):
        super().__init__(path)
        self.weights, self.row_orders = weights, row_orders

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
            name = item.storage_index.fqn
            weight, order = self.weights[name], self.row_orders.get(name)
            for dim, (start, length) in enumerate(
                zip(item.storage_offsets, item.lengths, strict=True)
            ):
                if dim == 0 and order is not None:
                    weight = weight[order[start : start + length]]
                else:
                    weight = weight.narrow(dim, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(weight)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def read_latent_weights(directory: Path, shape: BLTConfig) -> LatentWeights:
    """The blocks of a Llama, mapped into memory, for the latent transformer of this shape.

    Raises:
        CheckpointError: the Llama cannot be read, or the latent transformer has another shape;
            names the file, argument or weight.
    """
    theirs, latent = read_latent(directory, shape)
    # Plain positions are a choice that a user may make: long contexts are what scaled ones serve.
    ignored = () if shape.rope_scaling_global else ("rope_scaling_global",)
    if differing := argument_differences(theirs, shape, ignore=ignored):
        raise CheckpointError(
            f"{directory}: the latent transformer cannot begin with these blocks: {differing}; "
            f"take their shape: --shape.file {directory}"
        )
    if not dist.is_initialized() or dist.get_rank() == 0:
        _log_latent(theirs, shape, latent, directory)
    return latent


def _log_latent(
    theirs: BLTConfig, shape: BLTConfig, latent: LatentWeights, directory: Path
) -> None:
    """Log what a BLT begins with, and what it leaves out."""
    if theirs.rope_scaling_global != shape.rope_scaling_global:
        logger.warning(
            f"{directory}: its rotary positions are scaled, and those of the latent transformer "
            "are not (--shape.rope-scaling-global none)."
        )
    outside = ", ".join(
        f"{name} {tuple(weight.shape)}" for name, weight in sorted(latent.left_out.items())
    )
    number = sum(weight.numel() for weight in latent.weights.values())
    logger.info(
        f"The latent transformer begins with {len(latent.weights)} weights of {directory}, "
        f"{number:,} parameters. Left out of it: {outside or 'nothing'}. All other weights are new."
    )


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
