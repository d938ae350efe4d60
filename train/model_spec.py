"""BLT and the entropy model as torchtitan's models: weights, shapes and costs are ``model/``'s."""

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
from model.flops import training_flops
from model.layers.transformer import reset_constants
from train.checkpoints.state_dict_adapter import WeightsAdapter
from train.parallelize import parallelize_blt, parallelize_entropy_model

ENTROPY_SIZES = {
    "100m": EntropyModelConfig(),
    "1m": EntropyModelConfig(dim=128, n_layers=4, n_heads=4, window=256),
    # For tests and for trying things out.
    "debug": EntropyModelConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=128),
}
"""Shapes of entropy models; the first is the published one."""


class _TrainedModel(BaseModel):
    """What torchtitan asks of a model beyond computing."""

    def verify_module_protocol(self) -> None:
        """Nothing to verify: ``model/`` is plain PyTorch, not made of torchtitan's Modules."""

    def init_weights(self, **kwargs: Any) -> None:
        """Weights to begin training with: the same on any number of ranks.

        Each parameter is drawn whole from a generator of its own (by torch's seed and the
        parameter's name), and every rank keeps its part.
        """
        initial = self.initializers()
        for name, parameter in self.named_parameters():
            # The name that the parameter has without activation checkpointing.
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
        reset_constants(self)

    initializers: Any


class TrainedBLT(BLT, _TrainedModel):
    """BLT in torchtitan's hands."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        shape: BLTConfig

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Nothing of the shape depends on how it is trained."""

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """Parameters, and training FLOPs for each byte at 4.5 bytes a patch; the metrics put
            the measured patch size in its place."""
            flops = training_flops(self.shape, patch_size=4.5, context=seq_len)
            return sum(p.numel() for p in model.parameters()), round(sum(flops.values()))

    def __init__(self, config: Config):
        super().__init__(config.shape)

    init_weights = _TrainedModel.init_weights

    def forward(self, tokens_BS: Tensor, patch_lengths: Tensor) -> Tensor:
        """As :meth:`model.BLT.forward`; the dataloader's key gives the argument its name."""
        return super().forward(tokens_BS, patch_lengths)


class TrainedEntropyModel(EntropyModel, _TrainedModel):
    """The entropy model in torchtitan's hands."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        shape: EntropyModelConfig

        def update_from_config(self, *, config: Any, **kwargs: Any) -> None:
            """Nothing of the shape depends on how it is trained."""

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """Parameters, and training FLOPs for each byte."""
            flops = training_flops(self.shape, patch_size=1, context=seq_len)
            return sum(p.numel() for p in model.parameters()), round(sum(flops.values()))

    def __init__(self, config: Config):
        super().__init__(config.shape)

    init_weights = _TrainedModel.init_weights


def blt_spec(size: str, *, float8: bool = False) -> ModelSpec:
    """A BLT of one of the paper's sizes.

    Args:
        float8: linear layers of the latent transformer multiply in float8 (torchao).
    """
    return ModelSpec(
        name="blt",
        flavor=size,
        model=TrainedBLT.Config(shape=BLT_SIZES[size]),
        parallelize_fn=functools.partial(parallelize_blt, float8=float8),
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=WeightsAdapter,
    )


def entropy_spec(size: str) -> ModelSpec:
    """An entropy model of one of :data:`ENTROPY_SIZES`."""
    return ModelSpec(
        name="entropy",
        flavor=size,
        model=TrainedEntropyModel.Config(shape=ENTROPY_SIZES[size]),
        parallelize_fn=parallelize_entropy_model,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=WeightsAdapter,
    )
