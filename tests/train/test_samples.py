"""Texts that are written during training are those of the weights that the step is saved with."""

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support import tiny as tiny_models
from support.jobs import ROOT, edit_json
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, Training, start, tiny, train
from torch import nn

from model import BLT_SIZES, Patcher, generate, load_blt, load_entropy_model
from model.checkpoints.entropy_model import fingerprint
from model.generation.sampling import Sampling
from train import samples
from train.checkpoints.kinds import build_model
from train.checkpoints.steps import read_step
from train.model_spec import ENTROPY_SIZES

PROMPTS = ("The quick, brown", "")
FLAGS = ("--samples.freq", 2, "--samples.temperature", 0, "--samples.max-new-bytes", 12)
FLAGS += ("--samples.prompts", *PROMPTS)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their manifest says that they were made with entropy-1m."""
    url = tmp_path_factory.mktemp("shards")
    write_shards(str(url), real_texts(20))
    made_by(url, fingerprint(load_entropy_model("entropy-1m", device="cpu", dtype="stored")))
    return url


def made_by(url: Path, digest: str) -> None:
    model = {"source": "a/model", "fingerprint": digest}
    edit_json(url / "manifest.json", lambda manifest: manifest.update(entropy_model=model))


def sampled(run: Training, step: int) -> dict[str, str]:
    lines = (run.folder / "samples" / f"step-{step}.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert {each["step"] for each in found} == {step}
    return {each["prompt"]: each["text"] for each in found}


@pytest.mark.parametrize(("config", "ranks"), [("blt_debug", 2), ("entropy_debug", 1)])
def test_the_text_is_that_of_the_checkpoint(config, ranks, shards, tmp_path):
    given = tiny(config, shards, rows=ROWS // ranks, steps=2, checkpoint_interval=2)
    board = ("--metrics.enable-tensorboard",) if ranks == 1 else ()
    run = train(tmp_path / "run", *given, *board, *FLAGS, ranks=ranks)
    job = runpy.run_path(str(ROOT / "jobs" / "convert_checkpoint.py"))
    step = str(run.folder / "checkpoint" / "step-2")
    converted = job["ConvertCheckpointConfig"](step, str(tmp_path / "weights"))
    assert job["run"](converted, Console(stderr=True)) == 0
    load = load_blt if config == "blt_debug" else load_entropy_model
    model = load(tmp_path / "weights", device="cpu")
    entropy_model = load_entropy_model("entropy-1m", device="cpu")
    texts = generate(model, entropy_model, PROMPTS, max_new_bytes=12)
    expected = {p: t.decode(errors="replace") for p, t in zip(PROMPTS, texts, strict=True)}
    assert sampled(run, 2) == expected and any(expected.values())
    for prompt, text in expected.items():
        assert f"sample at step 2: {prompt!r} -> {text!r}" in run.output
    if board:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        (events,) = (run.folder / "tb").iterdir()
        tags = EventAccumulator(str(events)).Reload().Tags()["tensors"]
        assert {f"samples/{prompt or 'no prompt'}/text_summary" for prompt in PROMPTS} == set(tags)


def test_weights_that_give_no_numbers_do_not_end_a_training(monkeypatch, caplog):
    model = tiny_models.blt(patcher=Patcher(rule="space"))
    weights = {name: torch.full_like(w, torch.nan) for name, w in model.state_dict().items()}
    monkeypatch.setattr(samples, "_whole_weights", lambda *_: weights)
    writes = object.__new__(samples.Samples)
    writes.config, writes.shape = samples.SamplesConfig(), model.config
    writes.sampling, writes.prompts, writes.entropy_model = Sampling(1.0), [b"a"], None
    writes.patcher, writes.reset_at_newline, writes.max_seconds = model.config.patcher, False, 60
    writes.dtype, writes.device = torch.float32, torch.device("cpu")
    assert writes.write(model, 7) is None
    assert "No samples at step 7: model: gave a probability that is not a number" in caplog.text


def test_samples_change_nothing(shards, tmp_path):
    """Not a bit of the weights after the next step."""
    ended = []
    for name, flags in (("plain", ()), ("with", ("--samples.freq", 1))):
        given = tiny("entropy_debug", shards, rows=ROWS, steps=2, checkpoint_interval=2)
        run = train(tmp_path / name, *given, *flags)
        assert ("sample at step 1" in run.output) == (name == "with")
        ended.append(read_step(str(tmp_path / name / "checkpoint" / "step-2")).state_dict())
    assert all(torch.equal(weight, ended[1][name]) for name, weight in ended[0].items())


def test_what_cannot_be_written_is_said(shards, tmp_path):
    other, chosen = tmp_path / "other", tmp_path / "chosen"
    write_shards(str(other), real_texts(9))
    made_by(other, "ab" * 32)
    write_shards(str(chosen), real_texts(9), patcher=Patcher(rule="top-k", patch_size=4))
    (tmp_path / "prompts").write_bytes(b"\xff")
    for place, flags, said in (
        (other, (), "--samples.entropy-model: the shards were patched by a/model: give it"),
        (other, ("entropy-model", "entropy-1m"), "a/model, and this is another one"),
        (chosen, (), "--samples.freq: the top-k rule of the shards chooses among"),
        (shards, ("temperature", "-1"), "--samples.temperature: must be 0 or more"),
        (shards, ("prompts-file", tmp_path / "prompts"), "--samples.prompts-file: .*utf-8"),
    ):
        more = (f"--samples.{flags[0]}", flags[1]) if flags else ()
        given = tiny("blt_debug", place, rows=ROWS, steps=1)
        run = start(tmp_path / "run", *given, "--samples.freq", 1, *more).wait()
        assert run.exit_codes == [2], run.output
        assert re.search(said, run.output), run.output


@pytest.mark.parametrize("shape", [BLT_SIZES["debug"], ENTROPY_SIZES["debug"]])
def test_all_of_the_copy_is_on_the_device(shape, monkeypatch):
    """Also the constants, which are none of the weights that are gathered."""
    made: list[nn.Module] = []
    monkeypatch.setattr(samples, "stream", lambda model, *_, **__: made.append(model) or iter(()))
    texts = object.__new__(samples.Samples)
    texts.config, texts.shape, texts.prompts = samples.SamplesConfig(), shape, [""]
    texts.device, texts.dtype, texts.max_seconds = torch.device("meta"), torch.bfloat16, 1.0
    texts.entropy_model = texts.patcher = texts.sampling = None
    texts.reset_at_newline = False
    with texts.device:
        weights = build_model(shape).bfloat16().state_dict()
    texts._texts(weights, 0.0)
    (model,) = made
    assert {each.device.type for each in (*model.parameters(), *model.buffers())} == {"meta"}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
