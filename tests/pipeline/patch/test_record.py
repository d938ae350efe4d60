"""The record of a run: what continues it, and what is refused."""

from dataclasses import replace

import pytest
from support.counted_requests import Counted
from support.jobs import edit_json

from pipeline.corpus.splits import FilePlan, Split
from pipeline.errors import PipelineError
from pipeline.patch.record import PatchRun, is_complete
from pipeline.shards.entries import ShardEntry, commit_entry, read_entries
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST, RECORD

FILES = [InputFile(f"/in/{name}", name, 100, "1") for name in ("a.jsonl", "b.jsonl")]
SPLITS = [Split(file, "jsonl", i, 50 * i, 50 * i + 50, 50) for file in FILES for i in range(2)]
UNITS = [(split,) for split in SPLITS]
CONTENT = {"threshold": 1.0, "keep_columns": ["url"]}


@pytest.fixture
def output(tmp_path) -> OutputDirectory:
    """The output of a run of which the first file is done, and turned out to be broken."""
    output = OutputDirectory(str(tmp_path))
    PatchRun(FILES, UNITS, CONTENT, {"sources": []}, 60).begin(output)
    for name in ("000000-00000-00000", "000000-00001-00000"):
        error = "truncated" if name[11] == "1" else None
        commit_entry(output, ShardEntry(name, "a.jsonl", last=True, error=error))
    commit_entry(output, ShardEntry("000001-00000-00000", "b.jsonl"))
    return output


def rows(output):
    return {name: entry.row() for name, entry in read_entries(output).items()}


def test_a_record_is_read_as_it_was_written(output):
    run = PatchRun.resume(output)
    assert run == PatchRun(FILES, UNITS, CONTENT, {"sources": []}, 60)
    committed = run.committed(rows(output))
    assert [[entry.name[7:] for entry in entries] for entries in committed] == [
        ["00000-00000"],
        ["00001-00000"],
        ["00000-00000"],
        [],
    ]
    assert [is_complete(entries) for entries in committed] == [True, True, False, False]
    assert run.changed_files(CONTENT, FILES, output) == []


def test_the_record_of_another_release_is_refused(output, tmp_path):
    edit_json(tmp_path / RECORD, lambda record: record.update(format_version=99))
    with pytest.raises(PipelineError, match=r"begun by another release \(format 99\); --overwrite"):
        PatchRun.resume(output)


def test_shards_without_a_record_are_refused(output, tmp_path):
    (tmp_path / RECORD).unlink()
    with pytest.raises(PipelineError, match=r"holds shards but not .*run.json; --overwrite starts"):
        PatchRun.resume(output)
    PatchRun.remove(output)
    assert PatchRun.resume(output) is None


CHANGED = {
    "was begun with threshold 1.0, now it is 2.0": (CONTENT | {"threshold": 2.0}, FILES),
    "was begun with keep-columns": (CONTENT | {"keep_columns": []}, FILES),
    "input file /in/b.jsonl is gone": (CONTENT, FILES[:1]),
    "input file /in/c.jsonl is new": (
        CONTENT,
        [*FILES, InputFile("/in/c.jsonl", "c.jsonl", 1, "1")],
    ),
    "input file /in/b.jsonl changed": (CONTENT, [FILES[0], replace(FILES[1], version="2")]),
}


@pytest.mark.parametrize("said", CHANGED)
def test_another_command_or_input_is_refused(output, said):
    with pytest.raises(PipelineError, match=f"{said}.*; --overwrite starts anew"):
        run = PatchRun.resume(output)
        run.check_broken(run.changed_files(*CHANGED[said], output), {"a.jsonl"}, output)


