"""BLT and the entropy model as torchtitan's models. ``model/`` defines their layers and shapes."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.model_spec import ModelSpec

from model import BLT, BLT_SIZES, BLTConfig, EntropyModel, EntropyModelConfig
from model.layers.initializers import reset_constants
from model.training_flops import training_flops
from train.checkpoints.state_dict_adapter import WeightsAdapter
from train.parallelize import parallelize_blt, parallelize_entropy_model
from train.table_optimizer import split_off_tables

ENTROPY_SIZES = {
    "100m": EntropyModelConfig(),
    "1m": EntropyModelConfig(
        dim=128, n_layers=4, n_heads=4, window=256, init_std_factor="current_depth"
    ),
    # For tests and experiments.
    "debug": EntropyModelConfig(
        dim=64, n_layers=2, n_heads=4, hidden_dim=128, init_std_factor="current_depth"
    ),
}
"""Shapes of entropy models by size; ``100m`` is the published one. The small ones are ours.
``debug`` learns faster with the published code's ``current_depth`` than without a factor
(tests/benchmarks/RESULTS.md); for ``1m`` that has not been measured."""


class TrainedModel(BaseModel):
    """Methods that torchtitan requires of a model beside ``forward``."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        shape: Any

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Change nothing: the shape does not depend on the training's settings."""

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """The number of parameters, and training FLOPs per byte at 4.5 bytes per patch or
            token; the metrics use the measured size instead."""
            flops = training_flops(self.shape, patch_size=4.5, context=seq_len)
            return sum(p.numel() for p in model.parameters()), round(sum(flops.values()))

    def verify_module_protocol(self) -> None:
        """Verify nothing: ``model/`` is plain PyTorch and has none of torchtitan's modules."""

    def init_weights(self, *, buffer_device: torch.device | None = None, **kwargs: Any) -> None:
        """Draw the initial weights, which are the same on any number of ranks.

        Every rank draws each whole parameter from a generator of its own, seeded with a hash of
        torch's seed and the parameter's name, and keeps its part. Neither the order of the
        parameters nor the number of ranks changes a value.

        Args:
            buffer_device: of the constants; given where weights are offloaded to the CPU.
        """
        initial = self.initializers()
        for name, parameter in self.named_parameters():
            # The parameter's name without activation checkpointing.
            plain = name.replace("_checkpoint_wrapped_module.", "")
            digest = hashlib.sha256(f"{torch.initial_seed()} {plain}".encode()).digest()
            seed = int.from_bytes(digest[:8], signed=True)
            generator = torch.Generator(parameter.device).manual_seed(seed)
            whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            initial[name](whole, generator)
            if isinstance(parameter, DTensor):
                mesh, placements = parameter.device_mesh, parameter.placements
                part = distribute_tensor(whole, mesh, placements, src_data_rank=None)
                parameter.to_local().copy_(part.to_local())
            else:
                parameter.copy_(whole)
        reset_constants(self, buffer_device)

    initializers: Any


class TrainedBLT(BLT, TrainedModel):
    """BLT as one of torchtitan's models."""

    @dataclass(kw_only=True, slots=True)
    class Config(TrainedModel.Config):
        shape: BLTConfig

    def __init__(self, config: Config):
        super().__init__(config.shape)

    init_weights = TrainedModel.init_weights

    def forward(self, tokens_BS: Tensor, patch_lengths: Tensor) -> Tensor:
        """Call :meth:`model.BLT.forward`; the argument has the name of the dataloader's key."""
        return super().forward(tokens_BS, patch_lengths)


class TrainedEntropyModel(EntropyModel, TrainedModel):
    """The entropy model as one of torchtitan's models."""

    @dataclass(kw_only=True, slots=True)
    class Config(TrainedModel.Config):
        shape: EntropyModelConfig

    def __init__(self, config: Config):
        super().__init__(config.shape)

    init_weights = TrainedModel.init_weights


def blt_spec(size: str, *, float8: bool = False) -> ModelSpec:
    """A BLT of one of the paper's sizes.

    Args:
        float8: compute the latent transformer's linear layers in float8 (torchao).
    """
    return ModelSpec(
        name="blt",
        flavor=size,
        model=TrainedBLT.Config(shape=BLT_SIZES[size]),
        parallelize_fn=functools.partial(parallelize_blt, float8=float8),
        pipelining_fn=None,
        post_optimizer_build_fn=split_off_tables,
        state_dict_adapter=WeightsAdapter,
    )


def entropy_spec(size: str) -> ModelSpec:
    """An entropy model of one of :data:`ENTROPY_SIZES`."""
    return plain_spec("entropy", size, TrainedEntropyModel.Config(shape=ENTROPY_SIZES[size]))


def plain_spec(name: str, size: str, model: Any) -> ModelSpec:
    """A transformer without patches, as torchtitan trains it.

    Args:
        name: the kind of model.
        size: the name of its shape.
        model: its configuration.
    """
    return ModelSpec(
        name=name,
        flavor=size,
        model=model,
        parallelize_fn=parallelize_entropy_model,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=WeightsAdapter,
    )
