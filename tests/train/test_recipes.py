"""Configurations named after the paper have the paper's numbers, and the optimizer obeys them."""

import math
from typing import Any

import pytest
import torch
from support.jobs import ROOT
from support.tiny import CONFIG
from torchtitan.config import ConfigManager, TrainingConfig

from model import BLT_SIZES
from pipeline.errors import ConfigError
from train.model_spec import TrainedBLT
from train.refusals import check_batch

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
PAPER: dict[str, Any] = {
    **{"lr": 4e-4, "warm-up": 2000, "decay": "cosine", "last lr": 0.0, "clip": 1.0},
    **{"row": 8192, "bytes per step": 1 << 24},
}
"""arXiv 2412.09871, section 4.8: batches of 16 MB of text, 8k bytes of context."""
TEMPLATE: dict[str, Any] = {
    **{"lr": 4e-4, "warm-up": 500, "decay": "cosine", "last lr": 0.1, "clip": 10.0},
    **{"row": 8192, "steps": 100_000},
}
"""The published template for training the entropy model."""
RECIPES = {f"blt_{size}": PAPER for size in BLT_SIZES if size != "debug"} | {
    "blt_1b_float8": PAPER,
    "blt_8b_float8": PAPER,
    "blt_8b_from_llama3": PAPER,
    "entropy_100m": TEMPLATE,
}


def parse(*arguments: object) -> Any:
    return ConfigManager().parse_args(["--module", "train", *map(str, arguments)])


@pytest.mark.parametrize("name", RECIPES)
def test_numbers(name):
    config = parse("--config", name)
    (group,) = config.optimizer.param_groups
    assert (group.pattern, group.optimizer_name) == (".*", "AdamW")  # decay on everything
    training, schedule = config.training, config.lr_scheduler
    numbers = {
        "lr": group.optimizer_kwargs["lr"],
        "warm-up": schedule.warmup_steps,
        "decay": schedule.decay_type,
        "last lr": schedule.min_lr_factor,
        "clip": training.max_norm,
        "row": training.seq_len,
        "bytes per step": training.seq_len * training.global_batch_size,
        "steps": training.steps,
    }
    recipe = RECIPES[name]
    assert {key: numbers[key] for key in recipe} == recipe
    assert {**group.optimizer_kwargs, **ADAMW} == group.optimizer_kwargs
    assert schedule.decay_ratio is None  # the cosine begins where the warm-up ends
    shape = config.model_spec.model.shape
    assert (shape.init_std_factor, shape.init_base_std) == ("disabled", None)


def test_entropy_1m_is_what_its_card_says():
    training = parse("--config", "entropy_1m").training
    card = (ROOT / "model" / "weights" / "entropy-1m" / "README.md").read_text()
    tokens = training.global_batch_size * training.seq_len
    assert f"# {training.steps} steps of {tokens:,} tokens, " in card
    assert (
        f"Trained with this repository's trainer on {training.steps * tokens / 1e6:.1f} MB" in card
    )


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("blt")])
def test_a_step_is_the_same_on_1_to_512_ranks(name):
    training = parse("--config", name).training
    for ranks in (2**i for i in range(10)):
        check_batch(training, ranks)
        assert training.global_batch_size // (training.local_batch_size * ranks) >= 1


@pytest.mark.parametrize(
    ("local", "ranks", "message"),
    [
        (4, 24, r"2048 is no multiple of 96, .* give a batch of 2016 or 2112 rows$"),
        (8, 512, r"no multiple of 4096, .* \(--training.local-batch-size 8 on 512 ranks\); give "),
        (8, 512, r"give --training.local-batch-size 4, or a batch of 4096 rows$"),
        (3, 8, r"give --training.local-batch-size 2, or a batch of 2040 or 2064 rows$"),
        (0, 8, "--training.local-batch-size: at least 1, got 0"),
    ],
)
def test_ranks_that_do_not_divide_a_step(local, ranks, message):
    training = TrainingConfig(local_batch_size=local, global_batch_size=2048)
    with pytest.raises(ConfigError, match=message):
        check_batch(training, ranks)


def test_a_step_of_no_rows():
    with pytest.raises(ConfigError, match=r"--training.global-batch-size: at least 1, got 0; -1"):
        check_batch(TrainingConfig(local_batch_size=4, global_batch_size=0), 8)


def rates(*arguments: object) -> tuple[TrainedBLT, Any, Any]:
    """A tiny BLT, with the optimizer and the schedule of blt_1b."""
    config = parse("--config", "blt_1b", *arguments)
    with torch.device("meta"):
        model = TrainedBLT(TrainedBLT.Config(shape=CONFIG))
    optimizers = config.optimizer.build(model_parts=[model])
    schedulers = config.lr_scheduler.build(
        optimizers=optimizers, training_steps=config.training.steps
    )
    return model, optimizers, schedulers


def test_the_schedule_of_the_paper():
    _, (optimizer,), (schedule,) = rates()
    (group,) = optimizer.param_groups
    assert group["lr"] == pytest.approx(4e-4 / 2000)  # of the first step
    (factor,) = schedule.lr_lambdas
    assert [factor(i) for i in (999, 1999, 2000)] == [0.5, 1.0, 1.0]
    assert factor(2000 + 98_000 // 2) == pytest.approx(0.5, abs=1e-4)
    assert 0 < factor(99_999) < 1e-8  # of the last step


@pytest.mark.parametrize("factor", [0.1, 0])
def test_a_learning_rate_for_the_latent_transformer(factor):
    model, (optimizer,), _ = rates("--optimizer.latent-lr-factor", factor)
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
        assert {**group, **ADAMW} == group
        for parameter in group["params"]:
            latent = names[parameter].startswith("global_transformer.")
            assert math.isclose(group["initial_lr"], 4e-4 * (factor if latent else 1))
            seen.add(names[parameter])
    assert len(optimizer.param_groups) == 2 and seen == set(names.values())


def test_a_negative_factor_is_refused():
    with pytest.raises(ConfigError, match=r"--optimizer\.latent-lr-factor: from 0 on, got -1"):
        parse("--config", "blt_1b", "--optimizer.latent-lr-factor", -1)
