"""Writing on as a user does it: what is printed, and what is said when something is wrong."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.jobs import ROOT, RunJob, environment, job_here
from support.weights import sharpen

from model import BLT, BLT_SIZES, EntropyModel, EntropyModelConfig, Patcher, generate, save_blt

JOB = ROOT / "jobs" / "generate.py"
THRESHOLD = 3.3


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, BLT, EntropyModel]:
    """A BLT with its entropy model below it."""
    torch.manual_seed(5)
    config = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, window=40)
    entropy_model = EntropyModel(config).eval()
    blt = BLT(replace(BLT_SIZES["debug"], patcher=Patcher(THRESHOLD))).eval()
    sharpen(entropy_model, 4)
    sharpen(blt, 3)
    directory = tmp_path_factory.mktemp("blt")
    save_blt(blt, directory, entropy_model=entropy_model)
    return directory, blt, entropy_model


@pytest.fixture
def run(monkeypatch, capsys) -> RunJob:
    """Run the job in this process: importing torch takes longer than what is tested."""
    return job_here(JOB, monkeypatch, capsys)


def run_alone(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, str(JOB), *map(str, arguments)],
        # What is printed is UTF-8 all the same.
        env=environment(OMP_NUM_THREADS="1", PYTHONIOENCODING="ascii"),
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_text_goes_to_standard_output(models):
    directory, blt, entropy_model = models
    expected = generate(blt, entropy_model, ["Hällo"], max_new_bytes=40)[0]
    for given in (("--prompt", "Hällo"), ()):
        flags = ("--model", directory, *given, "--max-new-bytes", 40)
        done = run_alone(*flags, stdin="Hällo".encode())
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode() == expected.decode(errors="replace") + "\n"
        assert f"{len(expected)} bytes in" in done.stderr.decode()


def test_several_prompts_as_json(run, models):
    directory, blt, entropy_model = models
    options = {"max_new_bytes": 20, "temperature": 0.8, "top_k": 20, "seed": 3}
    expected = generate(blt, entropy_model, ["a", "and so"], **options)
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = run("--model", directory, "--prompt", "a", "and so", *flags, "--json")
    result = json.loads(done.stdout)
    assert result["prompts"] == ["a", "and so"]
    assert result["texts"] == [text.decode(errors="replace") for text in expected]
    assert result["bytes"] == sum(map(len, expected))


def test_the_layout_of_transformers_holds_both_models(run, models, tmp_path):
    directory, blt, entropy_model = models
    save_blt(blt, tmp_path / "both", layout="transformers", entropy_model=entropy_model)
    flags = ("--prompt", "Hello", "--max-new-bytes", 30)
    both = run("--model", tmp_path / "both", *flags)
    assert both.returncode == 0, both.stderr
    assert both.stdout == run("--model", directory, *flags).stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model {tmp}/none", "--model: {tmp}/none: no such directory, and not a hub id"),
        ("--model {tmp}/alone", "--entropy-model: {tmp}/alone: holds no entropy model"),
        (
            "--model {tmp}/space --threshold 1",
            "--threshold: the space rule has none",
        ),
        ("--model {tmp}/rule", "--threshold: the checkpoint does not say which rule"),
        ("--model {model} --temperature -1", "--temperature: must be 0 or more"),
        ("--model {model} --draft-bytes 2 --temperature 1", "--draft-bytes: drafts are checked"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(run, models, tmp_path, flags, message):
    directory, blt, _ = models
    save_blt(blt, tmp_path / "alone")
    for name, patcher in (("rule", None), ("space", Patcher(rule="space"))):
        save_blt(BLT(replace(blt.config, patcher=patcher)), tmp_path / name)
    done = run(*flags.format(tmp=tmp_path, model=directory).split(), "--prompt", "a")
    assert done.returncode == 2
    said = done.stderr
    assert said.startswith(f"error: {message.format(tmp=tmp_path)}"), said
    assert said.count("\n") == 1 and not done.stdout
