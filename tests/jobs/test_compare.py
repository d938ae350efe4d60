"""An experiment as a user runs it: equal costs, the same held-out bytes, stopped and continued."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.jobs import ROOT
from support.shard_sets import real_texts, write_shards

from pipeline.errors import ConfigError, PipelineError
from pipeline.storage.lease import held
from pipeline.storage.output import OutputDirectory
from train.compare import runs as runs_module

JOB = runpy.run_path(str(ROOT / "jobs" / "compare.py"))
QUIET = Console(quiet=True)
ERRORS = Console(stderr=True)
EXPERIMENT = """
title = "Patches"
question = "Which?"
seeds = [0]
[forms.cpu]
size = "debug"
budget_flops = 3e10
row_bytes = 256
rows = 4
vocab_size = 384
points = 2
[forms.cpu.shapes.blt]
n_layers_global = 4
local_attention_window_len = 64
[forms.cpu.shapes.bpe]
n_layers = 3
[arms.entropy]
label = "entropy patches"
model = "blt"
patch_size = 4.5
[arms.long]
label = "longer patches"
model = "blt"
patch_size = 7.0
[arms.bpe]
label = "tokens"
model = "bpe"
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A directory with shards, as the job would make them with Ray, and the experiment's file."""
    data = tmp_path / "claims" / "data"
    for name, documents, seed in (("train", 60, 0), ("held out", 4, 1)):
        write_shards(str(data / "entropy-1m" / name), real_texts(documents, seed=seed))
    (tmp_path / "mine.toml").write_text(EXPERIMENT)
    return tmp_path / "claims"


def compare(output: Path, **flags: Any) -> int:
    config = JOB["CompareConfig"](str(output.parent / "mine.toml"), str(output), **flags)
    return JOB["run"](config, ERRORS)


def test_an_experiment(output, capsys, monkeypatch):
    # Stopped within the third run, after a checkpoint: the same command continues it.
    trained = []
    train = runs_module._train

    def stopping(trainer: Any, run: Any, began: float) -> None:
        trained.append((run.arm, run.seed, trainer.config.training.steps))
        if len(trained) == 3:
            step = trainer.train_step

            def interrupted(data: Any) -> None:
                if trainer.step > trainer.config.training.steps // 2:
                    raise KeyboardInterrupt
                step(data)

            trainer.train_step = interrupted
        train(trainer, run, began)

    monkeypatch.setattr(runs_module, "_train", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(output, threads=1)
    assert [each[:2] for each in trained] == [("entropy", 0), ("long", 0), ("bpe", 0)]
    # Two commands may share the directory, but not a run.
    (folder,) = (output / "runs").glob("entropy-*/seed-0")
    (folder / "run.json").unlink()
    with held(OutputDirectory(str(folder)), "--output", QUIET):
        assert compare(output, threads=1) == 1
    assert [each[:2] for each in trained[3:]] == [("bpe", 0)]
    assert "failed: entropy, seed 0: " in capsys.readouterr().err
    assert compare(output, threads=1, json=True) == 0
    results = json.loads(capsys.readouterr().out)
    costs = [sum(arm["flops_per_byte"].values()) for arm in results["arms"]]
    assert costs == pytest.approx([costs[0]] * 3, rel=0.01)
    sizes = [arm["patch_size"] for arm in results["arms"]]
    assert sizes[0] == pytest.approx(4.5, rel=0.1) and sizes[1] == pytest.approx(7, rel=0.1)
    assert results["arms"][1]["fitted"]["dim_global"] > 128
    assert list(results["held_out"]) == ["held out"]
    for arm in results["arms"]:
        (run,) = arm["runs"]
        assert run["finished"]
        assert run["flops"] == pytest.approx(results["budget_flops"], rel=0.05)
        steps = [point["step"] for point in run["points"]]
        assert steps == sorted(set(steps)) and len(steps) >= 2
        bits = [point["bits_per_byte"]["held out"] for point in run["points"]]
        assert bits[-1] < bits[0] < 10, (arm["name"], bits)
    assert (output / "mine-cpu" / "index.html").exists()
    # A run that was measured on other bytes is not compared.
    record = Path(results["arms"][0]["runs"][0]["folder"], "run.json")
    record.write_text(record.read_text().replace('"hash": "', '"hash": "0'))
    before = len(trained)
    with pytest.raises(PipelineError, match="was measured on other bytes of 'held out' than"):
        compare(output)
    assert len(trained) == before  # all runs are done


def test_flags(output):
    for flags, message in (
        ({"arms": ("short",)}, "--arms: there is no short; there are entropy, long, bpe"),
        ({"form": "gpu"}, "--form: mine has no gpu"),
        ({"gpus_per_run": 1}, "--gpus-per-run: is for runs on Ray"),
        ({"budget_flops": -1.0}, "--budget-flops: has to be positive"),
        ({"budget_flops": float("nan")}, "--budget-flops: has to be positive"),
        ({"seeds": (0, -1)}, "--seeds: must not be negative, got -1"),
        ({"num_workers": 0}, "--num-workers: must be at least 1"),
        ({"input": ("a.txt",)}, "--input: give text to train on"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(output, **flags)
    (output / "file").touch()
    with pytest.raises(ConfigError, match=r"--output: .*file cannot be written: .* is no dir"):
        compare(output / "file")
    (output / "data" / "text.json").write_text('{"input": ["a"], "held_out": ["b"]}')
    with pytest.raises(ConfigError, match=r"--output: .* was made of other text"):
        compare(output)
