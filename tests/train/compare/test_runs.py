"""Runs of an experiment: one that fails is named, and the others go on; what a run has logged."""

from types import SimpleNamespace

from model.checkpoints.files import CheckpointError
from train.cluster import checks
from train.compare import runs
from train.compare.running import train_all
from train.compare.runs import BITS, METRICS, JsonLines, Run, read_points


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


def test_a_line_that_was_cut_off_takes_no_other_with_it(tmp_path):
    for steps in ([2, 4], [4, 6], [6, 8]):
        lines = JsonLines(tmp_path / METRICS)
        for step in steps:
            lines.log({BITS: 3 - step / 10}, step)
        lines.close()
        with (tmp_path / METRICS).open("r+b") as file:  # the last line is not written to its end
            file.truncate(file.seek(0, 2) - (6 if steps[-1] < 8 else 0))
    assert read_points(str(tmp_path)) == {step: 3 - step / 10 for step in (2, 4, 6, 8)}
