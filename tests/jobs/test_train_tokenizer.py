"""A tokenizer trained on shards: reproducible, and good for the trainer."""

import json
import runpy
from pathlib import Path

import pytest
from rich.console import Console
from support.jobs import ROOT
from support.shard_sets import real_texts, write_shards

from pipeline import open_shards
from pipeline.bpe.byte_level import load_bpe
from pipeline.errors import ConfigError, PipelineError
from train.data.bpe_training import sample

JOB = runpy.run_path(str(ROOT / "jobs" / "train_tokenizer.py"))
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("shards")
    for name, seed in (("a", 0), ("b", 1)):
        write_shards(str(folder / name), real_texts(30, seed=seed))
    return str(folder / "a"), str(folder / "b")


def run(shards, output: Path, **flags) -> int:
    return JOB["run"](JOB["TrainTokenizerConfig"](shards, str(output), **flags), QUIET)


def test_a_tokenizer(shards, tmp_path, capsys):
    for name in ("one", "two"):
        assert run(shards, tmp_path / name / "tokenizer.json", vocab_size=700, json=True) == 0
    one, two = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    texts = [document.text for url in shards for document in open_shards(url)]
    size = sum(len(text.encode()) for text in texts)
    assert one["tokens"] == 700 and one["sample_bytes"] == size and one["sha256"] == two["sha256"]
    bpe = load_bpe(str(tmp_path / "one"))
    ids, counts = bpe.encode(texts)
    assert one["bytes_per_token"] == pytest.approx(size / len(ids)) and size / len(ids) > 2
    assert counts.sum() == len(ids)
    # Digits are cut in threes.
    assert all(len(token) <= 3 for token in bpe.bytes_V if token.isdigit())


def test_the_sample_is_of_all_shards(shards):
    sets = [open_shards(url) for url in shards]
    total = sum(len(document.text.encode()) for each in sets for document in each)
    texts = list(sample(sets, total // 4))
    size = sum(len(text.encode()) for text in texts)
    longest = max(len(document.text.encode()) for each in sets for document in each)
    pieces = sum(len(each.shards.tokens) for each in sets)
    assert total // 4 - 100 * pieces < size <= total // 4 + pieces * longest
    for each in sets:
        for batch in (next(each.shard_batches(n, ["text"])) for n in range(len(each.entries))):
            assert batch["text"][0].as_py() in texts
    whole = list(sample(sets, 10**9))
    assert sum(len(text.encode()) for text in whole) == total


def test_what_cannot_work(shards, tmp_path):
    (tmp_path / "there").write_text("")
    for given, flags, error, message in (
        ((), {}, ConfigError, "--shards: name at least one"),
        (shards, {"vocab_size": 255}, ConfigError, "--vocab-size: "),
        (shards, {"output": tmp_path / "there"}, ConfigError, "--output: .*there exists"),
        (shards, {"output": tmp_path / "there" / "x"}, PipelineError, "--output: .* cannot be wr"),
        (shards, {"vocab_size": 10**11}, ConfigError, "--vocab-size: at most 1,048,576, got"),
        ((str(tmp_path),), {}, ConfigError, "^--shards .*: no manifest.json"),
    ):
        values = {"output": tmp_path / "new.json", "vocab_size": 300} | flags
        with pytest.raises(error, match=message):
            run(given, **values)
    assert not (tmp_path / "new.json").exists()
