"""Runs of an experiment: one that fails is named, and the others go on."""

from types import SimpleNamespace

from model.checkpoints.files import CheckpointError
from train.cluster import checks
from train.compare import runs
from train.compare.running import train_all
from train.compare.runs import Run


def test_a_run_whose_steps_cannot_be_written_does_not_end_the_others(monkeypatch, tmp_path):
    def build() -> SimpleNamespace:
        return SimpleNamespace(close=lambda: None)

    def train(trainer: object, run: Run, began: float) -> None:
        if run.seed == 0:
            raise CheckpointError("step-4: cannot be written")

    monkeypatch.setattr("train.__main__.set_single_process_environment", lambda: None)
    monkeypatch.setattr(checks, "parse_config", lambda arguments: SimpleNamespace(build=build))
    monkeypatch.setattr(runs, "_train", train)
    given = ("text", str(tmp_path))
    both = [Run("one", seed, str(tmp_path / str(seed)), (), 5, (given,)) for seed in (0, 1)]
    ended: dict[int, str | None] = {}
    train_all(both, 1, 0.0, lambda run, failure: ended.update({run.seed: failure}))
    assert ended == {0: "step-4: cannot be written", 1: None}
    assert not list(tmp_path.glob("*/lease/*"))
