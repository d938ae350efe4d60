"""Exports that are pushed to a hub: resumed, refused, and nothing of others overwritten."""

import hashlib
import json
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from support import tiny
from support.hub_client import be_a_client
from support.jobs import ROOT, files_below, job_here
from support.local_ray import share_local_ray
from support.loopback_answers import TOKEN, Fault
from support.loopback_hub import Hub, serve
from support.loopback_uploads import READER, UploadHandler
from support.texts import topics, write_jsonl

from model import NGramEntropyModel, Patcher
from pipeline.errors import ConfigError
from pipeline.export.hub_upload import open_repository
from pipeline.storage.output import OutputDirectory


@pytest.fixture(scope="module")
def made(tmp_path_factory, ngram_model: NGramEntropyModel) -> Path:
    """A set of several shards, and one without documents."""
    directory = tmp_path_factory.mktemp("export")
    for name, texts in (("set", topics()[:24]), ("bare", [])):
        inputs = write_jsonl(directory / "in" / f"{name}.jsonl", [(i, t[:2500]) for i, t in texts])
        tiny.make_shards(directory / name, inputs, ngram_model, Patcher(1.0), shard_bytes=12_000)
    return directory


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serve(UploadHandler) as hub:
        yield hub


@pytest.fixture
def hub(server) -> Hub:
    """A hub with nothing in it; it stays at its address, so that the Ray of its clients can."""
    for of_other_tests in (server.repositories, server.objects, server.visibility):
        of_other_tests.clear()
    server.plans.clear()
    server.requests.clear()
    return server


def settings(hub: Hub, made: Path, token: str) -> dict[str, str]:
    # Our server has no Xet storage: files are uploaded as to such hubs.
    return hub.settings(made / "home", token)


Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def push(hub, made, tmp_path, monkeypatch, capsys) -> Push:
    """Run the job here, on a Ray whose workers may write to the hub."""
    job = job_here(ROOT / "jobs" / "export_shards.py", monkeypatch, capsys)

    def run(*flags: str, token: str = TOKEN, shards: str = "set"):
        share_local_ray(settings=settings(hub, made, TOKEN))
        with monkeypatch.context() as client:
            be_a_client(client, settings(hub, made, token))
            to = ("--output", "me/patches", "--layout", "hub", "--staging", tmp_path / "staging")
            return job("--shards", made / shards, *to, *flags)

    return run


def test_push_interrupted_and_resumed(hub, made, push, tmp_path):
    hub.faults("PUT /lfs/", [None, None, *[Fault(status=403)] * 40])
    broken = push("--private", "--num-workers", "1")
    assert broken.returncode == 1 and "--output me/patches" in broken.stderr, broken.stderr
    hub.plans.clear()
    uploaded = set(hub.objects)
    assert len(uploaded) == 2
    hub.requests.clear()
    done = push()
    assert done.returncode == 0, done.stderr
    again = {request.path.rpartition("/")[2] for request in hub.asked("^PUT /lfs/")}
    assert not again & uploaded
    repository = hub.repositories["datasets/me/patches"]
    there = repository.commits[repository.head]
    assert hub.visibility == {"me/patches": "private"}
    staged = files_below(tmp_path / "staging")
    data = {name for name in staged if name.startswith("data/")}
    assert {name for name in there if name.startswith("data/")} == data
    beside = ("README.md", "manifest.json", "pictures/threshold.png")
    assert all(there[name] == staged[name] for name in (*data, *beside))
    assert DatasetCard(there["README.md"].decode()).data.pretty_name == "patches"
    # It tells nothing of who made it.
    assert str(made).encode() not in there["manifest.json"] + there["README.md"]
    # What is staged costs much: who may not push does not lose it.
    refused = push("--overwrite", "--drop-entropies", token=READER)
    assert refused.returncode == 1 and files_below(tmp_path / "staging") == staged
    for said in (broken, done):
        assert TOKEN not in said.stdout + said.stderr


def test_a_repository_of_another_kind_is_left_alone(hub, push, tmp_path):
    by_hand = {"README.md": b"mine", "data/train-00000-of-00001.parquet": b"my rows"}
    by_hand["manifest.json"] = b'{"name": "my app"}'
    hub.publish("me/patches", by_hand)
    refused = push(shards="bare")
    assert refused.returncode == 2, refused.stderr
    said = "me/patches: holds files that are no export's, such as data/train-00000-of-00001"
    assert said in refused.stderr and not (tmp_path / "staging").exists()
    repository = hub.repositories["datasets/me/patches"]
    assert repository.commits[repository.head] == by_hand
    # As a repository is that was made in a browser.
    hub.publish("me/patches", {"README.md": b"mine", ".gitattributes": b""})
    done = push(shards="bare")
    assert done.returncode == 0, done.stderr
    there = repository.commits[repository.head]
    assert json.loads(there["manifest.json"])["files"] == []
    assert b"mine" not in there["README.md"]


def test_private_data_are_not_pushed_where_everybody_reads(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    staging = OutputDirectory(str(tmp_path))
    open_repository("me/new", staging, private=True)
    open_repository("me/new", staging, private=True)  # a rerun
    hub.publish("me/open", {".gitattributes": b""})
    with pytest.raises(ConfigError, match=r"^--private: me/open is there already, and everybody"):
        open_repository("me/open", staging, private=True)
    open_repository("me/open", staging, private=False)
    assert hub.visibility == {"me/new": "private"}


def test_who_may_not_write_is_told(push, tmp_path):
    for token, status in ((READER, 403), ("", 401)):
        done = push(token=token)
        assert done.returncode == 1 and not (tmp_path / "staging").exists()
        assert f"--output me/patches: the hub refuses ({status})" in done.stderr
        assert "HF_TOKEN" in done.stderr or status == 403


ONE_FILE = """
    import pickle, sys
    from base64 import b64decode
    from pipeline.export.exported_file import ExportedFile
    from pipeline.export.hub_upload import _upload_file
    from pipeline.storage.output import OutputDirectory

    class File:
        path, bytes = "data/a.parquet", 300_000

    shared = ([File()], "me/set", OutputDirectory(sys.argv[1]))
    operation = pickle.loads(b64decode(_upload_file(0, shared, lambda count: None)))
    print(operation.upload_info.sha256.hex())
"""


def test_a_hub_with_xet_storage(hub, tmp_path):
    """The client's own library cuts the file into chunks and uploads those."""
    data = random.Random(0).randbytes(300_000)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(data)
    hub.publish("me/set", {".gitattributes": b""})
    hub.has_xet = True
    try:
        script = [sys.executable, "-c", textwrap.dedent(ONE_FILE), tmp_path]
        env = hub.settings(tmp_path / "home", TOKEN)
        done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    finally:
        hub.has_xet = False
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == hashlib.sha256(data).hexdigest()
    # Text that nothing compresses, with a header per chunk.
    (size,) = hub.xorbs.values()
    assert 300_000 < size < 301_000
    assert not [request for request in hub.requests if request.method == "PUT"]
