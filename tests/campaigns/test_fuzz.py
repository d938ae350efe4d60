"""A short form of ``make fuzz``, and that it notices what it looks for."""

import subprocess
import sys
from pathlib import Path

import pytest
from campaigns import fuzz
from support import mutations


def test_damaged_files_are_accepted_or_rejected(tmp_path):
    report = fuzz.campaign(300, 7, 1, tmp_path / "kept", with_bombs=False)
    assert report.is_good, "\n".join(report.notable)
    total = sum(counts.total() for counts in report.counts.values())
    assert total == 300 and len(report.counts) == 11
    assert all(counts["rejected"] for counts in report.counts.values())
    # A crash of Arrow's is one that jobs name; none was seen with these inputs.
    assert not any(counts["crashed"] for counts in report.counts.values()), report.notable


def test_the_inputs_follow_from_the_seed():
    def first(seed: int) -> list[tuple[str, str, bytes]]:
        made = fuzz.inputs(seed, [])
        return [next(made) for _ in range(50)]

    assert first(1) == first(1) != first(2)


def test_undamaged_files_are_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "MUTATIONS", (lambda data, chance: None,))
    report = fuzz.campaign(60, 0, 1, tmp_path / "kept", with_bombs=False)
    assert sum(counts["accepted"] for counts in report.counts.values()) == 60


ENDINGS = {
    "crashed": "import os; os.kill(os.getpid(), 11)",
    "hung": "import time; time.sleep(60)",
    "memory": 'print(\'{"peak": %d, "bug": ""}\' % (1 << 40), flush=True); input()',
    "traceback": 'print(\'{"peak": 0, "bug": "KeyError"}\', flush=True); input()',
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_campaign_notices(tmp_path, monkeypatch, ending):
    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", ENDINGS[ending]]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, text=True, **pipes)

    monkeypatch.setattr(fuzz.Worker, "_start", staticmethod(start))
    monkeypatch.setattr(fuzz, "SECONDS", 2 if ending == "hung" else 60)
    kept = tmp_path / "kept"
    report = fuzz.campaign(1, 0, 1, kept, with_bombs=False)
    (counts,) = report.counts.values()
    assert counts == {ending: 1}
    assert report.is_good == (ending == "crashed")  # which a job survives, and names
    assert len(list(Path(kept).iterdir())) == len(report.notable) == 1
    assert ending in report.notable[0]
