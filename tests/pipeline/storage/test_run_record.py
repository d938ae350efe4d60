"""Every job's record in every output: its own is resumed, any other is one sentence."""

import json
from itertools import product
from pathlib import Path

import pytest

from pipeline.corpus.documents import Columns, Split
from pipeline.errors import ConfigError
from pipeline.export.record import ExportRun
from pipeline.patch.record import PatchRun
from pipeline.prepare.plan import Preparation
from pipeline.prepare.shuffle import Shuffle
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import RECORD, RunRecord

FILE = InputFile("/in/a.jsonl", "a.jsonl", 100, "1")
SPLIT = Split(FILE, "jsonl", 0, 0, 100, 100)
SHUFFLE = Shuffle(
    seed=1,
    deduplicate=False,
    columns=Columns("text", None, ("url",)),
    max_document_bytes=10,
    on_bad_document="reject",
    sort_bytes=10,
    cells=64,
    fine_cells=None,
)
RUNS: dict[str, RunRecord] = {
    "patch shards": PatchRun([FILE], [(SPLIT,)], {"threshold": 1.0}, {"sources": []}),
    "a prepared corpus": Preparation([FILE], [[SPLIT]], {"name": "corpus"}, SHUFFLE),
    "an export": ExportRun({"format": "reference"}, {"a": "a.arrow", "b": "b.arrow"}),
}


@pytest.fixture
def output(tmp_path) -> OutputDirectory:
    return OutputDirectory(str(tmp_path))


def written(directory: Path) -> dict:
    """The values of the record, without the hash of its text."""
    values = json.loads((directory / RECORD).read_text())
    assert values.pop("check")
    return values


@pytest.mark.parametrize(("reader", "writer"), list(product(RUNS, RUNS)))
def test_only_a_job_s_own_record_is_resumed_or_removed(output, tmp_path, reader, writer):
    RUNS[writer].begin(output)
    job = type(RUNS[reader])
    if reader == writer:
        assert job.resume(output) == RUNS[reader]
        job.remove(output)
        assert not (tmp_path / RECORD).exists() and job.resume(output) is None
        return
    before = (tmp_path / RECORD).read_bytes()
    for refused in (job.resume, job.check_removable, job.remove):
        with pytest.raises(ConfigError) as error:
            refused(output, "--output")
        said = f"--output {tmp_path}: holds {writer}; choose another directory"
        assert str(error.value) == said
    assert (tmp_path / RECORD).read_bytes() == before


@pytest.mark.parametrize("contents", ["[]", "3", '"x"', "null", "{", "", "\udcff"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_record_that_is_none_is_named(output, tmp_path, kind, contents):
    (tmp_path / RECORD).write_bytes(contents.encode(errors="surrogateescape"))
    job = type(RUNS[kind])
    with pytest.raises(ConfigError, match=f"^--output {tmp_path}: run.json is damaged: .*restore"):
        job.resume(output)
    if kind == "patch shards":  # whose files are known without it
        job.remove(output)
        assert not (tmp_path / RECORD).exists()
    else:
        with pytest.raises(ConfigError, match=r"run.json is damaged: .* choose another directory"):
            job.remove(output)


@pytest.mark.parametrize("kind", RUNS)
def test_a_record_that_lacks_something_is_named(output, tmp_path, kind):
    RUNS[kind].begin(output)
    whole = written(tmp_path)
    job = type(RUNS[kind])
    for name in whole:
        if name in ("stage", "format_version"):
            continue
        for broken in ({k: v for k, v in whole.items() if k != name}, whole | {name: 3}):
            (tmp_path / RECORD).write_text(json.dumps(broken))
            with pytest.raises(ConfigError, match=r"run.json is damaged: "):
                resumed = job.resume(output)
                assert resumed is not None
                resumed.check_settings("--output", {"threshold": 1.0})
                raise AssertionError(f"{name} was not missed: {resumed}")


@pytest.mark.parametrize("kind", ["patch shards", "a prepared corpus"])
def test_another_release_is_named(output, tmp_path, kind):
    RUNS[kind].begin(output)
    (tmp_path / RECORD).write_text(json.dumps(written(tmp_path) | {"format_version": 99}))
    with pytest.raises(ConfigError, match=r"release \(format 99\); --overwrite starts anew"):
        type(RUNS[kind]).resume(output)


def test_a_stage_that_nobody_knows_is_refused(output, tmp_path):
    for stage in ("later", 3, ["x"], {}):
        (tmp_path / RECORD).write_text(json.dumps({"stage": stage}))
        for run in RUNS.values():
            with pytest.raises(ConfigError, match="holds something else; choose another"):
                type(run).resume(output)


@pytest.mark.parametrize("kind", RUNS)
def test_without_a_record_only_a_job_s_own_directories_are_removed(output, tmp_path, kind):
    for name in ("entries/a.json", "rejects/0.jsonl", "manifest.json", "others.txt"):
        output.write(name, b"{}")
    type(RUNS[kind]).remove(output)
    left = {path.name for path in tmp_path.iterdir()} - {"_tmp"}
    directory = {"a prepared corpus": "entries", "an export": "rejects"}.get(kind)
    assert left == {"others.txt"} | ({directory} if directory else set())


@pytest.mark.parametrize("kind", RUNS)
def test_a_removal_that_is_killed_looks_unfinished_and_can_be_repeated(output, monkeypatch, kind):
    RUNS[kind].begin(output)
    removed: list[str] = []
    monkeypatch.setattr(OutputDirectory, "remove", lambda self, name: removed.append(name))
    monkeypatch.setattr(OutputDirectory, "remove_files", lambda self, names: removed.extend(names))
    type(RUNS[kind]).remove(output)
    assert removed[0] == "manifest.json" and len(removed) > 3
    # Without its record, no run goes on with half of its shards; the others' files it alone tells.
    assert removed.index(RECORD) == (1 if kind == "patch shards" else len(removed) - 1)
