"""A corpus from object storage to object storage, over a network that breaks one request in 20."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from support.clusters import an_s3_bucket
from support.faulty_proxy import KINDS, a_faulty_proxy
from support.jobs import ROOT, command, environment, job_here
from support.local_ray import share_local_ray, to_join_local_ray
from support.texts import topics, write_jsonl

from pipeline.shards.shard_set import ShardSet
from train.data.held_out import validation_sets

PREPARE = ROOT / "jobs" / "prepare_corpus.py"
FLAGS = ("--id-column", "id", "--num-chunks", "10", "--sort-bytes", "250000", "--num-workers", "2")
COPIES = 8


@pytest.fixture
def s3(s3_server) -> Iterator[dict[str, str]]:
    with an_s3_bucket(s3_server, "faulty"):
        yield s3_server


def write_corpus(directory: Path) -> int:
    """5 MB in JSONL and Parquet files; gives how many documents."""
    documents = [(f"{n}-{name}", f"{n} {text}") for n in range(COPIES) for name, text in topics()]
    part = len(documents) // 8
    for i in range(8):
        some = documents[i * part : (i + 1) * part if i < 7 else None]
        if i % 2:
            write_jsonl(directory / f"{i}.jsonl", some)
        else:
            ids, texts = (list(column) for column in zip(*some, strict=True))
            table = pa.table({"id": ids, "text": texts})
            pq.write_table(table, directory / f"{i}.parquet", row_group_size=200)
    return len(documents)


def held_below(directory: Path) -> int:
    """Bytes of files below a directory, and of files there that are open but have no name."""
    size = 0
    for path in directory.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue
    return size


@pytest.fixture
def proxy(s3, tmp_path, monkeypatch) -> Iterator[Counter[str]]:
    """What becomes of requests to the server, which all go through a proxy that breaks some, from
    here, from a local Ray, and from processes with this environment."""
    (tmp_path / "temporary").mkdir()
    with a_faulty_proxy(s3["AWS_ENDPOINT_URL"], 0.05) as (url, requests):
        # Ray has its own directory: what it writes there is no corpus.
        settings = {"TMPDIR": str(tmp_path / "temporary"), "RAY_TMPDIR": "/tmp"}
        settings |= s3 | {"AWS_ENDPOINT_URL": url}
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        share_local_ray(settings=settings)
        yield requests


def test_no_error_of_the_network_shows(s3, proxy, tmp_path, monkeypatch, capsys):
    prepare, patch, report, export = (
        job_here(ROOT / "jobs" / f"{name}.py", monkeypatch, capsys)
        for name in ("prepare_corpus", "patch_corpus", "patch_report", "export_shards")
    )
    corpus, temporary = tmp_path / "corpus", tmp_path / "temporary"
    corpus.mkdir()
    documents = write_corpus(corpus)
    straight = {"endpoint_url": s3["AWS_ENDPOINT_URL"]}
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, client_kwargs=straight)
    filesystem.put(str(corpus), "faulty/in", recursive=True)
    done = prepare("--input", corpus, "--output", tmp_path / "out", *FLAGS)
    assert done.returncode == 0, done.stderr

    remote = ("--input", "s3://faulty/in", "--output", "s3://faulty/prepared", *FLAGS)
    said, most = watched(command(*remote, "--name", "corpus", job=PREPARE), temporary)
    assert all(proxy[kind] > 1 for kind in KINDS), proxy
    assert sum(proxy[kind] for kind in KINDS) > 0.03 * proxy["passed"]
    # Two workers: a run or a chunk each, and what they hold of Parquet.
    size = sum(path.stat().st_size for path in corpus.iterdir())
    assert 0 < most < size / 3, (most, size)
    assert not held_below(temporary)
    names = [path.name for path in (tmp_path / "out").glob("corpus.*")]
    assert len(names) == 11
    for name in names:
        there = filesystem.cat_file(f"faulty/prepared/{name}")
        assert there == (tmp_path / "out" / name).read_bytes()
    manifest = json.loads(filesystem.cat_file("faulty/prepared/manifest.json"))
    assert manifest["counts"]["records"] == documents
    left = {path.split("/")[2] for path in filesystem.find("faulty/prepared")}
    assert left == {*names, "manifest.json", "run.json"}

    flags = ("--input", "s3://faulty/prepared", "--output", "s3://faulty/patched", "--json")
    flags += ("--rule", "static", "--patch-size", 4, "--verify", "--num-workers", 1)
    before = proxy.copy()
    done = patch(*flags)
    assert done.returncode == 0, done.stderr
    patched = json.loads(done.stdout)
    assert patched["documents"] == manifest["counts"]["chunks"]
    assert (proxy - before).total() > 0
    # The held-out documents lie below, in a set that training and reports find.
    (held_out,) = validation_sets(["s3://faulty/patched", "s3://faulty/prepared"])
    assert held_out == patched["validation"]["output"] == "s3://faulty/patched/validation"
    kept_apart = manifest["counts"]["validation"]
    assert patched["validation"]["documents"] == kept_apart > 0
    ids = {document.sample_id for document in ShardSet(held_out)}
    trained_on = {document.sample_id for document in ShardSet("s3://faulty/patched")}
    assert len(ids) == kept_apart and not ids & trained_on
    assert len(ids | trained_on) == documents
    done = report("--shards", "s3://faulty/patched", "--output", "s3://faulty/report", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(filesystem.cat_file("faulty/report/report.json"))["sets"]
    documents_of = found["documents"], found["held_out"]["documents"]
    assert documents_of == (patched["documents"], kept_apart)
    assert b"<svg" in filesystem.cat_file("faulty/report/index.html")
    flags = ("--shards", "s3://faulty/patched", "--output", "s3://faulty/exported")
    done = export(*flags, "--layout", "datasets", "--verify", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    exported = filesystem.glob("faulty/exported/data/train-*.parquet")
    assert len(exported) == result["files"] and not held_below(temporary)
    rows = sum(pq.read_metadata(filesystem.open(path)).num_rows for path in exported)
    assert rows == result["rows"] == manifest["counts"]["chunks"]
    for secret in ("test-secret", "Traceback"):
        assert secret not in said + done.stderr


def watched(job: list[str], temporary: Path) -> tuple[str, int]:
    """What a job says, and the most that it holds in its temporary directory."""
    process = psutil.Popen(
        job,
        env=environment(**to_join_local_ray()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    most = 0
    while process.poll() is None:
        most = max(most, held_below(temporary))
        time.sleep(0.1)
    said = process.stdout.read().decode()
    assert process.returncode == 0, said
    return said, most
