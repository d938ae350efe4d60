"""The checks of ``make gpu-check``: in their tiny form everywhere, in full where there is a GPU."""

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpu.check import STEPS, TINY, Checks, main, table
from gpu.measure import CEILING_FILE, RECORDS_FILE, Run

HASH_FILE = "stored_hash.json"
CHECK = Path(__file__).with_name("check.py")


def checked(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECK), "--output", str(output), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_everything_in_its_tiny_form(tmp_path):
    """One process for all, because imports take most of the time."""
    done = checked(tmp_path, "--tiny", "--step", *(s.name for s in STEPS if s.name not in TINY))
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (tmp_path / RECORDS_FILE).read_text().splitlines()]
    by_check = {record["check"]: record for record in records}
    assert all(record.get("met", True) for record in records)
    assert by_check["published shape: repeated runs"]["met"]
    assert by_check["BLT in float32 against the CPU in float32"]["logits"] == 0
    assert by_check["blt_1b, compiled: a step"]["recompilations_after_3_steps"] == 0
    assert by_check["generation, blt_1b with entropy_100m, 2 rows"]["bytes"] > 0
    # Nothing is said of speed.
    accumulated = by_check["blt_1b, compiled: a microbatch of 2"]
    assert accumulated["recompilations"] == 0 and "met" not in accumulated


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path, monkeypatch, capsys):
    """And is named with the end of what it said."""
    script = tmp_path / "step.py"
    script.write_text(
        "import json, sys, time\n"
        "name = sys.argv[sys.argv.index('--step') + 1]\n"
        "print('this is', name)\n"
        "if name.endswith('agreement'): sys.exit(3)\n"
        "if name.endswith('gradients'): time.sleep(60)\n"
        f"with open({str(tmp_path / RECORDS_FILE)!r}, 'a') as file:\n"
        "    print(json.dumps({'check': name, 'met': False}), file=file)\n"
    )
    monkeypatch.setattr("gpu.check.__file__", str(script))
    assert Checks(tmp_path, limit=4, tiny=False).run(["scoring", "blt.gradients"]) == 1
    said = capsys.readouterr().out
    assert "failed with status 3" in said and "this is scoring.agreement" in said
    assert "stopped at its time limit" in said
    assert "4 steps failed, 1 aims were missed" in said  # two had no time left


def test_a_card_without_memory_gets_fewer_rows(tmp_path, monkeypatch):
    """Half as many until they fit; another error is none of memory."""
    from gpu import training  # check.py has said where benchmarks are

    tried = []

    def fails_above(most: int, run, what, trainer, recompilations, aim) -> None:
        tried.append(trainer)
        if trainer > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "_shards", lambda run: "")
    monkeypatch.setattr(
        training, "trainer_of", lambda config, *where: config.training.local_batch_size
    )
    run = Run(tmp_path, tmp_path, tiny=False)
    for most, expected in ((8, [8]), (2, [8, 4, 2]), (1, [8, 4, 2, 1])):
        tried.clear()
        monkeypatch.setattr(training, "_time", functools.partial(fails_above, most))
        training._measure(run, "entropy_100m")
        assert tried == expected
    monkeypatch.setattr(training, "_time", functools.partial(fails_above, 0))
    with pytest.raises(torch.OutOfMemoryError):
        training._measure(run, "entropy_100m")


def test_table():
    lines = [
        {"check": "a", "met": True, "aim": "1", "rate": 1234.5678, "shares": {"x": 0.5}},
        {"check": "b", "met": False, "aim": "2"},
        {"check": "c", "kernels": 3},
    ]
    assert table(lines).splitlines()[2:] == [
        "| a | rate 1,235, shares (x 0.5) | 1 | met |",
        "| b |  | 2 | **missed** |",
        "| c | kernels 3 | – |  |",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [step.name for step in STEPS])
def test_on_the_gpu(name, tmp_path):
    done = checked(tmp_path, "--only", *{STEPS[0].name, name})
    assert " 0 steps failed" in "\n " + done.stdout.splitlines()[-1], done.stdout


@pytest.mark.parametrize("step", [(), ("--step", STEPS[0].name)])
def test_without_a_gpu_it_says_so(step, tmp_path, monkeypatch, capsys):
    """At once: no step is tried."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--output", str(tmp_path), *step]) == 2
    assert "no GPU is visible to torch" in capsys.readouterr().out


def test_a_run_takes_nothing_of_an_earlier_one(tmp_path, monkeypatch, capsys):
    """The ceiling may be that of another card; the hash, of another release of torch. If the
    steps that measure them fail, others go on without, and the table is printed."""
    for name in (RECORDS_FILE, CEILING_FILE, HASH_FILE):
        (tmp_path / name).write_text('{"product": 1}')
    monkeypatch.setattr(Checks, "_run_together", lambda self, steps, ends: len(steps))
    assert Checks(tmp_path, limit=4, tiny=False).run([]) == 1
    assert f"{len(STEPS)} steps failed, 0 aims were missed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS_FILE]
    assert math.isnan(Run(tmp_path, tmp_path, tiny=False).share(1e12))
