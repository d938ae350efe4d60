"""Downloading from a hub on loopback, with the hub's genuine client, whatever goes wrong."""

import errno
import json
import random
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import hub_client, loopback_hub
from support.loopback_answers import TOKEN, Fault, git_oid

from pipeline.corpus.named import CORPORA
from pipeline.errors import PipelineError
from pipeline.storage import download, tokenizer_files
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory

SIZE = 300_000
"""Bytes of most files: many pieces."""


def content(seed: str, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def corpus_files(name: str) -> dict[str, bytes]:
    """One file of each named corpus's repository that is in it, and such as are not."""
    paths = {
        "fineweb_edu": "data/CC-MAIN-2024-10/train-00000-of-00020.parquet",
        "fineweb_edu_10bt": "sample/10BT/000_00000.parquet",
        "dclm_baseline_1.0": "global-shard_02_of_10/local-shard_0_of_10/shard_0.jsonl.zst",
        "dclm_baseline_1.0_10prct": "global-shard_01_of_10/local-shard_9_of_10/shard_1.jsonl.zst",
    }
    same = [n for n in CORPORA if CORPORA[n].repository == CORPORA[name].repository]
    return {paths[n]: content(n) for n in same} | {"README.md": b"about", "data/.x.parquet": b"x"}


ONE = {"part.parquet": content("one")}
CDN, RESOLVE = "GET /cdn/datasets/lab/{}/", "GET /datasets/lab/{}/resolve"
GATED = {"X-Error-Code": "GatedRepo"}
FAULTS = {
    "cut": (CDN, [Fault(cut=100_000), Fault(cut=50_000), Fault(cut=0)]),
    "whole": (CDN, [Fault(cut=100_000), Fault(whole=True)]),
    "busy": (CDN, [Fault(status=503), Fault(status=429), Fault(cut=10), Fault(status=500)]),
    "waits": (RESOLVE, [Fault(status=503, headers={"Retry-After": "1"})]),
    "hangs-up": (RESOLVE, [Fault(hang_up=True), Fault(hang_up=True)]),
    "stalls": (CDN, [Fault(stall=100_000)]),
    "wrong-once": (CDN, [Fault(wrong=True)]),
    "wrong": (CDN, [Fault(wrong=True)] * 2),
    "shorter": (CDN, [Fault(shorter=1000)] * 4),
    "gone": (RESOLVE, [Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})]),
    "refused": (RESOLVE, [Fault(status=403, headers=GATED)]),
    "down": (CDN, [Fault(cut=70_000), *[Fault(status=503)] * 4]),
    "cut-off": (CDN, [Fault(cut=70_000), *[Fault(cut=0)] * 3]),
    "killed": (CDN, [Fault(stall=200_000)]),
}
STAYING = {
    "wrong": "twice, has the hash sha256:.* and should have sha256:",
    "shorter": "twice, has the hash sha256:.* and should have sha256:",
    "gone": "is no longer on the hub",
    "refused": "the hub refuses it .HTTP 403.*: accept .*/datasets/lab/refused, .*HF_TOKEN",
    "down": "cannot be downloaded now: HTTP 503; .* run the same command again to continue",
    "cut-off": "cannot be downloaded now: .*; .* run the same command again to continue",
}
"""Faults that a run does not wait for, and what it says of them."""
TOKENIZERS = {
    "meta-llama/Meta-Llama-3-8B": ("tokenizer.json", "original/tokenizer.model", "config.json"),
    "openai-community/gpt2": ("vocab.json", "merges.txt", "model.safetensors"),
    "lab/no-tokenizer": ("vocab.json", "tokenizer_config.json"),
}


@pytest.fixture(scope="module")
def hub():
    with loopback_hub.serve() as hub:
        for corpus in CORPORA.values():
            files = corpus_files(corpus.name)
            hub.publish(corpus.repository, files, commit=corpus.revision)
        for name, (pattern, faults) in FAULTS.items():
            hub.publish(f"lab/{name}", ONE)
            hub.faults(pattern.format(name), faults)
        for name, paths in TOKENIZERS.items():
            files = {path: content(path, 100) for path in paths}
            gated = "files" if "llama" in name else "no"
            hub.publish(name, files, kind="model", gated=gated)
        hub.publish("lab/gated", ONE, gated="files")
        yield hub


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def told(hub, directory, tmp_path_factory):
    """What became of each case: in a first run, beside one that is killed, and in a second."""
    home = tmp_path_factory.mktemp("home")

    def start(cases: list[tuple], timeout: int = 1):
        whole = [[kind, name, str(directory), token] for kind, name, token in cases]
        return hub_client.start(hub, whole, home, timeout)

    doomed = start([("fetch", "lab/killed", None)], timeout=100)
    once = [("fetch", name, None) for name in CORPORA]
    once += [("fetch", f"lab/{name}", None) for name in FAULTS if name != "killed"]
    once += [("fetch", "lab/gated", TOKEN), ("tokenizer", "llama3", None)]
    once += [("tokenizer", name, None) for name in (*TOKENIZERS, "lab/no-model", "nonsense")]
    once += [("tokenizer", "llama3", TOKEN)]
    first = hub_client.finish(start(once))
    commit = hub.repositories["datasets/lab/killed"].head
    url = f"hf://datasets/lab/killed@{commit}/part.parquet"
    copy = directory / download.local_name(InputFile(url, "part.parquet", SIZE, ""))
    while not copy.exists() or copy.stat().st_size < 180_000:
        assert doomed.poll() is None
        time.sleep(0.05)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    again = [("fetch", f"lab/{name}", None) for name in (*STAYING, "killed")]
    second = hub_client.finish(start(again))
    keys = [(name, token) for _, name, token in once] + [(name, "again") for _, name, _ in again]
    return dict(zip(keys, first + second, strict=True))


