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

from model import (
    BLT,
    BLT_SIZES,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
    generate,
    save_blt,
    save_entropy_model,
)
from model.checkpoints.entropy_model import fingerprint
from model.provenance import EntropyModelIdentity, PatchProvenance

JOB = ROOT / "jobs" / "generate.py"
THRESHOLD = 3.3


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, BLT, EntropyModel]:
    """A BLT with its entropy model below it."""
    torch.manual_seed(5)
    config = EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, window=40)
    entropy_model = EntropyModel(config).eval()
    sharpen(entropy_model, 4)
    identity = EntropyModelIdentity("small", fingerprint(entropy_model), "cpu float32", False)
    record = (PatchProvenance(Patcher(THRESHOLD), identity, ("texts",)),)
    shape = replace(BLT_SIZES["debug"], patcher=Patcher(THRESHOLD), patch_provenance=record)
    blt = BLT(shape).eval()
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


def test_a_model_of_mixed_sets_asks_for_a_rule(run, models, tmp_path):
    _, blt, entropy_model = models
    (one,) = blt.config.patch_provenance
    other = replace(one.entropy_model, source="large", fingerprint="f" * 64)
    record = (
        one,
        PatchProvenance(Patcher(3.5, max_patch_length=6), other, ("a", "b", "c", "d")),
        PatchProvenance(Patcher(rule="space"), None, ("words",)),
    )
    mixed = BLT(replace(blt.config, patcher=None, patch_provenance=record))
    mixed.load_state_dict(blt.state_dict())
    save_blt(mixed, tmp_path, entropy_model=entropy_model)
    flags = ("--model", tmp_path, "--prompt", "Hello", "--max-new-bytes", 30)
    asked = run(*flags)
    assert asked.returncode == 2 and asked.stderr == (
        "error: --rule, --threshold: the model was trained on sets with different patches: "
        f"global (threshold 3.3) on entropies of {one.entropy_model} in texts; "
        f"global (threshold 3.5, max_patch_length 6) on entropies of {other} in a, b, c and 1 more"
        "; space in words; name the rule and the threshold of one, and give its --entropy-model\n"
    )
    for given, rule, model in (
        (("--threshold", THRESHOLD), Patcher(THRESHOLD), entropy_model),
        (("--rule", "space"), Patcher(rule="space"), None),
        (  # the recorded rule with all its settings
            ("--rule", "global", "--threshold", 3.5, "--allow-other-entropies"),
            Patcher(3.5, max_patch_length=6),
            entropy_model,
        ),
    ):
        done = run(*flags, *given)
        assert done.returncode == 0, done.stderr
        expected = generate(blt, model, ["Hello"], max_new_bytes=30, patcher=rule)[0]
        assert done.stdout == expected.decode(errors="replace") + "\n"
        assert "note: the model was trained on 3 kinds of patches: global" in done.stderr
    assert run(*flags, "--rule", "global").returncode == 2  # there are two


def test_another_entropy_model_is_refused(run, models, tmp_path):
    directory, _, entropy_model = models
    other = EntropyModel(entropy_model.config)
    save_entropy_model(other, tmp_path)
    flags = ("--model", directory, "--prompt", "a", "--entropy-model", tmp_path)
    done = run(*flags)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(
        "error: --entropy-model: the entropy model of the checkpoint is s"
    )
    assert done.stderr.endswith("go on all the same (--allow-other-entropies)\n")
    done = run(*flags, "--allow-other-entropies", "--max-new-bytes", 3)
    assert done.returncode == 0 and "note: the entropy model of the checkpoint" in done.stderr


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
        shape = replace(blt.config, patcher=patcher, patch_provenance=())
        save_blt(BLT(shape), tmp_path / name)
    done = run(*flags.format(tmp=tmp_path, model=directory).split(), "--prompt", "a")
    assert done.returncode == 2
    said = done.stderr
    assert said.startswith(f"error: {message.format(tmp=tmp_path)}"), said
    assert said.count("\n") == 1 and not done.stdout


def test_broken_weights_are_told(run, models, tmp_path):
    _, blt, entropy_model = models
    broken = BLT(blt.config)
    broken.load_state_dict(blt.state_dict())
    with torch.no_grad():
        broken.local_decoder.output.weight[9] = torch.nan
    save_blt(broken, tmp_path, entropy_model=entropy_model)
    done = run("--model", tmp_path, "--prompt", "a")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --model: gave a probability that is not a number")
