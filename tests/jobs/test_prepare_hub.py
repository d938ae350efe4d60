"""From a corpus on a hub to chunks, by the job as a user runs it, whatever goes wrong meanwhile."""

import io
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support import loopback_hub
from support.hub_client import be_a_client
from support.jobs import JOB, ROOT, RunJob, command, job_here
from support.local_ray import share_local_ray
from support.loopback_answers import TOKEN, Fault, git_oid, sha256
from support.loopback_hub import Hub
from support.texts import topics

from pipeline import open_shards
from pipeline.corpus.named import CORPORA, Corpus
from pipeline.storage.known_tokenizers import TOKENIZERS

PREPARE = ROOT / "jobs" / "prepare_corpus.py"
Documents = list[tuple[str, str]]
"""``(id, text)`` of each."""
BUSY = Fault(status=503, headers={"Retry-After": "0"})
GONE = Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})
REFUSED = Fault(status=403, headers={"X-Error-Code": "GatedRepo"})
CONTENT = "GET .*/(cdn|resolve-cache)/.*"


def fineweb(documents: Documents) -> bytes:
    """A file as FineWeb-Edu's."""
    ids, texts = zip(*documents, strict=True)
    table = {"text": texts, "id": ids, "dump": ["CC-MAIN-2024-10"] * len(ids)}
    table |= {"score": [2.5] * len(ids), "int_score": [3] * len(ids)}
    pq.write_table(pa.table(table), file := io.BytesIO(), row_group_size=8)
    return file.getvalue()


def dclm(documents: Documents) -> bytes:
    """A file as DCLM-baseline's, which has no ids."""
    lines = [
        {
            "language_id_whole_page_fasttext": {"en": 0.97},
            "metadata": {"Content-Length": str(len(text)), "WARC-Record-ID": f"<urn:{name}>"},
            "text": text,
            "url": f"https://{name}",
        }
        for name, text in documents
    ]
    return zstandard.compress("".join(json.dumps(line) + "\n" for line in lines).encode())


def jsonl(documents: Documents) -> bytes:
    return "".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in documents).encode()


def by_offset(path: str, documents: Documents) -> Documents:
    """The ids that documents of DCLM get."""
    lines = zstandard.decompress(dclm(documents)).splitlines(keepends=True)
    offsets = itertools.accumulate(map(len, lines[:-1]), initial=0)
    return [(f"{path}#{at}", text) for at, (_, text) in zip(offsets, documents, strict=True)]


FINEWEB = {
    "data/CC-MAIN-2024-10/train-00000-of-00002.parquet": topics()[:20],
    "data/CC-MAIN-2024-10/train-00001-of-00002.parquet": topics()[20:40],
    "data/CC-MAIN-2024-18/train-00000-of-00001.parquet": topics()[40:60],
    "sample/10BT/000_00000.parquet": topics()[15:30],
    "sample/10BT/001_00000.parquet": topics()[30:45],
}
DCLM = {
    "global-shard_01_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst": topics()[:20],
    "global-shard_01_of_10/local-shard_9_of_10/shard_00000001_processed.jsonl.zst": topics()[20:50],
    "global-shard_02_of_10/local-shard_0_of_10/shard_00000000_processed.jsonl.zst": topics()[50:60],
}
SET = {
    "a.parquet": topics()[:10],
    "b-wrong.parquet": topics()[10:20],
    "c-gone.parquet": topics()[20:30],
    "d-refused.parquet": topics()[30:40],
    "e-down.jsonl": topics()[40:50],
    "sub/f.jsonl.zst": topics()[50:60],
}
WRITERS = {".parquet": fineweb, ".jsonl": jsonl, ".zst": dclm}


