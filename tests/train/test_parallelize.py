"""What is done once per step and not per microbatch: whole weights are made in the dtype of
computing, where a rank keeps them anyway; gradients are handed on, where it has them whole; copies
of a model sum their gradients."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_ranks import fake_ranks, parallelized, with_weights
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.config import ParallelismConfig, TrainingConfig
from torchtitan.trainer import Trainer

import train.trainer
from train.config_registry import blt_debug
from train.parallelize import (
    hold_gradients,
    holds_gradients,
    keep_unsharded,
    keeps_unsharded,
    sum_over_copies,
)
from train.trainer import ByteTrainer

TOKENS = torch.randint(4, 200, (2, 64), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([[1] + [4] * 16] * 2)
MICROBATCHES, STEPS = 3, 2


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def trained(
    operator: str, *, keeping: bool = False, holding: bool = False, dtype: str = "float32"
) -> tuple[list[int], nn.Module, dict[str, Tensor]]:
    """How often an operator runs in each microbatch of some steps, the model, and its weights at
    the end."""
    with fake_ranks(1):
        config = blt_debug()
        config.parallelism.hash_tables = "plain"
        config.training.mixed_precision_param = dtype
        model = with_weights(parallelized(config, 1))
        weights = dict(model.named_parameters())
        optimizer = torch.optim.SGD(weights.values(), lr=0.1)
        counts = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            for microbatch in range(MICROBATCHES):
                another = microbatch < MICROBATCHES - 1
                keep_unsharded(model, keeping and another)
                hold_gradients(model, holding and another)
                with Operators() as operators:
                    model(TOKENS + microbatch, LENGTHS).logsumexp(-1).mean().backward()
                counts.append(operators.counts[operator])
            optimizer.step()
        return counts, model, {name: w.full_tensor() for name, w in weights.items()}


def test_weights_are_converted_once_per_step():
    """And computes with the weights that the optimizer has changed."""
    copies, _, expected = trained("aten.copy_.default")
    kept, _, weights = trained("aten.copy_.default", keeping=True)
    saved = [before - after for before, after in zip(copies, kept, strict=True)]
    number = len(weights)
    assert saved == [0, number, number] * STEPS
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_handed_on_once_per_step(dtype):
    """Their sums are the same, also where a microbatch's are rounded to another dtype."""
    packed, model, expected = trained("fsdp.chunk_cat.default", dtype=dtype)
    held, _, weights = trained("fsdp.chunk_cat.default", holding=True, dtype=dtype)
    units = sum(isinstance(part, FSDPModule) for part in model.modules())
    assert packed == [units] * MICROBATCHES * STEPS
    assert held == [0, 0, units] * STEPS
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("policy", "ranks", "kept"),
    [
        ("default", 1, True),
        ("default", 512, False),
        ("always", 1, False),
        ("never", 512, True),
    ],
)
def test_where_weights_are_kept(policy, ranks, kept):
    assert keeps_unsharded(ParallelismConfig(fsdp_reshard_after_forward=policy), ranks) is kept


@pytest.mark.parametrize(
    ("ranks", "offload", "held"), [(1, False, True), (1, True, False), (8, False, False)]
)
def test_where_gradients_are_held(ranks, offload, held):
    assert holds_gradients(TrainingConfig(enable_cpu_offload=offload), ranks) is held


@pytest.mark.parametrize("once", [False, True])
def test_copies_sum_their_gradients_once_per_step(once, monkeypatch):
    """Each unit of FSDP does, on two copies of two ranks."""
    sums: list[int] = []
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor, **_: sums.append(tensor.numel()))
    with fake_ranks(4):
        config = blt_debug()
        config.parallelism.data_parallel_replicate_degree = 2
        model = with_weights(parallelized(config, 4))
        units = sum(isinstance(part, FSDPModule) for part in model.modules())
        for microbatch in range(MICROBATCHES):
            sum_over_copies(model, not once or microbatch == MICROBATCHES - 1)
            logits = model(TOKENS, LENGTHS)
            block = model.global_transformer.layers[0]
            assert all(isinstance(weight, DTensor) for weight in block.parameters()), "kept whole"
            logits.logsumexp(-1).mean().backward()
    assert len(sums) == units * (1 if once else MICROBATCHES)


@pytest.mark.parametrize(
    ("keeps", "holds", "copies", "microbatches", "kept", "held", "summed"),
    [
        (True, False, True, 3, [True, True, False], [], [False, False, True]),
        (False, False, True, 2, [], [], [False, True]),
        (True, True, True, 2, [True, False], [True, False], []),
        (True, False, False, 2, [True, False], [], []),
        (True, True, True, 1, [], [], []),
    ],
)
def test_the_last_microbatch_of_a_step(
    monkeypatch, keeps, holds, copies, microbatches, kept, held, summed
):
    """It keeps and holds nothing, and sums over copies; the trainer says so before each."""
    said: dict[str, list[bool]] = {
        "keep_unsharded": [],
        "hold_gradients": [],
        "sum_over_copies": [],
    }
    for name, told in said.items():
        monkeypatch.setattr(train.trainer, name, lambda model, value, told=told: told.append(value))
    monkeypatch.setattr(Trainer, "forward_backward_step", lambda self, **microbatch: None)
    trainer: Any = ByteTrainer.__new__(ByteTrainer)
    trainer.__dict__ |= vars(
        SimpleNamespace(
            config=SimpleNamespace(training=SimpleNamespace(disable_cuda_graphs=True)),
            parallel_dims=SimpleNamespace(dp_replicate_enabled=copies),
            microbatches_done=0,
            model_parts=[None],
            gradient_accumulation_steps=microbatches,
            _keeps_unsharded=keeps,
            _holds_gradients=holds,
        )
    )
    for _ in range(microbatches):
        trainer.forward_backward_step()
    assert list(said.values()) == [kept, held, summed]
