"""Arms of the experiments that come along, planned as they are on a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.shard_sets import real_texts, write_shards

from train.compare.data import Data
from train.compare.experiment import Arm, read_experiment, shipped
from train.shim import prepare


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("data")
    arms = [arm for name in shipped() for arm in read_experiment(name).arms]
    for name in {arm.entropy_model for arm in arms}:
        write_shards(str(folder / name / "train"), real_texts(60))
    return Data(folder)


def test_gpu_forms(data, monkeypatch):
    """The trainer takes the flags of every arm where there is a GPU, and the costs are equal."""
    prepare()
    import train.refusals
    from train.compare.arms import plan_arms
    from train.data import bpe_training

    cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(train.refusals, "torch", SimpleNamespace(**{**vars(torch), "cuda": cuda}))
    tokenizer = data.tokenizer(512)
    tokenizer.write_bytes(bpe_training.train([text.decode() for text in real_texts(30)], 512))
    planned: list[Arm] = []
    for name in shipped():
        experiment = read_experiment(name)
        # An arm of several experiments is planned once; all begin with the same one.
        arms = [a for i, a in enumerate(experiment.arms) if not i or a not in planned]
        planned += arms
        form = replace(experiment.form("gpu"), rows=2, vocab_size=512)
        first, *others = plan_arms(replace(experiment, arms=tuple(arms)), form, data)
        for arm in (first, *others):
            assert arm.steps * arm.step_bytes * arm.cost == pytest.approx(
                form.budget_flops, rel=0.01
            )
            assert arm.cost == pytest.approx(first.cost, rel=0.01)
            assert "--compile.enable" in arm.arguments
