"""Which starts of a command go back to an earlier step."""

import pytest

from train.checkpoints.going_back import LAUNCHES, RESTARTS, go_back, has_gone_back


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
def test_starts_of_one_launch_go_back_once(before, now, gone_back, tmp_path, monkeypatch):
    for name in (*RESTARTS, *LAUNCHES):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    go_back(str(tmp_path), 4)
    for name, value in now.items():
        monkeypatch.setenv(name, value)
    assert has_gone_back(str(tmp_path), 4) is gone_back
    assert not has_gone_back(str(tmp_path), 2)
