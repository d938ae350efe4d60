"""Committed shards read in parts: what is closed, and what has to be closed again."""

import errno
import io
import shutil

import pytest
from rich.console import Console
from support.counted_requests import Counted
from support.shard_sets import as_version_1, real_texts, write_shards

from pipeline.cluster.packed import Packed
from pipeline.cluster.stage import StageOutcome
from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.patch import collect
from pipeline.patch.collect import closed_set, committed_shards, sum_shards
from pipeline.patch.verify import verify_set
from pipeline.shards.closing import Closing, make_part
from pipeline.shards.entries import (
    ShardEntry,
    commit_entry,
    committed_names,
    entry_path,
    read_entries,
)
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.verify import verify
from pipeline.statistics.summary import Summary
from pipeline.storage import places
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> ShardSet:
    url = tmp_path_factory.mktemp("whole") / "set"
    return write_shards(str(url), [text[:300] for text in real_texts(30)])


@pytest.mark.parametrize("file", ["manifest.json", "entries.arrow", "batches.arrow"])
def test_a_set_is_closed_again_where_its_columns_are_damaged(whole, tmp_path, file):
    url = tmp_path / "set"
    shutil.copytree(whole.output.url, url)
    output, said = OutputDirectory(str(url)), io.StringIO()
    console = Console(file=said, width=500)
    closed = closed_set(output, console)
    assert committed_shards(output, closed, console, 1) == {s.name: s for s in whole.entries}
    assert not said.getvalue()
    data = (url / file).read_bytes()
    place = len(data) // 2
    (url / file).write_bytes(data[:place] + bytes([data[place] ^ 128]) + data[place + 1 :])
    assert closed_set(output, console) is None
    assert f"{url}" in said.getvalue() and said.getvalue().endswith(": closing the set again\n")
    present = committed_shards(output, None, console, 1)
    assert [shard.tokens for shard in present.values()] == [s.tokens for s in whole.entries]
    with Closing(output, {k: whole.manifest[k] for k in ("patcher", "columns")}) as closing:
        names = committed_names(output)
        sum_shards(output, names, whole.schema, closing.add, console, 1)
    assert (url / file).read_bytes() == data


def test_what_is_not_closed_or_of_version_1_is_closed(whole, tmp_path):
    url = tmp_path / "set"
    shutil.copytree(whole.output.url, url)
    output, said = OutputDirectory(str(url)), io.StringIO()
    as_version_1(url)
    assert closed_set(output, Console(file=said)) is None
    (url / "manifest.json").unlink()
    assert closed_set(output, Console(file=said)) is None and not said.getvalue()


def test_a_part_of_a_remote_set_takes_few_requests():
    output = OutputDirectory("memory://collect/few_requests")
    entries = [ShardEntry(f"{i:06d}-00000-00000", "a", last=True) for i in range(200)]
    summary = Summary()
    summary.reject(["broken"])
    for entry in entries:
        commit_entry(output, entry)
        output.write(entry.summary_path, to_json(summary.to_json()))
    counted = output.filesystem = Counted(output.filesystem)
    part = make_part(output, list(read_entries(output).values()))
    assert part.summary.reasons == {"broken": 200} and part.entries.num_rows == 200
    assert sum(name.startswith("cat") for name in counted.asked) < 10
    output.remove(entries[7].summary_path)
    assert make_part(output, entries).summary is None


def test_workers_find_the_problems_that_verification_names(local_ray, tmp_path):
    lost, changed = write_shards(str(tmp_path), [text[:300] for text in real_texts(24)]).entries
    output = OutputDirectory(str(tmp_path))
    (tmp_path / lost.path).unlink()
    (tmp_path / entry_path(changed.name)).unlink()
    (tmp_path / "shards" / "other.arrow").touch()
    problems = verify_set(output, Console(quiet=True), 2)
    assert len(problems) == 4 and problems == list(verify(ShardSet(str(tmp_path))))


def test_a_shard_that_workers_cannot_reach_is_a_problem(tmp_path, monkeypatch):
    """A stage lists what is away, and goes on."""
    write_shards(str(tmp_path), [text[:300] for text in real_texts(3)])
    away = StageOutcome({}, ["s3://bucket/a.arrow: does not answer"], {})
    monkeypatch.setattr("pipeline.patch.verify.run_stage", lambda *_, **__: away)
    problems = verify_set(OutputDirectory(str(tmp_path)), Console(quiet=True), 2)
    assert problems[0] == "s3://bucket/a.arrow: does not answer"


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    """A node that lacks the directory would have had all shards that it looked at made anew."""

    def refused(error: OSError):
        def open_refused(url: str):
            raise error

        monkeypatch.setattr(places, "open_input", open_refused)
        return lambda: collect._hash_piece(0, Packed([{str(tmp_path / "a"): ("0", 1)}]), print)

    for error in (FileNotFoundError(2, "No such file"), PermissionError(13, "Permission denied")):
        with pytest.raises(
            UnreachableFileError, match=f"{tmp_path}/a: cannot be read: {error.args[1]}"
        ):
            refused(error)()
    assert "Input/output error" in refused(OSError(errno.EIO, "Input/output error"))()
    away = StageOutcome({}, ["a: cannot be read: Permission denied"], {})
    monkeypatch.setattr(collect, "run_stage", lambda *_, **__: away)
    with pytest.raises(PipelineError, match=r"a: cannot be read: Permission denied; what is"):
        collect.damaged_files({"a": ("0", 1)}, Console(quiet=True), 2)