def part(told, name: str, token: str | None) -> dict:
    return told[name, token]["part.parquet"]


@pytest.mark.parametrize("name", CORPORA)
def test_named_corpora_arrive_whole(told, name):
    files, answer = corpus_files(name), told[name, None]
    wanted = {"dclm_baseline_1.0": 2}.get(name, 1)
    assert len(answer) == wanted and answer.keys() <= files.keys()
    for path, fetched in answer.items():
        assert Path(fetched["path"]).read_bytes() == files[path]


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("cut", [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]),
        ("whole", [None, "bytes=100000-"]),
        ("busy", [None, None, None, "bytes=10-", "bytes=10-"]),
        ("waits", [None]),
        ("hangs-up", [None]),
        ("stalls", [None, "bytes=100000-"]),
        ("wrong-once", [None, None]),
    ],
)
def test_faults_that_pass(hub, told, name, ranges):
    answer = part(told, f"lab/{name}", None)
    assert Path(answer["path"]).read_bytes() == ONE["part.parquet"]
    assert [r.range for r in hub.asked(CDN.format(name))] == ranges
    times = 2 if name == "wrong-once" else 1
    assert answer["reported"] == times * SIZE


@pytest.mark.parametrize(("name", "message"), STAYING.items())
def test_faults_that_stay_and_a_rerun_after_them(hub, told, name, message):
    error = part(told, f"lab/{name}", None)["error"]
    commit = hub.repositories[f"datasets/lab/{name}"].head
    url = re.escape(f"hf://datasets/lab/{name}@{commit}/part.parquet")
    assert re.fullmatch(f"UnreachableFileError: {url}: .*{message}.*", error)
    again = part(told, f"lab/{name}", "again")
    assert Path(again["path"]).read_bytes() == ONE["part.parquet"]
    kept = 70_000 if name in ("down", "cut-off") else 0
    last = hub.asked(CDN.format(name))[-1]
    assert (last.sent, again["reported"]) == (SIZE - kept, SIZE - kept)
    assert last.range == (f"bytes={kept}-" if kept else None)


def test_a_killed_process_is_gone_on_from_within_the_file(hub, told):
    stalled, resumed = hub.asked(CDN.format("killed"))
    again = part(told, "lab/killed", "again")
    kept = SIZE - again["reported"]
    assert 180_000 < kept <= stalled.sent
    assert (resumed.range, resumed.sent) == (f"bytes={kept}-", SIZE - kept)
    assert Path(again["path"]).read_bytes() == ONE["part.parquet"]


def test_tokens_stay_on_the_hub(hub, told):
    answer = part(told, "lab/gated", TOKEN)
    assert Path(answer["path"]).read_bytes() == ONE["part.parquet"]
    held = [request for request in hub.requests if TOKEN in str(request.headers)]
    assert held and not any("/cdn/" in request.path for request in held)


def test_tokenizers(told, directory):
    for name, token in (("llama3", TOKEN), ("openai-community/gpt2", None)):
        repository = tokenizer_files.TOKENIZERS.get(name, name)
        names = TOKENIZERS[repository][:2]
        assert told[name, token] == [f"tokenizer/{path}" for path in names]
        root = directory / name / "tokenizer"
        found = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        record = json.loads(found.pop("source.json"))
        assert record["name"] == name
        assert [url.partition("@")[0] for url in record["files"]] == [f"hf://{repository}"] * 2
        assert found == {path: content(path, 100) for path in names}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("llama3", "meta-llama/Meta-Llama-3-8B is gated: .*HF_TOKEN"),
        ("lab/no-tokenizer", "lab/no-tokenizer holds no tokenizer: neither .*merges.txt"),
        ("lab/no-model", "no model lab/no-model on the hub"),
        ("nonsense", "no such tokenizer; there are llama3, .*owner/name"),
    ],
)
def test_tokenizers_that_cannot_be_had(told, name, message):
    assert re.fullmatch(f"ConfigError: --tokenizer {name}: {message}.*", told[name, None]["error"])


FILE = InputFile("hf://datasets/lab/x@c0/a/b.parquet", "a/b.parquet", 4, f"git:{git_oid(b'text')}")


def test_a_copy_that_is_there_is_not_fetched_and_goes_with_its_block(tmp_path):
    (tmp_path / download.local_name(FILE)).write_bytes(b"text")
    with download.local_copy(FILE, tmp_path, report=None) as path:
        assert path.read_bytes() == b"text" and path.name.endswith("-b.parquet")
    assert not list(tmp_path.iterdir())


def test_directories_that_are_full_or_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "_remaining", full)
    huge = replace(FILE, size=10**18)
    for file in (FILE, huge):
        message = f"{tmp_path}: the disk has no room for a/b.parquet .*run the same command again"
        with pytest.raises(PipelineError, match=message):
            download.fetch(file, tmp_path, report=None)
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"file: cannot be written: .*File exists"):
        download.fetch(FILE, tmp_path / "file", report=None)


@pytest.mark.parametrize(
    ("record", "name"),
    [('{"name": "gpt2", "files": []}', "gpt2"), ("[]", None), ("{}", None), ('{"name": 1}', None)],
)
def test_a_tokenizer_is_there_if_its_record_says_so(tmp_path, record, name):
    output = OutputDirectory(str(tmp_path))
    assert tokenizer_files.downloaded_tokenizer(output) is None
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "source.json").write_text(record)
    assert tokenizer_files.downloaded_tokenizer(output) == name
