"""Converting what the trainer saved, and other weights; nothing is written by halves."""

import importlib.util
import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from support.jobs import ROOT, environment
from support.weights import Malicious, sharpen
from transformers.models.blt.modeling_blt import BltForCausalLM, BltPatcher

from model import (
    BLT,
    BLT_SIZES,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
    load_blt,
    load_entropy_model,
    save_blt,
    save_entropy_model,
)
from model.checkpoints.blt_entropy_model import load_entropy_model_of
from model.checkpoints.entropy_model import fingerprint
from model.provenance import EntropyModelIdentity, PatchProvenance
from train.checkpoints.entropy_model import keep_entropy_model, kept_entropy_model
from train.checkpoints.model_json import write_model_description

JOB = ROOT / "jobs" / "convert_checkpoint.py"
SHAPE = replace(BLT_SIZES["debug"], encoder_hash_byte_group_vocab=61, patcher=Patcher(1.5))
TOKENS = torch.randint(4, 260, (2, 40), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([[1, 3, 7, 1, 20, 9], [1, 40, 0, 0, 0, 0]])
LAYOUTS = ("own", "transformers", "published")

spec = importlib.util.spec_from_file_location("convert_checkpoint", JOB)
job: Any = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = job
spec.loader.exec_module(job)


@pytest.fixture(scope="module")
def blt() -> BLT:
    torch.manual_seed(0)
    model = BLT(SHAPE).eval()
    sharpen(model, 2)
    return model


@pytest.fixture(scope="module")
def entropy_model() -> EntropyModel:
    torch.manual_seed(0)
    model = EntropyModel(EntropyModelConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64)).eval()
    sharpen(model, 2)
    return model


def save_step(model: BLT | EntropyModel, folder: Path, step: int = 7) -> Path:
    """As the trainer does, with what it keeps beside the weights."""
    write_model_description(str(folder), model.config)
    moments = {f"state.{name}.exp_avg": w.detach() for name, w in model.named_parameters()}
    state = {
        **model.state_dict(),
        "optimizer": {**moments, "lr": 0.1},
        "lr_scheduler": {"last_epoch": step},
        "dataloader": {"rank0": b"bytes"},
        "train_state": {"step": torch.tensor(step)},
    }
    target = folder / f"step-{step}"
    dcp.save(state, checkpoint_id=str(target), no_dist=True)
    return target


@pytest.fixture
def convert(monkeypatch, capsys):
    """The job's exit status, output and errors."""

    def run(checkpoint: object, output: object, *flags: object) -> tuple[int, str, str]:
        given = ["--checkpoint", checkpoint, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, given)])
        capsys.readouterr()
        return job.main(), *capsys.readouterr()

    return run


