"""adopt_shards.py as a user runs it: of a set's own shards, resumed, and beside patch_corpus.py."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny
from support.bpe import byte_level
from support.jobs import JOB, ROOT, RunJob, contents, job_here
from support.texts import topics, write_jsonl

from model import Patcher
from pipeline import open_shards

ADOPT = ROOT / "jobs" / "adopt_shards.py"
TEXTS = [(name, text[:2500]) for name, text in topics()[:16]]


@pytest.fixture
def adopt(local_ray, monkeypatch, capsys) -> RunJob:
    return job_here(ADOPT, monkeypatch, capsys)


@pytest.fixture
def patch(local_ray, monkeypatch, capsys) -> RunJob:
    return job_here(JOB, monkeypatch, capsys)


@pytest.fixture
def patched(ngram_model, tmp_path) -> Path:
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    settings = {"id_column": "id", "shard_bytes": 9_000}
    tiny.make_shards(tmp_path / "set", source, ngram_model, Patcher(1.5), **settings)
    return tmp_path / "set"


def test_a_set_is_adopted_and_goes_on_where_it_stopped(adopt, patched, tmp_path):
    out = tmp_path / "out"
    flags = ("--threshold", 1.5, "--shard-bytes", 9_000, "--num-workers", 2)
    command = ("--input", patched, "--output", out, *flags, "--json", "--verify")
    done = adopt(*command)
    assert done.returncode == 0, done.stderr
    assert "ids are taken from the column 'sample_id'" in done.stderr
    assert "not read: " in done.stderr and "part of a shard set and no shard" in done.stderr
    result = json.loads(done.stdout)
    assert result["complete"] and result["documents"] == len(TEXTS) and not result["problems"]
    shards, expected = open_shards(str(out)), open_shards(str(patched))
    assert [s.sha256 for s in shards.entries] == [s.sha256 for s in expected.entries]
    assert shards.manifest["entropy_model"] == {"column": "entropies"}
    assert shards.manifest["ids"] == {"column": "sample_id", "others": []}
    # Killed in the middle: some shards are committed, one is half written.
    before = contents(out)
    for entry in sorted((out / "entries").iterdir())[1:]:
        entry.unlink()
    (out / "manifest.json").unlink()
    again = adopt(*command)
    assert again.returncode == 0, again.stderr
    assert "continuing the run" in again.stderr and contents(out) == before
    refused = adopt(*command[:4], "--threshold", 1.0, *command[6:])
    assert refused.returncode == 1 and "was begun with threshold 1.5" in refused.stderr


def test_a_target_size_is_calibrated_and_bad_documents_are_named(adopt, patched, tmp_path):
    table = pa.Table.from_batches(list(open_shards(str(patched)).batches()))
    lists = table["entropies"].to_pylist()
    lists[2] = lists[2][:-1]
    table = table.set_column(2, "entropies", pa.array(lists, pa.list_(pa.float16())))
    pq.write_table(table.rename_columns(["url", "text", "entropies", "x"]), tmp_path / "a.parquet")
    done = adopt(
        *("--input", tmp_path / "a.parquet", "--output", tmp_path / "out", "--json"),
        *("--target-patch-size", 4.5),
    )
    assert done.returncode == 0, done.stderr
    assert "ids are taken from the column 'url'" in done.stderr
    result = json.loads(done.stdout)
    assert result["rejects"] == 1 and result["mean_patch_bytes"] == pytest.approx(4.5, rel=0.05)
    (reject,) = open_shards(str(tmp_path / "out")).rejects()
    assert reject["position"] == "2" and "values, and the text has" in reject["reason"]


def test_an_input_without_entropies_is_refused(adopt, tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS[:2])
    done = adopt("--input", source, "--output", tmp_path / "out", "--threshold", 1)
    assert done.returncode == 2
    assert "--entropies-column: no input file has a column 'entropies'" in done.stderr


def test_patching_takes_a_tokenizer_and_says_what_else_there_is(patch, patched, tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(byte_level([text.encode() for _, text in TEXTS]))
    done = patch(
        *("--input", patched / "shards", "--output", tmp_path / "out", "--verify", "--json"),
        *("--rule", "bpe", "--tokenizer", tokenizer, "--ngram-bytes", 100_000),
    )
    assert done.returncode == 0, done.stderr
    assert "the input has a column 'entropies': jobs/adopt_shards.py takes" in done.stderr
    assert not json.loads(done.stdout)["problems"]
    shards = open_shards(str(tmp_path / "out"))
    assert shards.bpe is not None and shards.patcher.tokenizer == shards.bpe.sha256
    document = next(iter(shards))
    counts = shards.bpe.encode([document.text])[1]
    assert len(document.patch_lengths) == counts[0] + 1
