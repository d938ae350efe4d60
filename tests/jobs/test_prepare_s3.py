"""A corpus from object storage to object storage, over a network that breaks one request in 20."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from clusters import an_s3_server
from conftest import ROOT, command, environment, job_alone, topics, write_jsonl
from faulty_proxy import KINDS, a_faulty_proxy

PREPARE, REPORT, EXPORT = (
    ROOT / "jobs" / f"{name}.py" for name in ("prepare_corpus", "patch_report", "export_shards")
)
FLAGS = ("--id-column", "id", "--num-chunks", "10", "--sort-bytes", "500000", "--num-workers", "2")
COPIES = 16


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[dict[str, str]]:
    with an_s3_server(tmp_path_factory.mktemp("s3")) as variables:
        yield variables


def write_corpus(directory: Path) -> int:
    """11 MB in JSONL and Parquet files; gives how many documents."""
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


def test_no_error_of_the_network_shows(s3, tmp_path, run_job):
    corpus, temporary = tmp_path / "corpus", tmp_path / "temporary"
    corpus.mkdir()
    documents = write_corpus(corpus)
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    filesystem.put(str(corpus), "corpus/in", recursive=True)
    done = job_alone(PREPARE)("--input", corpus, "--output", tmp_path / "out", *FLAGS)
    assert done.returncode == 0, done.stderr
    temporary.mkdir()
    with a_faulty_proxy(s3["AWS_ENDPOINT_URL"], 0.05) as (url, requests):
        # Ray has its own directory: what it writes there is no corpus.
        env = environment(**s3 | {"AWS_ENDPOINT_URL": url, "TMPDIR": str(temporary)})
        env["RAY_TMPDIR"] = "/tmp"
        remote = ("--input", "s3://corpus/in", "--output", "s3://corpus/prepared", *FLAGS)
        remote = command(*remote, "--name", "corpus", job=PREPARE)
        process = psutil.Popen(remote, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        most = 0
        while process.poll() is None:
            most = max(most, held_below(temporary))
            time.sleep(0.02)
        said = process.stdout.read().decode()
        assert process.returncode == 0, said
        assert all(requests[kind] > 1 for kind in KINDS), requests
        assert sum(requests[kind] for kind in KINDS) > 0.03 * requests["passed"]
        # Two workers: a run or a chunk each, and what they hold of Parquet.
        size = sum(path.stat().st_size for path in corpus.iterdir())
        assert 0 < most < size / 3, (most, size)
        assert not held_below(temporary)
        names = [path.name for path in (tmp_path / "out").glob("corpus.*")]
        assert len(names) == 11
        for name in names:
            there = filesystem.cat_file(f"corpus/prepared/{name}")
            assert there == (tmp_path / "out" / name).read_bytes()
        manifest = json.loads(filesystem.cat_file("corpus/prepared/manifest.json"))
        assert manifest["counts"]["records"] == documents
        left = {path.split("/")[2] for path in filesystem.find("corpus/prepared")}
        assert left == {*names, "manifest.json", "run.json"}
        patch = ("--input", "s3://corpus/prepared", "--output", "s3://corpus/patched", "--json")
        patch += ("--rule", "static", "--patch-size", 4, "--verify", "--num-workers", 2)
        before = requests.copy()
        done = run_job(*patch, env=env)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["documents"] == manifest["counts"]["chunks"]
        assert (requests - before).total() > 0
        report = ("--shards", "s3://corpus/patched", "--output", "s3://corpus/report")
        done = job_alone(REPORT)(*report, env=env)
        assert done.returncode == 0, done.stderr
        assert b"<svg" in filesystem.cat_file("corpus/report/index.html")
        export = ("--shards", "s3://corpus/patched", "--output", "s3://corpus/exported")
        done = job_alone(EXPORT)(*export, "--format", "datasets", "--verify", "--json", env=env)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        exported = filesystem.glob("corpus/exported/data/train-*.parquet")
        assert len(exported) == result["files"] and not held_below(temporary)
        rows = sum(pq.read_metadata(filesystem.open(path)).num_rows for path in exported)
        assert rows == result["rows"] == manifest["counts"]["chunks"]
    for secret in ("test-secret", "Traceback"):
        assert secret not in said + done.stderr