@torch.no_grad()
def logits(model: BLT) -> torch.Tensor:
    return model(TOKENS, LENGTHS)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_a_step_of_a_blt(blt, entropy_model, layout, convert, tmp_path):
    step, output = save_step(blt, tmp_path / "checkpoint"), tmp_path / "converted"
    save_entropy_model(entropy_model, tmp_path / "entropy")
    flags = ("--layout", layout, "--entropy-model", tmp_path / "entropy")
    status, out, err = convert(step, output, *flags)
    assert status == 0
    otherwise = {
        "own": "",
        "transformers": "hash_across_documents True",
        "published": "hash_across_documents True, cross_attn_across_documents True, last_reads_",
    }[layout]
    assert err.startswith(f"note: programs that the {layout} layout" if otherwise else "")
    assert otherwise in err and err.count("\n") == bool(otherwise)
    assert out.startswith(f"BLT written to {output} ({layout} layout): config.json, ")
    loaded = load_blt(output, device="cpu")
    assert loaded.config == SHAPE
    assert torch.equal(logits(loaded), logits(blt))
    place = output if layout == "transformers" else output / "entropy_model"
    assert fingerprint(load_entropy_model(place, device="cpu")) == fingerprint(entropy_model)
    if layout == "transformers":
        theirs, loading = BltForCausalLM.from_pretrained(output, output_loading_info=True)
        assert not any(loading[what] for what in ("missing_keys", "unexpected_keys"))
        found = theirs.eval()(TOKENS, patch_lengths=LENGTHS, use_cache=False).logits
        torch.testing.assert_close(found, logits(blt), rtol=0, atol=2e-4)
    assert output.stat().st_mode == (tmp_path / "entropy").stat().st_mode


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("resets", [True, False])
def test_contexts_that_other_programs_do_not_reset_are_told(layout, resets, convert, tmp_path):
    record = (PatchProvenance(Patcher(1.5), EntropyModelIdentity(reset_at_newline=resets)),)
    save_blt(BLT(replace(SHAPE, patch_provenance=record)), tmp_path / "own")
    status, _, err = convert(tmp_path / "own", tmp_path / "out", "--layout", layout)
    assert status == 0
    assert ("place other patches" in err) == (resets and layout != "own")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_record_of_patches_goes_along(entropy_model, layout, convert, tmp_path):
    """From a step to any layout and back, with the entropy model that it names and no other."""
    identity = EntropyModelIdentity("small", fingerprint(entropy_model), "cuda bfloat16", False)
    record = (PatchProvenance(Patcher(1.5), identity, ("a", "b")),)
    step = save_step(BLT(replace(SHAPE, patch_provenance=record)), tmp_path / "checkpoint")
    save_entropy_model(entropy_model, tmp_path / "entropy")
    other = EntropyModel(entropy_model.config)
    save_entropy_model(other, tmp_path / "other")
    flags = ("--layout", layout, "--entropy-model")
    status, out, err = convert(step, tmp_path / "wrong", *flags, tmp_path / "other")
    assert (status, out) == (2, "") and not (tmp_path / "wrong").exists()
    assert err.startswith("error: --entropy-model: the entropy model of the checkpoint is small (")
    assert f"is {tmp_path / 'other'} (fingerprint {fingerprint(other)[:12]}); take those" in err
    assert convert(step, tmp_path / "between", *flags, tmp_path / "entropy") == (0, ANY, ANY)
    assert convert(tmp_path / "between", tmp_path / "end") == (0, ANY, "")
    assert load_blt(tmp_path / "between", device="cpu").config.patch_provenance == record
    assert load_blt(tmp_path / "end", device="cpu").config.patch_provenance == record
    if layout == "transformers":  # which passes over the record
        theirs, loading = BltForCausalLM.from_pretrained(
            tmp_path / "between", output_loading_info=True
        )
        assert not any(loading[what] for what in ("missing_keys", "unexpected_keys"))
        theirs.save_pretrained(tmp_path / "theirs")
        assert load_blt(tmp_path / "theirs", device="cpu").config.patch_provenance == record
    allowed = (*flags, tmp_path / "other", "--allow-other-entropies")
    status, _, err = convert(tmp_path / "end", tmp_path / "other-model", *allowed)
    assert status == 0 and err.startswith("note: the entropy model of the checkpoint is small")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_of_an_entropy_model(entropy_model, layout, convert, tmp_path):
    step, output = save_step(entropy_model, tmp_path / "checkpoint"), tmp_path / "converted"
    (tmp_path / "converted").mkdir()  # may be there, if it is empty
    status, out, _ = convert(step, output, "--layout", layout, "--json")
    assert status == 0
    assert json.loads(out) == {
        "output": str(output),
        "layout": layout,
        "model": "entropy model",
        "files": ["config.json", "model.safetensors"],
    }
    assert fingerprint(load_entropy_model(output, device="cpu")) == fingerprint(entropy_model)
    if layout == "transformers":
        h, _, _ = BltPatcher.from_pretrained(output).eval()(TOKENS, use_cache=False)
        torch.testing.assert_close(h, entropy_model.entropies(TOKENS), rtol=0, atol=2e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mean_of_steps(layout, dtype, convert, tmp_path):
    """In float32, whatever the dtype of the steps, and rounded once."""
    config = EntropyModelConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64)
    steps, weights = [], []
    for number in (9, 20, 50, 100, 1000):
        torch.manual_seed(number)
        model = EntropyModel(config).to(dtype)
        sharpen(model, 2)
        steps.append(save_step(model, tmp_path / "checkpoint", number))
        weights.append({name: weight.double() for name, weight in model.state_dict().items()})
    aside = steps.pop(2)  # a run went back to step 20
    (aside / ".metadata").rename(aside / ".metadata.set-aside")
    del weights[2]
    status, _, err = convert(aside, tmp_path / "aside")
    assert status == 2 and "step-50: was set aside, because its run went back" in err
    output = tmp_path / "mean"
    flags = ("--average", 3, "--layout", layout)
    status, out, err = convert(f"{steps[2]}/", output, *flags, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["averaged"] == [str(step) for step in steps[2::-1]]
    found = load_entropy_model(output, device="cpu", dtype="stored").state_dict()
    for name, weight in found.items():
        three = torch.stack([of_step[name] for of_step in weights[:3]])
        mean = three.mean(0)
        if dtype == torch.float32:
            assert ((weight - mean).abs() <= three.abs().sum(0) * 2**-23).all()
        else:  # the sum of three bfloat16 is nearly exact in float32
            assert (weight != mean.to(dtype)).float().mean() < 0.01
        assert weight.dtype == dtype
    bucket = f"/{tmp_path.name}"
    fsspec.filesystem("memory").put(str(tmp_path / "checkpoint"), bucket, recursive=True)
    assert convert(f"memory:/{bucket}/step-100", tmp_path / "of-url", *flags)[0] == 0
    same = [(place / "model.safetensors").read_bytes() for place in (output, tmp_path / "of-url")]
    assert same[0] == same[1]


def test_a_mean_that_cannot_be(entropy_model, blt, convert, tmp_path):
    first = save_step(entropy_model, tmp_path / "checkpoint", 1)
    second = save_step(entropy_model, tmp_path / "checkpoint", 2)
    save_blt(blt, tmp_path / "weights")
    for checkpoint, count, said in (
        (second, 3, "step-2: 3 steps are to be averaged, and 2 complete ones are there, with"),
        (first, 2, "step-1: 2 steps are to be averaged, and 1 complete ones are there"),
        (tmp_path / "weights", 2, "--average: .* is no step of the trainer"),
        (second, 0, "--average: must be at least 1"),
    ):
        status, _, err = convert(checkpoint, tmp_path / "out", "--average", count)
        assert status == 2 and re.search(said, " ".join(err.split())), err
    other = save_step(EntropyModel(replace(entropy_model.config, dim=64)), tmp_path / "other", 3)
    (tmp_path / "other" / "model.json").rename(other / "model.json")
    other.rename(tmp_path / "checkpoint" / "step-3")
    status, _, err = convert(tmp_path / "checkpoint" / "step-3", tmp_path / "out", "--average", 2)
    assert status == 2 and "another model than the step before: dim is 32 there" in err, err
    (first / ".metadata").unlink()
    status, _, err = convert(second, tmp_path / "out", "--average", 2)
    assert status == 2 and "averaged, and 1 complete ones are" in " ".join(err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_as_a_user_does_it(blt, tmp_path):
    step = save_step(blt, tmp_path / "outputs" / "checkpoint")
    done = subprocess.run(
        [sys.executable, str(JOB), "--checkpoint", step.relative_to(tmp_path), "--output", "new"],
        env=environment(OMP_NUM_THREADS="1"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert torch.equal(logits(load_blt(tmp_path / "new", device="cpu")), logits(blt))


def test_dtypes_are_kept(blt, entropy_model, convert, tmp_path):
    halved = BLT(SHAPE)
    halved.load_state_dict(blt.state_dict())
    halved.to(torch.bfloat16)
    step = save_step(halved, tmp_path / "checkpoint")
    save_blt(halved, tmp_path / "weights", entropy_model=entropy_model)
    for source in (step, tmp_path / "weights"):
        output = tmp_path / f"of-{source.name}"
        assert convert(source, output, "--layout", "transformers")[0] == 0
        loaded = load_blt(output, device="cpu", dtype="stored")
        assert {w.dtype for w in loaded.parameters()} == {torch.bfloat16}
        assert all(torch.equal(loaded.state_dict()[k], w) for k, w in halved.state_dict().items())
    kept = load_entropy_model(output, device="cpu", dtype="stored")
    assert fingerprint(kept) == fingerprint(entropy_model)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_of_any_layout(blt, entropy_model, layout, convert, tmp_path):
    save_blt(blt, tmp_path / "start", entropy_model=entropy_model)
    assert convert(tmp_path / "start", tmp_path / "between", "--layout", layout)[0] == 0
    assert convert(tmp_path / "between", tmp_path / "end")[0] == 0
    for name in ("model.safetensors", "config.json", "entropy_model/model.safetensors"):
        kept = [(tmp_path / place / name).read_bytes() for place in ("start", "end")]
        assert kept[0] == kept[1], name
    fsspec.filesystem("memory").put(str(tmp_path / "between"), "/bucket/any", recursive=True)
    status, _, err = convert("memory://bucket/any", tmp_path / f"{layout}-of-url")
    assert status == 0, err
    expected = (tmp_path / "end" / "model.safetensors").read_bytes()
    assert (tmp_path / f"{layout}-of-url" / "model.safetensors").read_bytes() == expected


def test_an_ngram_entropy_model_stays_below(blt, ngram_model, convert, tmp_path):
    save_blt(blt, tmp_path / "start", entropy_model=ngram_model)
    assert convert(tmp_path / "start", tmp_path / "end")[0] == 0
    below = load_entropy_model(tmp_path / "end" / "entropy_model")
    assert fingerprint(below) == fingerprint(ngram_model)
    status, _, err = convert(tmp_path / "start", tmp_path / "new", "--layout", "transformers")
    assert status == 0
    assert err.startswith("note: the transformers layout cannot hold an n-gram model; the ")
    below = load_entropy_model(tmp_path / "new" / "entropy_model")
    assert fingerprint(below) == fingerprint(ngram_model)


def test_steps_at_urls_and_steps_of_safetensors(blt, convert, tmp_path):
    folder = tmp_path / "checkpoint"
    save_step(blt, folder)
    (folder / "step-8").mkdir()
    save_blt(blt, folder / "step-8")
    (folder / "step-8" / "config.json").unlink()  # as torchtitan leaves it
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/run/checkpoint", recursive=True)
    for step in ("step-7", "step-8"):
        for i, source in enumerate((folder / step, f"memory://run/checkpoint/{step}")):
            output = tmp_path / f"{step}-{i}"
            status, _, err = convert(source, output)
            assert status == 0, err
            assert torch.equal(logits(load_blt(output, device="cpu")), logits(blt))


def test_what_is_wrong_is_said(blt, entropy_model, convert, tmp_path):
    def refused(checkpoint: object, message: str, *flags: object, output: object = "new") -> None:
        status, out, err = convert(checkpoint, tmp_path / output, *flags)
        assert (status, out) == (2, "")
        assert err.startswith(f"error: {message}"), err
        assert err.count("\n") == 1
        assert {path.name for path in tmp_path.iterdir()} <= known

    folder = tmp_path / "checkpoint"
    step = save_step(blt, folder)
    save_entropy_model(entropy_model, tmp_path / "entropy")
    (tmp_path / "empty").mkdir()
    known = {"checkpoint", "entropy", "empty", "taken", "file"}
    (tmp_path / "taken").mkdir()
    for taken in (tmp_path / "taken" / "x", tmp_path / "file"):
        taken.write_text("x")
    for name in ("taken", "file"):
        refused(step, f"--output: {tmp_path}/{name} exists; give another", output=name)
    status, _, err = convert(step, "memory://x/y")
    assert status == 2 and err.startswith("error: --output: memory://x/y is a URL")
    refused(tmp_path / "none", f"--checkpoint: {tmp_path}/none: no such directory")
    refused(tmp_path / "empty", f"--checkpoint: {tmp_path}/empty: no BLT in a known layout")
    missing = "memory://nowhere/step-1"
    refused(missing, f"--checkpoint: cannot read the checkpoint in {missing}")
    refused(
        tmp_path / "entropy",
        "--entropy-model: the checkpoint is an entropy model; leave it out",
        *("--entropy-model", tmp_path / "entropy"),
    )
    refused(step, f"--entropy-model: {tmp_path}/no: no such", "--entropy-model", tmp_path / "no")

    save_step(blt, folder, 12)
    status, _, err = convert(folder, tmp_path / "new")
    assert status == 2
    assert f"{folder}: holds steps of a training; " in err
    assert err.endswith(f"; give one of its steps, such as {folder}/step-12\n")

    index = step / ".metadata"
    whole = index.read_bytes()
    index.unlink()
    refused(step, f"--checkpoint: {step}: has no .metadata: it was not written to its end")
    for broken in (whole[: len(whole) // 2], b"", b"no pickle"):
        index.write_bytes(broken)
        refused(step, f"--checkpoint: {step}: .metadata is broken, or holds code")
    index.write_bytes(whole)

    (data,) = step.glob("*.distcp")
    content = data.read_bytes()
    for kept in (len(content) // 2, 0):
        data.write_bytes(content[:kept])
        refused(step, f"--checkpoint: {step}: the weights cannot be read: ")
    data.unlink()
    refused(step, f"--checkpoint: {step}: the weights cannot be read: FileNotFoundError: ")
    data.write_bytes(content)

    description = folder / "model.json"
    told = json.loads(description.read_text())
    name = "global_transformer.layers.2"
    for change, message in (
        ({"n_layers_global": 3}, f"{step}: the checkpoint lacks weights: {name}.attention.wk"),
        ({"n_layers_global": 1}, f"{step}: the checkpoint has unknown weights: global_transf"),
        ({"encoder_hash_byte_group_vocab": 60}, f"{step}: weight encoder_hash_tok_embedding.0"),
        ({"experts": 3}, f"{description}: config.json: unknown argument 'experts'"),
        ({"format": "other"}, f"{description}: format: 'other' is not known"),
    ):
        description.write_text(json.dumps({**told, **change}))
        refused(step, f"--checkpoint: {message}")
    description.write_text("{")
    refused(step, f"--checkpoint: cannot read the model description in {description}")
    description.unlink()
    refused(step, f"--checkpoint: {step}: there is no model.json, in it or in the directory above")
    (step / "model.json").write_text(json.dumps(told))
    assert convert(step, tmp_path / "new")[0] == 0


def test_layouts_that_cannot_hold_the_model(convert, tmp_path):
    model = BLT(replace(SHAPE, patcher=Patcher(rule="top-k", patch_size=4)))
    step = save_step(model, tmp_path / "checkpoint")
    for layout in ("transformers", "published"):
        status, _, err = convert(step, tmp_path / "new", "--layout", layout)
        assert status == 2
        assert err.startswith(f"error: --layout: {layout}") or "published layout cannot" in err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_nothing_is_written_by_halves(blt, convert, tmp_path, monkeypatch):
    step = save_step(blt, tmp_path / "checkpoint")

    def fails(model: BLT, directory: Path, **flags: object) -> None:
        save_blt(model, directory)
        raise OSError("No space left on device")

    monkeypatch.setattr("train.convert.job.save_blt", fails)
    status, out, err = convert(step, tmp_path / "new")
    assert (status, out) == (1, "")
    assert "new cannot be written: No space left on device" in err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_code_in_a_step_is_not_run(blt, convert, tmp_path):
    step, target = save_step(blt, tmp_path / "checkpoint"), tmp_path / "owned"
    (step / ".metadata").write_bytes(pickle.dumps(Malicious(target)))
    status, _, err = convert(step, tmp_path / "new")
    assert status == 2 and "never run" in err
    assert not target.exists()


def recorded(entropy_model, source: str) -> BLT:
    """A BLT that was trained on patches of an entropy model, named as a manifest would."""
    identity = EntropyModelIdentity(source, fingerprint(entropy_model), "cpu float32", False)
    record = (PatchProvenance(Patcher(1.5), identity, ("a",)),)
    return BLT(replace(SHAPE, patcher=Patcher(1.5), patch_provenance=record))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_takes_its_entropy_model_along(ngram_model, layout, convert, tmp_path):
    """Without a flag: the one beside the step, or the one that comes with this package."""
    built_in = load_entropy_model("entropy-1m", device="cpu", dtype="stored")
    kept = tmp_path / "set" / "entropy-model"
    save_entropy_model(ngram_model, kept)
    for name, place, model in (
        ("entropy-1m", "entropy-1m", built_in),
        ("ngram", str(kept), ngram_model),
    ):
        folder, output = tmp_path / name, tmp_path / f"{name}-converted"
        step = save_step(recorded(model, name), folder)
        assert keep_entropy_model(str(folder), {fingerprint(model): place}) is None
        assert (folder / "entropy_model").is_dir() == (name == "ngram")
        found = load_entropy_model_of(step, device="cpu") if name == "ngram" else built_in
        assert fingerprint(found) == fingerprint(model)
        status, _, err = convert(step, output, "--layout", layout)
        assert status == 0
        refused = {"ngram": layout != "own", "entropy-1m": layout == "published"}[name]
        assert ("; the entropy model lies in entropy_model/ in our own layout" in err) == refused
        assert fingerprint(load_entropy_model_of(output, device="cpu")) == fingerprint(model)
        again = tmp_path / f"{name}-again"
        assert convert(output, again)[0] == 0
        assert fingerprint(load_entropy_model_of(again, device="cpu")) == fingerprint(model)


def test_an_entropy_model_that_is_gone_is_said(entropy_model, convert, tmp_path, monkeypatch):
    digits = fingerprint(entropy_model)[:12]
    way_on = "give it with --entropy-model, here or to generate.py and evaluate.py\n"
    for source, why in (
        ("private", "the checkpoint names no place"),
        ("entropy-1m", "entropy-1m: is no longer the entropy model of the checkpoint's patches"),
        ("owner/gone", "owner/gone: cannot be downloaded from the hub"),
    ):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        step = save_step(recorded(entropy_model, source), tmp_path / source / "steps")
        status, _, err = convert(step, tmp_path / source / "converted")
        assert status == 0
        assert err.startswith(
            f"note: written without the entropy model {source} (fingerprint {digits}): {why}"
        )
        assert err.endswith(way_on) and err.count("\n") == 1
        assert not (tmp_path / source / "converted" / "entropy_model").exists()


def test_an_entropy_model_that_cannot_be_kept_is_said(entropy_model, ngram_model, tmp_path):
    wanted = fingerprint(ngram_model)
    folder = str(tmp_path / "steps")
    for models, message in (
        ({wanted: None}, "the shard sets do not name their entropy model: give it to convert_"),
        ({wanted: "a", "f" * 64: "b"}, "the shard sets have entropies of 2 models, and the"),
        ({wanted: "/gone"}, "the entropy model of the shards is not kept with the steps (/gone: "),
    ):
        assert str(keep_entropy_model(folder, models)).startswith(message)
    save_entropy_model(entropy_model, tmp_path / "other")
    said = keep_entropy_model(folder, {wanted: str(tmp_path / "other")})
    assert str(said).startswith(f"{tmp_path / 'other'} is no longer the entropy model of the sha")
    assert keep_entropy_model(folder, {}) is None and not (tmp_path / "steps").exists()
    memory = "memory://kept/steps"
    save_entropy_model(ngram_model, tmp_path / "ngram")
    assert keep_entropy_model(memory, {wanted: str(tmp_path / "ngram")}) is None
    assert keep_entropy_model(memory, {wanted: "/gone"}) is None  # a rerun: it lies there
    assert fingerprint(kept_entropy_model(f"{memory}/step-7")) == wanted
