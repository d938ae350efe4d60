"""``train_entropy_model.py``, which makes the models that come along: what it does untrained."""

import hashlib
import json
import runpy
import tarfile
from pathlib import Path

import pytest
from rich.console import Console
from support.jobs import ROOT

from pipeline.errors import ConfigError

JOB = runpy.run_path(str(ROOT / "jobs" / "train_entropy_model.py"))


def test_what_a_killed_run_leaves_is_not_taken_for_done(tmp_path, monkeypatch):
    """It is killed while it unpacks a package, then while it writes the corpus."""
    work, package = tmp_path / "work", tmp_path / "work" / "packages" / "a==1" / "a.tar.gz"
    package.parent.mkdir(parents=True)
    (tmp_path / "x.txt").write_text("a text")
    with tarfile.open(package, "w:gz") as archive:
        for number in range(200):
            archive.add(tmp_path / "x.txt", f"a/{number}.txt")
    job = JOB["write_corpus"].__globals__
    monkeypatch.setitem(job, "PACKAGES", {"a==1": hashlib.sha256(package.read_bytes()).hexdigest()})
    monkeypatch.setattr(job["sysconfig"], "get_path", lambda name: str(tmp_path / "nowhere"))

    def killed_unpacking(archive: tarfile.TarFile, place: Path, **given: str) -> None:
        archive.extract("a/0.txt", place, filter="data")
        raise KeyboardInterrupt

    def killed_writing(path: Path, text: str, **given: str) -> None:
        path.write_bytes(text.encode()[:20])
        raise KeyboardInterrupt

    for cls, name, killed in (
        (tarfile.TarFile, "extractall", killed_unpacking),
        (Path, "write_text", killed_writing),
    ):
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            context.setattr(cls, name, killed)
            JOB["write_corpus"](work)
        assert not list(work.glob("*.jsonl"))
    JOB["write_corpus"](work)
    parts = [(work / f"{part}.jsonl").read_text() for part in ("train", "validation")]
    lines = [len(part.splitlines()) for part in parts]
    assert lines == [196, 4]  # of 200 files, every 64th from the first on is held out


def test_beginnings_are_written_once(tmp_path):
    """Their shards are those of this very file, as its time of modification tells."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"text": 50_000 * letter}) + "\n" for letter in "abcd"))
    JOB["write_beginnings"](source, target, 100_000)
    texts = [json.loads(line)["text"] for line in target.read_text().splitlines()]
    assert texts == [40_000 * letter for letter in "abc"]
    before = target.stat()
    JOB["write_beginnings"](source, target, 100_000)
    assert target.stat().st_mtime_ns == before.st_mtime_ns and target.stat().st_ino == before.st_ino


def test_processes_that_cannot_share_a_step_are_refused_before_the_work(tmp_path):
    config = JOB["TrainEntropyModelConfig"](work=tmp_path / "work", processes=3)
    with pytest.raises(ConfigError, match=r"^--processes: 3 cannot share the 8 rows of a step"):
        JOB["make"](config, Console(quiet=True))
    assert not (tmp_path / "work").exists()
