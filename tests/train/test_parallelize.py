"""Whole weights in the dtype of computing are made once per step where a rank keeps them anyway."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.fake_ranks import fake_ranks, parallelized, with_weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.config import ParallelismConfig
from torchtitan.trainer import Trainer

import train.trainer
from train.config_registry import blt_debug
from train.parallelize import keep_unsharded, keeps_unsharded
from train.trainer import ByteTrainer

TOKENS = torch.randint(4, 200, (2, 64), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([[1] + [4] * 16] * 2)
MICROBATCHES, STEPS = 3, 2


class Copies(TorchDispatchMode):
    """Counts copies into tensors."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.copy_.default
        return func(*args, **(kwargs or {}))


def trained(keeping: bool) -> tuple[list[int], int, dict[str, Tensor]]:
    """Copies in each microbatch of some steps, how many weights FSDP holds, and the weights at
    the end."""
    with fake_ranks(1):
        config = blt_debug()
        config.parallelism.hash_tables = "plain"
        model = with_weights(parallelized(config, 1))
        weights = dict(model.named_parameters())
        optimizer = torch.optim.SGD(weights.values(), lr=0.1)
        copies = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            for microbatch in range(MICROBATCHES):
                keep_unsharded(model, keeping and microbatch < MICROBATCHES - 1)
                with Copies() as counted:
                    model(TOKENS + microbatch, LENGTHS).logsumexp(-1).mean().backward()
                copies.append(counted.count)
            optimizer.step()
        return copies, len(weights), {name: w.full_tensor() for name, w in weights.items()}


def test_weights_are_converted_once_per_step():
    """And computes with the weights that the optimizer has changed."""
    copies, number, expected = trained(keeping=False)
    kept, _, weights = trained(keeping=True)
    saved = [before - after for before, after in zip(copies, kept, strict=True)]
    assert saved == [0, number, number] * STEPS
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
    ("keeps", "microbatches", "expected"),
    [(True, 3, [True, True, False]), (True, 1, []), (False, 3, [])],
)
def test_the_last_microbatch_of_a_step_keeps_nothing(monkeypatch, keeps, microbatches, expected):
    """The trainer says so before each microbatch."""
    said: list[bool] = []
    monkeypatch.setattr(train.trainer, "keep_unsharded", lambda model, keep: said.append(keep))
    monkeypatch.setattr(Trainer, "forward_backward_step", lambda self, **microbatch: None)
    trainer: Any = ByteTrainer.__new__(ByteTrainer)
    trainer.__dict__ |= vars(
        SimpleNamespace(
            microbatches_done=0,
            model_parts=[None],
            gradient_accumulation_steps=microbatches,
            _keeps_unsharded=keeps,
        )
    )
    for _ in range(microbatches):
        trainer.forward_backward_step()
    assert said == expected
