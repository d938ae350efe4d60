"""Which starts of a command go back to an earlier step, or leave states out of a step."""

import pytest

from pipeline.errors import ConfigError
from train.checkpoints.going_back import go_back, has_gone_back
from train.checkpoints.launches import LAUNCHES, RESTARTS
from train.checkpoints.leaving_out import record_left_out, still_left_out


@pytest.mark.parametrize(
    ("before", "now", "gone_back"),
    [
        ({"TORCHELASTIC_RUN_ID": "a"}, {"TORCHELASTIC_RUN_ID": "a"}, False),
        (
            {"TORCHELASTIC_RUN_ID": "a"},
            {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "1"},
            True,
        ),
        # The first start of another launch died before it had gone back.
        (
            {"TORCHELASTIC_RUN_ID": "a"},
            {"TORCHELASTIC_RUN_ID": "b", "TORCHELASTIC_RESTART_COUNT": "1"},
            False,
        ),
        # A requeued job is the same launch, and another run of torchrun.
        (
            {"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "7-0"},
            {"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "7-1", "SLURM_RESTART_COUNT": "1"},
            True,
        ),
        (
            {"SLURM_JOB_ID": "7"},
            {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"},
            False,
        ),
    ],
)
def test_starts_of_one_launch_do_it_once(before, now, gone_back, tmp_path, monkeypatch):
    for name in (*RESTARTS, *LAUNCHES):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    folder, states = str(tmp_path), ["optimizer", "dataloader"]
    go_back(folder, 4)
    record_left_out(folder, 4, states)
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    assert has_gone_back(folder, 4) is gone_back
    assert not has_gone_back(folder, 2)
    assert still_left_out(folder, 6, states[::-1]) == ([] if gone_back else states[::-1])
    assert still_left_out(folder, 4, states) == states  # it died before it saved a step
    assert still_left_out(folder, 6, states[1:]) == states[1:]


def test_a_run_without_its_step_cannot_go_on_in_the_folder(tmp_path):
    states = ["train_state"]
    assert still_left_out(str(tmp_path), -1, states) == states
    with pytest.raises(
        ConfigError, match=r"steps count from 1 again, and .* holds step 6.*/step-6"
    ):
        still_left_out(str(tmp_path), 6, states)