def test_a_broken_file_that_was_mended_is_done_again(output):
    mended = [replace(FILES[0], version="2", size=90), FILES[1]]
    run = PatchRun.resume(output)
    assert run.changed_files(CONTENT, mended, output) == mended[:1]
    run.check_broken(mended[:1], {"a.jsonl"}, output)
    whole = Split(mended[0], "jsonl", 0, 0, 90, 90)
    output.write(MANIFEST, b"{}")
    again = run.with_files(mended[:1], [FilePlan([whole], None)], output)
    assert again == PatchRun.resume(output) and not output.exists(MANIFEST)
    assert again.units == [(whole,), *UNITS[2:]]
    assert [len(entries) for entries in again.committed(rows(output))] == [0, 1, 0]
    assert again.provenance["sources"][0]["bytes"] == 90


SMALL = [InputFile(f"/in/{i:02}.txt", f"{i:02}.txt", 10, "1") for i in range(40)]
SHARED = tuple(Split(file, "text", 0, 0, None, 10) for file in SMALL)


@pytest.fixture
def shared(tmp_path) -> OutputDirectory:
    """The output of a run of forty files in one unit: a shard of it ends with a broken one."""
    output = OutputDirectory(str(tmp_path))
    PatchRun(SMALL, [SHARED], CONTENT, {"sources": []}, 1 << 20).begin(output)
    commit_entry(output, ShardEntry("000000-00000-00000", "07.txt", error="truncated"))
    commit_entry(output, ShardEntry("000000-00000-00001", "39.txt", last=True))
    return output


def test_files_that_share_a_unit_are_done_again_with_the_mended_one(shared):
    run = PatchRun.resume(shared)
    assert run.units == [SHARED]
    mended = replace(SMALL[7], size=99, version="2")
    plan = FilePlan([Split(mended, "jsonl", i, 50 * i, 50 * i + 50, 50) for i in (0, 1)], None)
    again = run.with_files([mended], [plan], shared)
    assert again == PatchRun.resume(shared) and not read_entries(shared)
    assert again.units == [SHARED[:7], *((split,) for split in plan.splits), SHARED[8:]]
    assert again.files == [*SMALL[:7], mended, *SMALL[8:]]


def test_a_unit_is_cut_until_one_file_is_alone(shared):
    """A file that ends its readers is found in a few rounds, and leaves few units behind."""
    run = PatchRun.resume(shared)
    run = run.with_smaller_units([0], shared)
    assert [len(unit) for unit in run.units] == [3] * 13 + [1] and not read_entries(shared)
    commit_entry(shared, ShardEntry("000000-00000-00000", "02.txt", last=True))
    run = run.with_smaller_units([5], shared)
    assert run == PatchRun.resume(shared) and len(read_entries(shared)) == 1
    assert [len(unit) for unit in run.units] == [3] * 5 + [1] * 3 + [3] * 7 + [1]
    assert [split for unit in run.units for split in unit] == list(SHARED)


def test_a_record_of_the_release_before_keeps_its_splits(output, tmp_path):
    def as_before(record):
        record.update(format_version=2)
        del record["plan"]

    edit_json(tmp_path / RECORD, as_before)
    run = PatchRun.resume(output)
    assert run.units == UNITS and run.split_bytes is None
    run.begin(output)
    edit_json(tmp_path / RECORD, lambda record: record["plan"].update(splits_per_unit=[1]))
    with pytest.raises(PipelineError, match=r"run.json is damaged: .*splits_per_unit"):
        PatchRun.resume(output)


def test_what_is_lost_is_removed_in_few_requests():
    files = [InputFile(f"/in/{i}.txt", f"{i}.txt", 10, "1") for i in range(50)]
    units = [(Split(file, "text", 0, 0, None, 10),) for file in files]
    output = OutputDirectory("memory://record/lost")
    run = PatchRun(files, units, CONTENT, {"sources": []}, 60)
    run.begin(output)
    for i in range(50):
        name = f"{i:06d}-00000-00000"
        commit_entry(output, ShardEntry(name, f"{i}.txt", last=True, sha256="0", shard_bytes=5))
    present = rows(output)
    counted = output.filesystem = Counted(output.filesystem)
    assert len(run.discard_lost(present, output, {})) == 50
    assert present == {} == rows(output)
    requests = [name for name in counted.asked if name != "invalidate_cache"]
    assert len([name for name in requests if not name.startswith("cat")]) < 12