def as_files(documents: dict[str, Documents]) -> dict[str, bytes]:
    files = {path: WRITERS[Path(path).suffix](some) for path, some in documents.items()}
    return files | {"README.md": b"about", "stats.csv": b"n\n1\n"}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with loopback_hub.serve() as hub:
        for corpus, documents in (("fineweb_edu", FINEWEB), ("dclm_baseline_1.0", DCLM)):
            named = CORPORA[corpus]
            hub.publish(named.repository, as_files(documents), commit=named.revision)
        hub.publish("lab/set", as_files(SET), gated="files")
        for name, gated in (("llama3", "files"), ("gpt2", "no")):
            files = {"tokenizer.json": b"{}", "merges.txt": b"a b", "model.safetensors": b"large"}
            hub.publish(TOKENIZERS[name], files, kind="model", gated=gated)
        yield hub


@pytest.fixture(autouse=True)
def without_faults(hub):
    hub.plans.clear()
    hub.requests.clear()


class Prepare:
    """Runs the job; all that it says is in ``said``."""

    def __init__(self, hub: Hub, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
        self.hub, self.said, self.home = hub, "", directory / "home"
        self.temporary = directory / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._monkeypatch, self._job = monkeypatch, job_here(PREPARE, monkeypatch, capsys)

    def settings(self, token: str | None) -> dict[str, str]:
        # Ray's sockets have short names only in a directory that has one.
        directories = {"TMPDIR": str(self.temporary), "RAY_TMPDIR": "/tmp"}
        return self.hub.settings(self.home, token) | directories

    def start(self, output: Path, *flags: object) -> subprocess.Popen:
        """A process of its own, with a Ray of its own."""
        run = command("--output", output, "--num-workers", 2, *flags, job=PREPARE)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(run, env=self.settings(None), **pipes)

    def __call__(self, output: Path, *flags: object, token: str | None = None, status: int = 0):
        """The exit status has to be ``status``; gives the finished process.

        It runs here, on a Ray whose workers have the same settings, and a token.
        """
        share_local_ray(settings=self.settings(TOKEN))
        with self._monkeypatch.context() as client:
            be_a_client(client, self.settings(token))
            client.setattr("tempfile.tempdir", str(self.temporary))
            done = self._job("--output", output, "--num-workers", 2, *flags)
        self.said += done.stdout + done.stderr
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture(scope="module")
def clients(tmp_path_factory) -> Path:
    """Home and temporary directory of clients: the same for all, as is their Ray."""
    return tmp_path_factory.mktemp("clients")


@pytest.fixture
def prepare(hub, clients, tmp_path, monkeypatch, capsys) -> Iterator[Prepare]:
    prepare = Prepare(hub, clients, monkeypatch, capsys)
    shutil.rmtree(prepare.home, ignore_errors=True)
    yield prepare
    stored = [path for top in (tmp_path, clients) for path in top.rglob("*") if path.is_file()]
    told = [prepare.said.encode(), *(path.read_bytes() for path in stored)]
    assert not any(secret.encode() in text for text in told for secret in (TOKEN, "Signature="))
    # Nothing of the downloads is left behind.
    assert not [path for path in stored if prepare.temporary in path.parents]


def manifest(output: Path) -> dict:
    return json.loads((output / "manifest.json").read_text())


def chunk_names(output: Path) -> list[str]:
    told = manifest(output)
    return [told["validation"]["name"], *(chunk["name"] for chunk in told["chunks"])]


def prepared(output: Path, columns: tuple[str, ...] = ("sample_id", "text")) -> list[tuple]:
    tables = [pq.read_table(output / name) for name in chunk_names(output)]
    return [tuple(row[name] for name in columns) for t in tables for row in t.to_pylist()]


def whole(output: Path) -> dict[str, bytes]:
    """All files of a prepared corpus: nothing else is there."""
    assert {path.name for path in output.iterdir()} == {*chunk_names(output), *JSON}
    return {name: (output / name).read_bytes() for name in chunk_names(output)}


JSON = ("manifest.json", "run.json")


def check_prepared(output: Path, documents: Documents, files: dict[str, bytes], root: str) -> None:
    """Each document is there once, and the manifest tells where it is from.

    Args:
        files: that were read, by path in the repository.
        root: their URL.
    """
    assert Counter(prepared(output)) == Counter(documents)
    told = manifest(output)
    assert told["counts"]["records"] == told["statistics"]["documents"] == len(documents)
    assert told["statistics"]["bytes"] == sum(len(text.encode()) for _, text in documents)
    sources = {source["name"]: source for source in told["sources"]}
    assert sources.keys() == files.keys()
    for path, source in sources.items():
        git = path.endswith(".jsonl")
        version = f"git:{git_oid(files[path])}" if git else f"sha256:{sha256(files[path])}"
        assert (source["url"], source["version"]) == (f"{root}/{path}", version)
        assert source["bytes"] == len(files[path]) and source["error"] is None
    assert sum(source["documents"]["documents"] for source in told["sources"]) == len(documents)
    for chunk in (told["validation"], *told["chunks"]):
        assert chunk["sha256"] == sha256((output / chunk["name"]).read_bytes())


# One of each repository: the others differ in the pattern of their files, see test_corpora.py.
@pytest.mark.parametrize("name", ["fineweb_edu_10bt", "dclm_baseline_1.0_10prct"])
def test_named_corpora(hub, prepare, tmp_path, monkeypatch, capsys, name):
    """From each named corpus's repository to chunks; of one from there to shards."""
    corpus, out = CORPORA[name], tmp_path / "out"
    chosen = {path: some for path, some in (FINEWEB | DCLM).items() if chooses(name, path)}
    files = {path: WRITERS[Path(path).suffix](some) for path, some in chosen.items()}
    one, *_, last = files
    for path, faults in (
        (one, [Fault(cut=5000), BUSY, Fault(cut=100)]),
        (last, [Fault(wrong=True)]),
    ):
        hub.faults(f"GET /cdn/.*{path}", faults)
    flags = ["--corpus", name, "--num-chunks", 3]
    tokenizer = ["--tokenizer", "gpt2"] if name == "fineweb_edu_10bt" else []
    keep = ["--keep-columns", "url", "metadata"] if corpus.format == "jsonl" else []
    done = prepare(out, *flags, *keep, *tokenizer, "--sort-bytes", 60_000)
    root = f"hf://datasets/{corpus.repository}@{corpus.revision}"
    documents = [d for path, some in chosen.items() for d in with_ids(path, some)]
    check_prepared(out, documents, files, root)
    assert chunk_names(out) == [
        f"{name}.val.parquet",
        *(f"{name}.chunk.0{i}.parquet" for i in range(3)),
    ]
    asked = {request.path.partition("?")[0] for request in hub.asked("GET /datasets/")}
    assert asked == {f"/datasets/{corpus.repository}/resolve/{corpus.revision}/{p}" for p in files}
    assert "input files" in done.stdout and "documents" in done.stdout
    if keep:
        names = [name for some in chosen.values() for name, _ in some]
        rows = prepared(out, ("url", "metadata"))
        assert Counter(url for url, _ in rows) == Counter(f"https://{name}" for name in names)
        for url, metadata in rows:
            urn = url.replace("https://", "urn:")
            assert json.loads(metadata)["WARC-Record-ID"] == f"<{urn}>"
    if tokenizer:
        paths = [path.relative_to(out / "tokenizer") for path in (out / "tokenizer").iterdir()]
        assert {str(path) for path in paths} >= {"tokenizer.json", "merges.txt"}
        patch = job_here(JOB, monkeypatch, capsys)  # on the Ray that ``prepare`` has left running
        check_patched(out, tmp_path / "patched", patch)
    else:
        whole(out)


def test_a_named_corpus_is_one_entry_in_the_table(hub, prepare, tmp_path, monkeypatch):
    files = {"in/a.jsonl": jsonl(topics()[:12]), "out/b.jsonl": jsonl(topics()[12:15])}
    commit = hub.publish("lab/toy", files)
    hub.publish("lab/toy", {"in/a.jsonl": jsonl(topics()[:3])})
    toy = Corpus("toy", "lab/toy", ("in/*.jsonl",), "jsonl", "text", "id", commit)
    monkeypatch.setitem(CORPORA, "toy", toy)
    out = tmp_path / "out"
    prepare(out, "--corpus", "toy", "--num-chunks", 2)
    read = {"in/a.jsonl": files["in/a.jsonl"]}
    check_prepared(out, topics()[:12], read, f"hf://datasets/lab/toy@{commit}")
    assert chunk_names(out) == ["toy.val.parquet", "toy.chunk.00.parquet", "toy.chunk.01.parquet"]


def chooses(corpus: str, path: str) -> bool:
    beginnings = {
        "fineweb_edu": "data/",
        "fineweb_edu_10bt": "sample/10BT/",
        "dclm_baseline_1.0": "global-",
        "dclm_baseline_1.0_10prct": "global-shard_01_",
    }
    return path.startswith(beginnings[corpus])


def with_ids(path: str, documents: Documents) -> Documents:
    return documents if path.endswith(".parquet") else by_offset(path, documents)


def check_patched(out: Path, patched: Path, patch: RunJob) -> None:
    """The prepared corpus goes on as it is."""
    done = patch("--input", out, "--output", patched, "--rule", "space")
    assert done.returncode == 0, done.stderr
    chunks = [pq.read_table(out / name).to_pylist() for name in chunk_names(out)[1:]]
    documents = [(row["sample_id"], row["text"]) for rows in chunks for row in rows]
    assert [(d.sample_id, d.text) for d in open_shards(str(patched))] == documents


def names_asked(hub: Hub, pattern: str) -> set[str]:
    return {re.split(r"/[0-9a-f]{40}/", r.path.partition("?")[0])[1] for r in hub.asked(pattern)}


def test_a_killed_run_goes_on_at_its_commit_from_within_the_file(hub, prepare, tmp_path):
    """Meanwhile the branch moves."""
    out = tmp_path / "out"
    big = [(f"noise-{i}", random.Random(i).randbytes(5000).hex()) for i in range(100)]
    files = {"one.jsonl.zst": dclm(topics()[:10]), "two.jsonl.zst": dclm(big)}
    commit = hub.publish("lab/moves", files)
    hub.faults("GET /cdn/.*two", [Fault(stall=200_000)])
    flags = ("--corpus", "lab/moves", "--num-chunks", 2, "--sort-bytes", 60_000)
    doomed = prepare.start(out, *flags)
    while not arrived(out, "two") > 180_000:
        assert doomed.poll() is None
        time.sleep(0.05)
    for process in [*psutil.Process(doomed.pid).children(recursive=True), doomed]:
        process.send_signal(signal.SIGKILL)
    doomed.communicate()
    there = arrived(out, "two")
    hub.publish("lab/moves", {"one.jsonl.zst": dclm(topics()[:5])})
    hub.requests.clear()
    prepare(out, *flags)
    (request,) = hub.asked("GET /cdn/.*two")
    assert request.range == f"bytes={there}-" and commit in request.path
    documents = by_offset("one.jsonl.zst", topics()[:10]) + by_offset("two.jsonl.zst", big)
    check_prepared(out, documents, files, f"hf://datasets/lab/moves@{commit}")
    assert len(whole(out)) == 3
    # What the branch has now, and by its revision what it had.
    new, old = tmp_path / "new", tmp_path / "old"
    prepare(new, "--corpus", "lab/moves")
    assert manifest(new)["counts"]["records"] == 5
    prepare(old, "--corpus", f"lab/moves@{commit}", *flags[2:])
    assert whole(old) == whole(out)


def arrived(out: Path, name: str) -> int:
    """Bytes of a download that are on disk."""
    return sum(path.stat().st_size for path in (out / "exchange" / "downloads").glob(f"*-{name}*"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus", "lab/set"], "--corpus lab/set: lab/set is gated: .*set HF_TOKEN"),
        (["--corpus", "lab/none"], "--corpus lab/none: no dataset lab/none on the hub"),
        (["--corpus", "lab/set", "--files", "*.txt"], "--corpus lab/set: .*no file that matches"),
        (["--corpus", "fineweb_edu", "--tokenizer", "llama3"], "--tokenizer llama3: .* is gated"),
        (["--corpus", "fineweb_edu", "--tokenizer", "gpt"], "--tokenizer gpt: no such tokenizer"),
    ],
)
def test_what_cannot_be_had_is_told_before_any_work(prepare, tmp_path, flags, message):
    done = prepare(tmp_path / "out", *flags, status=2)
    assert re.match(f"error: {message}", done.stderr) and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_faults_that_stay_and_a_rerun_after_them(hub, prepare, tmp_path):
    """Of six files four cannot be had; then with the hub well again, and once without faults and
    with files that are kept."""
    out, plain, kept = (tmp_path / name for name in ("out", "plain", "kept"))
    flags = ("--corpus", "lab/set", "--id-column", "id", "--num-chunks", 3, "--sort-bytes", 30_000)
    flags += ("--files", "*.parquet", "*.jsonl")
    commit = hub.repositories["datasets/lab/set"].head
    root = f"hf://datasets/lab/set@{commit}"
    faults = {
        "b-wrong.parquet": ("/cdn/", Fault(wrong=True), "twice, has the hash sha256:.*"),
        "c-gone.parquet": ("/resolve/", GONE, "is no longer on the hub"),
        "d-refused.parquet": ("/resolve/", REFUSED, "accept the licence on .*set HF_TOKEN"),
        "e-down.jsonl": ("-cache/", BUSY, "cannot be downloaded now: HTTP 503; .*same command"),
    }
    for path, (where, fault, _) in faults.items():
        hub.faults(f"GET .*{where}.*{path}", itertools.repeat(fault))
    done = prepare(out, *flags, token=TOKEN, status=1)
    lines = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert len(lines) == len(faults)
    for line, (path, (*_, message)) in zip(sorted(lines), faults.items(), strict=True):
        assert re.fullmatch(f"failed: {root}/{path}: .*{message}.*", line)
    assert "no chunks were written yet; run the same command again" in done.stdout
    assert not list(out.glob("set.*")) and not (out / "manifest.json").exists()
    hub.plans.clear()
    hub.requests.clear()
    prepare(out, *flags, token=TOKEN)
    assert not hub.asked("/api/datasets") and names_asked(hub, CONTENT) == faults.keys()
    files = {path: data for path, data in as_files(SET).items() if path[1] == "-" or path[0] == "a"}
    documents = [document for path in files for document in SET[path]]
    check_prepared(out, documents, files, root)

    prepare(plain, *flags, "--downloads", kept, token=TOKEN)
    assert whole(plain) == whole(out)
    there = {str(p.relative_to(kept)): p.read_bytes() for p in kept.rglob("*") if p.is_file()}
    assert there == {f"lab/set/{commit}/{path}": data for path, data in files.items()}
    assert {p.name for p in kept.iterdir()} == {"lab"}
    # Another preparation of the same files, some of which were damaged meanwhile.
    hub.requests.clear()
    (kept / "lab" / "set" / commit / "a.parquet").write_bytes(files["a.parquet"][:-1])
    more = tmp_path / "more"
    prepare(more, *flags, "--seed", 1, "--downloads", kept, token=TOKEN)
    assert names_asked(hub, CONTENT) == {"a.parquet"}
    assert prepared(more) != prepared(out) and Counter(prepared(more)) == Counter(prepared(out))
