"""One rank of many in this process: the others are not there, and what they would send is never
waited for. Shapes and dtypes of its part of a model are those of a real run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from train.shim import prepare

prepare()

from torchtitan.distributed import ParallelDims

from train.trainer import ByteTrainer


@contextmanager
def fake_ranks(number: int, rank: int = 0) -> Iterator[None]:
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=number)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def parallelized(config: ByteTrainer.Config, ranks: int) -> Any:
    """The model of a configuration on the meta device, as the trainer spreads it over ranks."""
    dims = ParallelDims.from_config(config.parallelism, ranks)
    dims.build_mesh()
    with torch.device("meta"):
        model = config.model_spec.model.build()
    return config.model_spec.parallelize_fn(
        model,
        parallel_dims=dims,
        training=config.training,
        parallelism=config.parallelism,
        compile_config=config.compile,
        ac_config=config.activation_checkpoint,
        dump_folder="",
    )


def with_weights(model: nn.Module) -> nn.Module:
    """The same weights every time, on the CPU."""
    torch.manual_seed(0)
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.init_weights()
    return model
