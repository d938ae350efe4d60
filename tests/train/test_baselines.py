"""Baselines are trained like BLTs, and measured on the same bytes."""

import json
import math
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from support.bpe import byte_level
from support.jobs import ROOT
from support.packed_rows import pieces_of
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, SEQ_LEN, Training, start, tiny, train
from transformers import AutoModelForCausalLM

from model.tokenizer import BOS_ID, EOS_ID
from pipeline.errors import ConfigError
from train.cluster.checks import check_run
from train.config_registry import blt_1b_no_crossing, blt_1b_no_hashes, blt_1b_static, bpe_1b
from train.data.dataloader import ShardDataLoader
from train.data.tokenizer import TitanBPETokenizer

TOKENS = 500
HELD_OUT = real_texts(9, seed=1)
ARMS = ("bpe_debug", "bytes_debug", "blt_debug", "blt_debug_space")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    write_shards(str(folder / "train"), real_texts(20))
    write_shards(str(folder / "held-out"), HELD_OUT)
    (folder / "tokenizer.json").write_bytes(byte_level(real_texts(20), TOKENS))
    return folder


@pytest.fixture(scope="module")
def arguments(folder: Path) -> Callable[..., tuple[object, ...]]:
    def of(config: str, *, rows: int = ROWS, steps: int = 1) -> tuple[object, ...]:
        given = tiny(config, folder / "train", rows=rows, steps=steps, checkpoint_interval=1)
        given += ("--validator.enable", "--validator.freq", 1)
        given += ("--validator.dataloader.shards", folder / "held-out")
        if config.startswith("bpe"):
            given += ("--tokenizer.source", folder / "tokenizer.json")
        return given

    return of


@pytest.fixture(scope="module")
def runs(arguments, folder) -> dict[str, Training]:
    begun = {name: start(folder / name, *arguments(name)) for name in ARMS}
    for run in begun.values():
        assert run.wait().exit_codes == [0], run.output
    return begun


def test_all_are_measured_on_the_same_bytes(runs):
    measured = set()
    for name, run in runs.items():
        metrics = run.metrics[1]
        size, digest = (metrics[f"validation_metrics/{n}"] for n in ("bytes", "bytes_hash"))
        assert size == sum(map(len, HELD_OUT))
        (shown,) = set(re.findall(r"\(([\d,]+) bytes with the hash ([0-9a-f]{12})\)", run.output))
        assert shown == (f"{size:,.0f}", f"{int(digest):012x}")
        measured.add(digest)
        flops = [value for part, value in metrics.items() if part.startswith("flops_per_byte/")]
        assert flops and all(math.isfinite(value) and value > 0 for value in flops), name
    assert len(measured) == 1


@torch.no_grad()
def test_bits_per_byte_of_tokens_are_those_of_transformers(runs, folder, tmp_path):
    """With the weights that were trained, on the rows that were validated, piece by piece."""
    run = runs["bpe_debug"]
    job = runpy.run_path(str(ROOT / "jobs" / "convert_checkpoint.py"))
    step = str(run.folder / "checkpoint" / "step-1")
    settings = job["ConvertCheckpointConfig"](step, str(tmp_path / "llama"), "transformers")
    assert job["run"](settings, Console(stderr=True)) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    tokenizer = TitanBPETokenizer.Config(source=str(folder / "tokenizer.json")).build()
    config = ShardDataLoader.Config(
        shards=[str(folder / "held-out")], patches=False, infinite=False
    )
    rows = config.build(
        dp_world_size=1, dp_rank=0, seq_len=SEQ_LEN, local_batch_size=4, tokenizer=tokenizer
    )
    nats = 0.0
    for inputs, labels in rows:
        for piece, expected, _ in pieces_of(inputs["input"].numpy(), labels.numpy(), None):
            if not len(piece):  # of a row without text
                continue
            ids, targets = (torch.tensor([theirs_of(int(i)) for i in x]) for x in (piece, expected))
            logits = theirs(ids[None]).logits[0].double()
            nats += F.cross_entropy(logits, targets, reduction="sum").item()
    bits = nats / math.log(2) / sum(map(len, HELD_OUT))
    metrics = run.metrics[1]
    assert metrics["validation_metrics/bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    # 500 tokens and 4 ids of ours, filled up to a multiple of 128.
    assert theirs.config.vocab_size == 512
    described = json.loads((run.folder / "checkpoint" / "model.json").read_text())
    assert described["tokenizer"] == tokenizer.bpe.sha256
    assert (run.folder / "checkpoint" / "tokenizer.json").read_bytes() == tokenizer.bpe.content


def theirs_of(number: int) -> int:
    return {BOS_ID: TOKENS, EOS_ID: TOKENS + 1}.get(number, number - 4)


def test_a_training_on_tokens_continues_on_two_ranks(arguments, runs, folder, tmp_path):
    whole = train(tmp_path / "whole", *arguments("bpe_debug", steps=2))
    run = runs["bpe_debug"]
    again = train(run.folder, *arguments("bpe_debug", rows=ROWS // 2, steps=2), ranks=2)
    assert again.rows[2] == whole.rows[2]
    assert again.losses[2] == pytest.approx(whole.losses[2], rel=1e-5)
    names = ("validation_metrics/bits_per_byte", "validation_metrics/bytes_hash")
    for name in names:
        assert again.metrics[2][name] == pytest.approx(whole.metrics[2][name], rel=1e-5)
    other = tmp_path / "other.json"
    other.write_bytes(byte_level(HELD_OUT, TOKENS))
    given = [other if x == folder / "tokenizer.json" else x for x in arguments("bpe_debug")]
    refused = start(tmp_path / "refused", *given, "--dump-folder", run.folder).wait()
    assert refused.exit_codes == [1]
    assert "holds steps of another model: tokenizer is" in refused.output


def test_a_driver_checks_the_tokenizer(folder):
    given = ["--config", "bpe_debug", "--dataloader.shards", str(folder / "train")]
    with pytest.raises(ConfigError, match=r"--tokenizer.source: name the tokenizer"):
        check_run(given)
    source = ["--tokenizer.source", str(folder / "tokenizer.json")]
    for flags, message in (
        (["--samples.freq", "1"], "--samples.freq: a token transformer writes no samples"),
        (["--shape.vocab-size", "300"], "--shape.vocab-size: .* needs at least 504, got 300"),
        (["--dataloader.patches"], "dataloader.patches: a tokenizer's tokens have no patches"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_run([*given, *source, *flags])
    check_run([*given, *source, "--shape.vocab-size", "504"])


def test_sizes():
    assert blt_1b_no_hashes().model_spec.model.shape.encoder_hash_byte_group_size == ()
    shape = blt_1b_no_crossing().model_spec.model.shape
    assert not shape.cross_attn_encoder and not shape.cross_attn_decoder
    static = blt_1b_static()
    for loader in (static.dataloader, static.validator.dataloader):
        assert (loader.rule, loader.patch_size) == ("static", 4.5)
    config = bpe_1b()
    assert config.model_spec.model.shape.vocab_size == 128_384
    assert config.training.global_batch_size * config.training.seq_len == 1 << 22
