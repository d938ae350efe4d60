"""The preparation of a corpus as a user runs it: the same whoever does it, and nothing lost."""

import gzip
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.jobs import ROOT, RunJob, command, environment, job_here
from support.local_ray import a_full_disk, a_worker_killed_when, to_join_local_ray
from support.texts import noise, topics, write_jsonl

from pipeline import open_shards

JOB = ROOT / "jobs" / "prepare_corpus.py"
MANY = ("--num-chunks", 150, "--validation-documents", 20)
"""Chunks for which runs are merged first."""


@pytest.fixture
def prepare_here(local_ray, monkeypatch, capsys) -> RunJob:
    """Run the job in this process, which has loaded its libraries and started Ray already."""
    return job_here(JOB, monkeypatch, capsys)


def write_parts(directory: Path) -> Path:
    """The topics in five files of unequal size."""
    for i, (start, stop) in enumerate([(0, 5), (5, 30), (30, 31), (31, 50), (50, None)]):
        write_jsonl(directory / f"{i}.jsonl", topics()[start:stop])
    return directory


def contents(output: Path) -> dict[str, bytes]:
    """Everything below an output but the record, which tells how the work was cut."""
    paths = (path for path in sorted(output.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in paths
        if path.name != "run.json"
    }


def documents(output: Path) -> list[tuple[str, str]]:
    """(id, text) of all documents, the validation set first."""
    order = [*output.glob("*.val.*"), *sorted(output.glob("*.chunk.*"))]
    rows = [row for path in order for row in pq.read_table(path).to_pylist()]
    return [(row["sample_id"], row["text"]) for row in rows]


def kill_when(reached: Callable[[], bool], arguments: list[str], env: dict[str, str]) -> None:
    """Start the job and kill it as soon as it got so far: to end before is an error."""
    process = psutil.Popen(
        arguments,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not reached():
        assert process.poll() is None, "it ended before"
        time.sleep(0.002)
    process.kill()
    assert process.wait(200) == -signal.SIGKILL


def test_workers_kills_and_reruns_change_nothing(tmp_path, prepare_here):
    """With merges: 1 worker, 4 workers that sort less at a time, and a run that is killed,
    and then loses a worker. With its Ray a run is killed in test_prepare_hub.py, and at other
    moments by ``make chaos``."""
    source = write_parts(tmp_path / "corpus")
    flags = ("--input", source, "--id-column", "id", "--seed", 3, *MANY)
    one, four, killed = (tmp_path / name for name in ("one", "four", "killed"))
    small = ("--sort-bytes", 20_000)
    for out, *more in ((one, "--num-workers", 1), (four, "--num-workers", 4, *small)):
        done = prepare_here(*flags, *more, "--output", out)
        assert done.returncode == 0, done.stderr

    def got(stage: str, least: int) -> Callable[[], bool]:
        assert not (killed / "manifest.json").exists()
        return lambda: len(list((killed / "exchange" / stage).glob("*.json"))) >= least

    again = (*flags, "--num-workers", 2, *small, "--output", killed)
    arguments = command(*again, job=JOB)
    kill_when(got("merges", 20), arguments, environment(**to_join_local_ray()))
    with a_worker_killed_when(got("chunks", 10), "ray::Map"):
        done = prepare_here(*again, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_sorted"] == 0
    expected = contents(one)
    assert len(expected) == 152
    assert expected == contents(four) == contents(killed)
    assert documents(one) != documents(one)[::-1]
    assert Counter(documents(one)) == Counter(topics())
    manifest = json.loads(expected["manifest.json"])
    assert manifest["counts"]["validation"] == 20
    assert (
        sum(chunk["documents"]["documents"] for chunk in manifest["chunks"]) == len(topics()) - 20
    )


def test_a_prepared_corpus_is_patched_as_it_is(tmp_path, prepare_here, run_here):
    source = write_parts(tmp_path / "corpus")
    prepared, patched = tmp_path / "prepared", tmp_path / "patched"
    flags = ("--id-column", "id", "--num-chunks", 3, "--chunk-format", "jsonl", "--name", "topics")
    done = prepare_here(
        "--input", source, "--output", prepared, *flags, "--validation-documents", 10
    )
    assert done.returncode == 0, done.stderr
    names = [f"topics.chunk.0{i}.jsonl" for i in range(3)]
    assert sorted(p.name for p in prepared.glob("topics.*")) == [*names, "topics.val.jsonl"]
    job = ("--input", prepared, "--output", patched, "--entropy-model", "ngram")
    job += ("--target-patch-size", 4, "--verify", "--json")
    done = run_here(*job)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(x) for name in names for x in (prepared / name).read_text().splitlines()]
    expected = [(line["sample_id"], line["text"]) for line in lines]
    assert [(d.sample_id, d.text) for d in open_shards(str(patched))] == expected
    held_out = list(map(json.loads, (prepared / "topics.val.jsonl").read_text().splitlines()))
    assert len(expected) + len(held_out) == len(topics())
    # The documents that are held out are a set of their own, by the same model and threshold.
    training, validation = open_shards(str(patched)), open_shards(f"{patched}/validation")
    assert [(d.sample_id, d.text) for d in validation] == [
        (line["sample_id"], line["text"]) for line in held_out
    ]
    assert validation.patcher == training.patcher and validation.patcher.threshold > 0
    assert validation.entropy_model == training.entropy_model
    result = json.loads(done.stdout)
    assert result["validation"]["documents"] == 10 and result["validation"]["problems"] == []
    before = contents(patched)
    (patched / "validation" / "manifest.json").unlink()
    (patched / "validation" / "entries" / "000000-00000-00000.json").unlink()
    again = json.loads(run_here(*job).stdout)
    assert again["bytes_patched"] == 0 < again["validation"]["bytes_patched"]
    logs = {name for name in (before | contents(patched)) if "runs/" in name}
    assert {k: v for k, v in contents(patched).items() if k not in logs} == {
        k: v for k, v in before.items() if k not in logs
    }
    # Neither is taken for the output of the other, and half a corpus is not patched.
    refused = run_here("--input", source, "--output", prepared, "--rule", "byte")
    assert refused.returncode == 2 and "holds a prepared corpus" in refused.stderr
    refused = prepare_here("--input", source, "--output", patched)
    assert refused.returncode == 2 and "holds patch shards" in refused.stderr
    (prepared / "manifest.json").unlink()
    refused = run_here("--input", prepared, "--output", tmp_path / "other", "--rule", "byte")
    assert refused.returncode == 2 and "not prepared to its end" in refused.stderr


HUGE = "0123456789" * 5_000_000
"""50 MB."""
GOOD = [
    ("twice", "the same"),
    ("again", "the same"),
    ("empty", ""),
    ("null byte", "a\0b"),
    ("é", "€𝄞"),
]


def write_odd_corpus(directory: Path) -> tuple[Counter, dict[str, int]]:
    """Files in all formats, with much that is wrong.

    Returns:
        the documents, and how many rejects each file has.
    """
    directory.mkdir()
    lines = [json.dumps({"id": i, "text": t}).encode() for i, t in [*GOOD, ("huge", HUGE)]]
    bad = [b'{"id": "x", "text": "cut', b"[]", b'{"id": "x"}', b'{"id": "x", "text": null}']
    bad += [b'{"id": "x", "text": "\xff"}', rb'{"id": "x", "text": "\ud800"}', b'{"text": "no id"}']
    (directory / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([*lines, b"", *bad]))
    good = b"\n".join(lines[:5]) + b"\n"
    (directory / "b.jsonl.gz").write_bytes(gzip.compress(good))
    compressed = zstandard.compress(b"\n".join(lines[:5] * 50_000))
    (directory / "c.jsonl.zst").write_bytes(compressed[: len(compressed) // 2])
    ids, texts = (list(column) for column in zip(*GOOD, strict=True))
    table = pa.table({"id": [*ids, "bad"], "text": [*(t.encode() for t in texts), b"\xff"]})
    pq.write_table(table, directory / "d.parquet", row_group_size=2)
    with pa.OSFile(str(directory / "e.arrow"), "wb") as file:
        table = pa.table({"id": ids, "text": texts})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    pq.write_table(pa.table({"id": ids, "body": texts}), directory / "f.parquet")
    (directory / "g.parquet").write_bytes(b"PAR1 and nothing else")
    good_documents = Counter(GOOD)
    expected = Counter({("huge", HUGE): 1})
    for _ in ("a", "b", "d", "e"):
        expected += good_documents
    return expected, {"a.jsonl": len(bad), "d.parquet": 1}


STRICT = ("--on-bad-document", "fail")


def test_nothing_of_an_odd_corpus_is_lost(tmp_path, prepare_here):
    expected, rejects = write_odd_corpus(tmp_path / "odd")
    stopped = ("--input", tmp_path / "odd", "--output", tmp_path / "all", "--num-chunks", 3)
    stopped += ("--validation-documents", 2, "--id-column", "id", *STRICT)
    done = prepare_here(*stopped)
    assert done.returncode == 1 and "--on-bad-document reject continues" in done.stderr
    assert (tmp_path / "all" / "run.json").exists()
    for name, more in (("all", ()), ("distinct", ("--deduplicate",))):
        out = tmp_path / name
        flags = ("--num-chunks", 3, "--validation-documents", 2, "--id-column", "id", "--json")
        done = prepare_here("--input", tmp_path / "odd", "--output", out, *flags, *more)
        assert done.returncode == 1, done.stderr
        result = json.loads(done.stdout)
        failed = {failure.partition(":")[0]: failure for failure in result["failures"]}
        assert failed.keys() == {"c.jsonl.zst", "f.parquet", "g.parquet"}
        assert "no column 'text'" in failed["f.parquet"]
        sources = {source["name"]: source for source in result["manifest"]["sources"]}
        # What was read of the truncated file before it broke off: whole lines, in order.
        read = sources["c.jsonl.zst"]["documents"]["documents"]
        assert 0 < read < 250_000
        cut = Counter((GOOD * (read // len(GOOD) + 1))[:read])
        counts = result["manifest"]["counts"]
        assert counts["records"] == sum(counts[k] for k in counts if k != "records")
        assert counts["rejects"] == sum(rejects.values())
        assert counts["validation"] == 2
        found = Counter(documents(out))
        if more:
            assert Counter(text for _, text in found.elements()) == Counter(
                {text for _, text in expected}
            )
            assert counts["duplicates"] == (expected + cut).total() - found.total()
            first = {text: name for name, text in reversed([*GOOD, ("huge", HUGE)])}
            assert {text: name for name, text in found} == first
        else:
            assert found == expected + cut
    strict = prepare_here("--input", tmp_path / "odd", "--output", out, *flags, *more, *STRICT)
    earlier = json.loads(strict.stdout)["failures"][-1]
    assert strict.returncode == 1 and f"rejected {counts['rejects']:,} documents" in earlier
    lines = [json.loads(x) for p in out.glob("rejects/*") for x in p.read_text().splitlines()]
    assert Counter(x["file"] for x in lines if x["position"] != "whole file") == rejects
    assert {x["file"] for x in lines if x["position"] == "whole file"} == failed.keys()
    assert all(line["reason"] for line in lines)
    assert {p.name for p in out.iterdir()} >= {"rejects", "manifest.json", "run.json"}
    assert not (out / "exchange").exists() and not (out / "_tmp").exists()


def test_a_changed_command_or_input_is_refused_until_overwritten(tmp_path, prepare_here):
    source, out = write_parts(tmp_path / "corpus"), tmp_path / "out"
    flags = ("--input", source, "--output", out, "--num-chunks", 2)
    assert prepare_here(*flags).returncode == 0
    before = contents(out)
    for more, said in (
        (("--seed", 1), "was begun with seed 0, now it is 1; --overwrite starts anew"),
        (("--deduplicate",), "was begun with deduplicate False"),
    ):
        refused = prepare_here(*flags, *more)
        assert refused.returncode == 1 and said in refused.stderr
    refused = prepare_here(*flags, "--overwrite", "--max-document-bytes", 0)
    assert refused.returncode == 2
    write_jsonl(source / "5.jsonl", topics()[:1])
    refused = prepare_here(*flags)
    assert refused.returncode == 1 and "5.jsonl is new since it was begun" in refused.stderr
    assert contents(out) == before
    done = prepare_here(*flags[:-1], 1, "--overwrite", "--name", "other")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.glob("*.parquet")} == {
        "other.chunk.00.parquet",
        "other.val.parquet",
    }
    (out / "other.chunk.00.parquet").unlink()
    refused = prepare_here(*flags[:-1], 1, "--name", "other")
    assert refused.returncode == 1 and "other.chunk.00.parquet: is gone" in refused.stderr


def test_a_full_disk_stops_the_job_and_a_rerun_finishes(tmp_path, prepare_here):
    source, out = write_jsonl(tmp_path / "a.jsonl", noise(3)), tmp_path / "out"
    flags = ("--input", source, "--output", out, "--num-workers", 1, "--num-chunks", 1)
    with a_full_disk():
        done = prepare_here(*flags)
    assert done.returncode == 1
    assert f"error: cannot write {out}/exchange/runs/" in done.stderr
    assert "File too large" in done.stderr
    assert not list(out.glob("*.parquet")) and not list(out.glob("exchange/runs/*"))
    assert prepare_here(*flags).returncode == 0
    assert Counter(text for _, text in documents(out)) == Counter(text for _, text in noise(3))


WRONG = {
    "": "--corpus: give either a corpus or --input, not both",
    "--corpus fineweb_edu --input {tmp}": "--corpus: give either a corpus or --input, not both",
    "--corpus fineweb": "--corpus fineweb: no such corpus; there are fineweb_edu,",
    "--input {tmp}/nothing": "--input {tmp}/nothing: no such file",
    "--input {tmp}/empty": "--input {tmp}/empty: no such file, and no files with",
    "--input {tmp} --num-chunks 0": "--num-chunks: must be at least 1, got 0",
    "--input {tmp} --seed -1": "--seed: must be between 0 and 2**64 - 1, got -1",
    "--input {tmp} --files *.parquet": "--files: chooses among files of a --corpus",
    "--input {tmp} --downloads {tmp}": "--downloads: only files of a --corpus are downloaded",
    "--input {tmp} --name a/b": "--name: letters, digits",
    "--input {tmp} --keep-columns text": "--keep-columns: 'text' is in the chunks already",
    "--input {tmp} --input {tmp}": "--input: is given more than once",
    "--input s3://key:secret@bucket/x": "--input: no credentials in URLs",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_fail_before_any_work(tmp_path, prepare_here, flags):
    (tmp_path / "empty").mkdir()
    write_jsonl(tmp_path / "a.jsonl", topics()[:2])
    out = tmp_path / "out"
    done = prepare_here(*flags.format(tmp=tmp_path).split(), "--output", out)
    assert done.returncode == 2, done.stderr
    assert f"error: {WRONG[flags].format(tmp=tmp_path)}" in done.stderr.replace("\n", " ")
    assert "secret" not in done.stderr
    assert not out.exists()


def test_input_without_documents_is_told(tmp_path, prepare_here):
    (tmp_path / "a.jsonl").write_text("broken\n")
    done = prepare_here("--input", tmp_path / "a.jsonl", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "the input holds no document; see rejects/ there" in done.stderr.replace("\n", " ")
    (tmp_path / "c.jsonl.gz").touch()
    done = prepare_here("--input", tmp_path / "c.jsonl.gz", "--output", tmp_path / "none")
    assert done.returncode == 1
    message = "the input holds no document: c.jsonl.gz: is empty"
    assert message in done.stderr.replace("\n", " ")
    (tmp_path / "b.jsonl").write_text('{"text": "only"}\n')
    flags = ("--validation-documents", 1)
    done = prepare_here("--input", tmp_path / "b.jsonl", "--output", tmp_path / "more", *flags)
    assert done.returncode == 1
    assert "--validation-documents: 1 would leave none" in done.stderr.replace("\n", " ")
