"""Jobs on clusters: submitted ones, an object store, and a node that is lost."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from support import tiny
from support.clusters import a_head_node, an_s3_bucket, another_node, free_port, lose, ray_cli
from support.jobs import ROOT, command, contents, environment, job_here
from support.local_ray import share_local_ray
from support.texts import topics, write_jsonl

from model import Patcher
from pipeline import open_shards

SMALL = ("--shard-bytes", 60_000)


@pytest.fixture(scope="module")
def s3(s3_server) -> Iterator[dict[str, str]]:
    with an_s3_bucket(s3_server, "corpus"):
        yield s3_server


@pytest.fixture
def local_ray(s3) -> None:
    share_local_ray(settings=s3)


@pytest.fixture(scope="module")
def head_node(s3, tmp_path_factory) -> Iterator[dict[str, str]]:
    """A cluster whose nodes can use the S3 server; gives the environment of who submits."""
    with a_head_node(tmp_path_factory.mktemp("head-node"), **s3) as env:
        yield env


def test_ray_job_submit(corpus, tmp_path, head_node):
    out = tmp_path / "out"
    submit = ("job", "submit", "--working-dir", ".", "--", "python", "jobs/patch_corpus.py")
    flags = ("--input", corpus, "--output", out, "--target-patch-size", 4.5, *SMALL)
    flags += ("--entropy-model", "ngram")
    done = ray_cli(*submit, *flags, "--num-workers", 1, env=head_node)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean bytes per patch" in done.stdout and "succeeded" in done.stdout
    assert [d.text for d in open_shards(str(out))] == [text for _, text in topics()]
    nothing = ("--input", tmp_path / "none", "--output", out, "--rule", "byte")
    failing = ray_cli(*submit, *nothing, env=head_node)
    assert failing.returncode != 0
    assert "no such file" in failing.stdout


def test_pretraining_on_s3_with_other_numbers_of_workers(tmp_path, head_node):
    write_jsonl(tmp_path / "in" / "a.jsonl", [(name, text[:3000]) for name, text in topics()[:40]])
    model, rule = tiny.entropy_model(), Patcher(tiny.THRESHOLD)
    tiny.make_shards(tmp_path / "shards", tmp_path / "in", model, rule)
    s3fs.S3FileSystem(skip_instance_cache=True).put(
        str(tmp_path / "shards"), "corpus/shards", recursive=True
    )
    # Deaths of workers are seen at once.
    env = head_node | {"OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    submit = ("job", "submit", "--working-dir", ".", "--", "python", "jobs/pretrain.py")
    submit += ("--config", "blt_debug", "--training.seq-len", 128, "--training.local-batch-size", 2)
    submit += ("--metrics.log-freq", 1, "--checkpoint.interval", 2)
    submit += ("--metrics.disable-color-printing", "--dataloader.shards", "s3://corpus/shards")
    submit += ("--dump-folder", "s3://corpus/run")
    done = ray_cli(*submit, "--num-workers", 2, "--training.steps", 3, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoint: s3://corpus/run/checkpoint/step-3" in done.stdout
    assert "Traceback" not in done.stdout
    # The same batch, but from one rank.
    one = ("--num-workers", 1, "--training.global-batch-size", 4, "--training.steps", 5)
    again = ray_cli(*submit, *one, env=env)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Loading the checkpoint from s3://corpus/run/checkpoint/step-3" in again.stdout
    assert "5 steps done" in again.stdout
    assert "checkpoint: s3://corpus/run/checkpoint/step-5" in again.stdout
    assert "test-secret" not in done.stdout + again.stdout


def test_input_and_output_on_s3(s3, tmp_path, run_here, monkeypatch, capsys):
    source = write_jsonl(tmp_path / "in" / "a.jsonl", topics()[:30])
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    filesystem.put_file(str(source), "corpus/in/a.jsonl")
    flags = ("--entropy-model", "ngram", "--target-patch-size", 4.5, *SMALL, "--verify", "--json")
    local = run_here("--input", source.parent, "--output", tmp_path / "out", *flags)
    assert local.returncode == 0, local.stderr
    remote = ("--input", "s3://corpus/in", "--output", "s3://corpus/out")
    done = run_here(*remote, *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["documents"] == 30 and result["problems"] == []
    names = [Path(path).name for path in filesystem.ls("corpus/out/shards")]
    assert names == sorted(path.name for path in (tmp_path / "out" / "shards").iterdir())
    for name in names:
        here = (tmp_path / "out" / "shards" / name).read_bytes()
        assert filesystem.cat_file(f"corpus/out/shards/{name}") == here
    assert [d.text for d in open_shards("s3://corpus/out")] == [t for _, t in topics()[:30]]
    again = run_here(*remote, *flags)
    assert json.loads(again.stdout)["bytes_patched"] == 0
    anew = run_here(*remote, *flags, "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert json.loads(anew.stdout)["bytes_patched"] == result["bytes"]
    export = job_here(ROOT / "jobs" / "export_shards.py", monkeypatch, capsys)
    for more in ((), ("--overwrite",)):
        to = ("--output", "s3://corpus/exported", "--layout", "reference", "--verify", "--json")
        exported = export("--shards", "s3://corpus/out", *to, *more)
        assert exported.returncode == 0, exported.stderr
        assert json.loads(exported.stdout)["exported"] == len(names)
    stored = b"".join(filesystem.cat_file(path) for path in filesystem.find("corpus/out"))
    for secret in ("test-secret", "test-key"):
        assert secret.encode() not in stored
        assert secret not in done.stderr + done.stdout


# As long as a user waits who has misspelled the address, but for seconds of it.
HURRIED = """
import runpy, sys
import pipeline.storage.outages as outages

outages.FIRST_CONTACT_S = 1.0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_unreachable_server_is_named(tmp_path):
    env = environment(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}",
        AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s",
        AWS_MAX_ATTEMPTS="1",
    )
    flags = ("--input", "s3://bucket/in", "--output", tmp_path, "--rule", "byte")
    job = [sys.executable, "-c", HURRIED, *command(*flags)[1:]]
    done = subprocess.run(job, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: --input s3://bucket/in: cannot be listed" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreachable_cluster_is_named(run_job, tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:1])
    nobody = f"127.0.0.1:{free_port()}"
    flags = ("--input", source, "--output", tmp_path / "out", "--rule", "byte")
    done = run_job(*flags, env=environment(RAY_ADDRESS=nobody))
    assert done.returncode == 1
    assert f"error: RAY_ADDRESS {nobody}: the cluster cannot be reached" in done.stderr


def test_a_lost_node_costs_nothing(tmp_path, run_here, small_model_directory, head_node):
    """A node of three CPUs and one of two, which is lost while all four workers are busy."""
    source = write_jsonl(tmp_path / "in.jsonl", topics()[:40])
    flags = ("--input", source, "--entropy-model", small_model_directory, "--threshold", 2.5)
    flags += ("--shard-bytes", 20_000)
    plain, out = tmp_path / "plain", tmp_path / "out"
    done = run_here(*flags, "--output", plain, "--num-workers", 1)
    assert done.returncode == 0, done.stderr
    with another_node(tmp_path, head_node) as node:
        process = subprocess.Popen(
            command(*flags, "--output", out, "--num-workers", 4),
            env=head_node | {"RAY_ADDRESS": head_node["HEAD_NODE"]},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while process.poll() is None and not list(out.glob("entries/*.json")):
            time.sleep(0.02)
        done_before = len(list(out.glob("entries/*.json")))
        lose(node)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert 0 < done_before < len(list(out.glob("entries/*.json")))
    assert contents(out) == contents(plain)
