"""Plans of patching: hours, cost and storage by formula, with rates as they were measured."""

import json

import pytest

from jobs import plan as job
from pipeline.errors import ConfigError
from pipeline.patch.needs import device_rate, plan_patching, storage_of


def rate(model: str, *, gpu: bool) -> float:
    return device_rate(model, gpu_tflops=989, mfu=0.34, gpu=gpu)


def test_rates_are_those_that_were_measured():
    assert rate("facebook/blt-entropy", gpu=True) == pytest.approx(1.60e6, rel=0.01)
    assert rate("entropy-1m", gpu=False) == pytest.approx(20e3, rel=0.01)
    assert rate("entropy-conv", gpu=False) == 0.396e6


def test_a_plan():
    # 1 TB at 1 MB/s per GPU: a million seconds of a GPU, 277.8 hours.
    plan = plan_patching(10**12, 1e6, 8, 2.0)
    assert plan.device_hours == pytest.approx(277.8, rel=1e-3)
    assert plan.hours == pytest.approx(34.7, rel=1e-2) and plan.cost == pytest.approx(
        555.6, rel=1e-3
    )
    assert plan_patching(10**12, 1e6, 16, None).cost is None
    assert storage_of(100).shards == pytest.approx(224)


def run(monkeypatch, capsys, *flags: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["plan.py", *flags])
    status = job.main()
    return status, *capsys.readouterr()


def test_the_job(monkeypatch, capsys):
    flags = ("--corpus-bytes", "4TB", "--gpus", "8", "64", "--gpu-hour-price", "2.5")
    status, out, _ = run(monkeypatch, capsys, *flags)
    assert status == 0 and "8,960 GB of shards" in out and "0.34 of 989 TFLOP/s" in out
    status, out, _ = run(monkeypatch, capsys, *flags, "--json")
    plans = json.loads(out)["plans"]
    assert [plan["devices"] for plan in plans] == [8, 64]
    assert plans[0]["cost"] == pytest.approx(plans[1]["cost"])
    status, out, _ = run(monkeypatch, capsys, "--corpus-bytes=1GB", "--entropy-model", "ngram")
    assert status == 0 and "cores" in out and "256" in out


def test_figures_are_whole_in_a_narrow_terminal_and_of_a_small_corpus(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    flags = ("--corpus-bytes", "10MB", "--cores", "1", "512", "--entropy-model", "entropy-conv")
    status, out, _ = run(monkeypatch, capsys, *flags)
    assert status == 0 and "…" not in out
    lines = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["512"])]
    assert lines == [
        ["1", "0.4", "0.007", "0.007", "5"],
        ["512", "203", "1.4e-05", "0.007", "2,749"],
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--config", "--config: name at least one"),
        ("--gpus", "--gpus: name at least one"),
        ("--mfu 1.5", "--mfu: is a share of the peak, at most 1"),
        ("--gpu-memory inf", "--gpu-memory: has to be positive"),
    ],
)
def test_a_wrong_flag_of_a_training_is_named(monkeypatch, capsys, flags, message):
    status, _, err = run(monkeypatch, capsys, *flags.split())
    assert status == 2 and f"error: {message}" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--gpus 8 --entropy-model ngram", "--entropy-model ngram: it runs on CPUs; give --cores"),
        ("--gpus 8 --cores 8", "--cores: give GPUs or cores, not both"),
        ("--cores 8 --gpu-tflops 500", "--gpu-tflops: says what a GPU does; --cores has none"),
        ("--gpus 0", "--gpus: must be at least 1"),
        ("--scoring-mfu 1.5", "--scoring-mfu: is a share of the peak, at most 1"),
        ("--gpu-hour-price nan", "--gpu-hour-price: must be at least 0, got nan"),
        ("--scoring-mfu 0", "--scoring-mfu: has to be positive"),
        ("--entropy-model nowhere", "--entropy-model: nowhere: no such directory"),
    ],
)
def test_a_wrong_flag_is_named(monkeypatch, capsys, flags, message):
    status, _, err = run(monkeypatch, capsys, "--corpus-bytes", "1TB", *flags.split())
    assert status == 2 and f"error: {message}" in err


def test_a_model_of_another_kind(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        rate(str(tmp_path / "nothing"), gpu=True)
