"""Shards written and read back, what verification notices, and manifests that are damaged."""

import json
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from support.jobs import edit_json
from support.shard_sets import as_version_1, write_manifest, write_shards

from model import Patcher
from pipeline import open_shards
from pipeline.corpus.documents import Document, Reject, rejects_json
from pipeline.errors import PipelineError
from pipeline.patch.scoring import Scorer
from pipeline.shards import tables
from pipeline.shards.entries import ShardEntry, commit_entry, read_entries, read_entry
from pipeline.shards.format import read_texts, record_batch, shard_schema
from pipeline.shards.manifest import FORMAT_VERSION
from pipeline.shards.record_batches import BatchWriter
from pipeline.shards.verify import verify
from pipeline.statistics.counts import PatchStatistics
from pipeline.statistics.summary import Summary
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory

DOCUMENTS = [
    Document(str(i), f"a#{i}", text.encode(), (None if i else "x",))
    for i, text in enumerate(["One two three.\n", "", "é ü", "a longer document " * 5])
]
PATCHER = Patcher(1.0)


def write(
    url, model, *, entropies=True, summary=False, change=lambda batch: batch
) -> OutputDirectory:
    """A shard set of one shard, whose rows are changed before they are written."""
    output = OutputDirectory(str(url))
    schema = shard_schema(["meta"], entropies=entropies)
    scored = Scorer(model, PATCHER).score([document.text for document in DOCUMENTS])
    batch = change(record_batch(DOCUMENTS, scored, schema))
    statistics = PatchStatistics.of(scored.lengths_D, scored.patch_lengths_P, scored.entropies_T)
    entry = ShardEntry("000000-00000-00000", "a", records=5, rejects=1, last=True)
    with output.committing(entry.path) as path, BatchWriter(path, schema) as writer:
        writer.write(batch, int(scored.lengths_D.sum()))
        entry.describe(writer.close())
    entry.statistics = statistics.to_json()
    output.write(entry.rejects_path, rejects_json("a", [Reject("7", "broken")], None))
    if summary:
        counted = Summary.of(batch, scored, PATCHER, ["meta"])
        counted.reject(["broken"])
        output.write(entry.summary_path, to_json(counted.to_json()))
    commit_entry(output, entry)
    assert read_entry(output, entry.name) == entry == read_entries(output)[entry.name]
    provenance = {"patcher": {"threshold": 1.0}, "columns": schema.names}
    write_manifest(output, provenance, [entry])
    return output


@pytest.mark.parametrize("entropies", [True, False])
def test_what_is_written_is_read_back(tmp_path, ngram_model, entropies):
    write(tmp_path, ngram_model, entropies=entropies)
    shards = open_shards(str(tmp_path))
    rows = list(shards)
    assert [row.text.encode() for row in rows] == [document.text for document in DOCUMENTS]
    assert [row.sample_id for row in rows] == ["a#0", "a#1", "a#2", "a#3"]
    for row in rows:
        assert row.patch_lengths.sum() == len(row.text.encode()) + 2
        assert b"".join(row.patches()) == row.text.encode()
        assert (row.entropies is None) != entropies
    assert b"\x28\xb5\x2f\xfd" in (tmp_path / shards.entries[0].path).read_bytes()  # zstd
    (batch,) = shards.batches(["meta"])
    assert batch.to_pylist() == [{"meta": "x"}, *[{"meta": None}] * 3]
    assert list(shards.rejects()) == [{"file": "a", "position": "7", "reason": "broken"}]
    # A file that could not be read to its end is among them, too.
    (one,) = shards.entries
    assert shards.shard_rejects(replace(one, rejects=0, error="it ends early"))
    assert not shards.shard_rejects(replace(one, rejects=0))
    assert shards.patcher == PATCHER and shards.statistics.documents == 4
    assert list(verify(shards)) == []


def set_column(name, values):
    def change(batch):
        i = batch.schema.get_field_index(name)
        return batch.set_column(i, batch.schema.field(i), values(batch.column(i)))

    return change


def with_values(column, act):
    """A list column whose flat values went through ``act``."""
    values = np.array(column.values)
    act(values)
    return pa.ListArray.from_arrays(column.offsets, pa.array(values, column.type.value_type))


def merge_two(values):
    """The first two patches of the last document change their lengths, not their sum."""
    values[-2:] += np.array([-1, 1], values.dtype)


WRONG = {
    "batch 0 row 0: patch lengths sum to 18, the document has 17 tokens": set_column(
        "patch_lengths", lambda c: with_values(c, lambda v: v.__setitem__(1, v[1] + 1))
    ),
    "batch 0: boundaries are not those of the stored entropies": set_column(
        "patch_lengths", lambda c: with_values(c, merge_two)
    ),
    "batch 0: not one entropy for each token": set_column(
        "entropies", lambda c: pa.ListArray.from_arrays([0, 1, 2, 3, len(c.values)], c.values)
    ),
    "rows do not give the statistics in the manifest": lambda batch: batch.slice(0, 3),
}


@pytest.mark.parametrize("message", WRONG)
def test_verification_notices_wrong_rows(tmp_path, ngram_model, message):
    write(tmp_path, ngram_model, change=WRONG[message])
    problems = list(verify(open_shards(str(tmp_path))))
    assert f"{tmp_path}/shards/000000-00000-00000.arrow: {message}" in problems


def test_verification_notices_wrong_totals(tmp_path, ngram_model):
    write(tmp_path, ngram_model)
    path = tmp_path / "manifest.json"
    edit_json(path, lambda manifest: manifest["statistics"].update(documents=0))
    (problem,) = verify(open_shards(str(tmp_path)))
    assert problem == f"{path}: statistics are not the sum of the shards'"


def test_verification_notices_a_shard_of_another_set(tmp_path, ngram_model):
    write(tmp_path, ngram_model)
    other = tmp_path / "shards" / "000009-00000-00000.arrow"
    shutil.copyfile(tmp_path / "shards" / "000000-00000-00000.arrow", other)
    shards = open_shards(str(tmp_path))
    assert list(verify(shards)) == [f"{other}: is no shard of this set; remove it"]
    assert len(list(shards)) == 4


def test_what_is_no_shard_set_is_refused(tmp_path, ngram_model):
    with pytest.raises(PipelineError, match=r"/typo: no such directory$"):
        open_shards(str(tmp_path / "typo"))
    with pytest.raises(PipelineError, match=r"no manifest.json: not a shard set, or its job has"):
        open_shards(str(tmp_path))
    write(tmp_path, ngram_model)
    path = tmp_path / "manifest.json"
    edit_json(path, lambda manifest: manifest.update(format_version=99))
    with pytest.raises(
        PipelineError, match=f"of format version 99; .* versions up to {FORMAT_VERSION}: "
    ):
        open_shards(str(tmp_path))
    for manifest, message in (
        ({"format_version": FORMAT_VERSION, "chunks": []}, "a prepared corpus, which jobs/patch_c"),
        ({"stage": "export", "files": []}, "an export, not a shard set"),
        ({"name": "web app"}, "another program's, not a shard set"),
        ([], "another program's, not a shard set"),
    ):
        path.write_text(json.dumps(manifest))
        with pytest.raises(PipelineError, match=f"{tmp_path}: .*{message}"):
            open_shards(str(tmp_path))


PARTS = {"offset": [8], "length": [8], "rows": [8], "tokens": [8], "hash": ["f" * 16]}
TABLE = {"bytes": 3, "sha256": "a", "parts": PARTS}
DAMAGED = {
    "it has no 'batches'": {"batches": None},
    "entries has no 'parts'": {"entries": {"bytes": 3, "sha256": ""}},
    "entries.parts.rows[0] is '3', not an integer": {
        "entries": TABLE | {"parts": PARTS | {"rows": ["3"]}}
    },
    "not equally many offsets": {"batches": TABLE | {"parts": PARTS | {"rows": [3, 4]}}},
    "invalid literal for int() with base 16": {
        "batches": TABLE | {"parts": PARTS | {"hash": ["hash"]}}
    },
    "columns: are not in the order": {"columns": ["text", "sample_id", "meta", "patch_lengths"]},
    "it has no 'statistics'": {"statistics": None},
    "patcher is 'space', not an object": {"patcher": "space"},
    "entropy_model.source: 3 is no str": {"entropy_model": {"source": 3}},
    "columns[1] is 3, not a string": {"columns": ["text", 3]},
    "format_version is '1', not an integer": {"format_version": "1"},
    "statistics has no 'documents'": {"statistics": {}},
    "summary is [1], not an object": {"summary": [1]},
    "rule: 'spaces' is not one of": {"patcher": {"rule": "spaces"}},
    "unexpected keyword argument 'bytes'": {"patcher": {"bytes": 3}},
}
DAMAGED_1 = {
    "shards is 3, not a list": {"shards": 3},
    "it has no 'shards'": {"shards": None, "entries": TABLE},
    "shards[0] is 'first', not an object": {"shards": ["first"]},
    "shards[0] has no 'name'": {"shards": [{}]},
    "shards[0].sha256 is 3, not a string": {"shards": [{"name": "a", "source": "b", "sha256": 3}]},
    "shards[0] has an unknown 'rows'": {"shards": [{"name": "a", "source": "b", "rows": 3}]},
    "shards[0].statistics has no 'tokens'": {
        "shards": [{"name": "a", "source": "b", "statistics": {"documents": 3, "bytes": 3}}]
    },
}


@pytest.mark.parametrize("message", DAMAGED)
def test_a_damaged_manifest_is_named(tmp_path, ngram_model, message):
    write(tmp_path, ngram_model)
    check_damaged(tmp_path, DAMAGED[message], message)


def check_damaged(directory, changes, message):
    path = directory / "manifest.json"
    edit_json(path, lambda manifest: manifest.update(changes))
    kept = {k: value for k, value in json.loads(path.read_text()).items() if value is not None}
    path.write_text(json.dumps(kept))
    with pytest.raises(PipelineError) as raised:
        open_shards(str(directory))
    assert str(raised.value).startswith(f"{directory}: manifest.json is damaged: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("message", DAMAGED_1)
def test_a_damaged_manifest_of_version_1_is_named(tmp_path, ngram_model, message):
    write(tmp_path, ngram_model)
    as_version_1(tmp_path)
    check_damaged(tmp_path, DAMAGED_1[message], message)


def test_a_damaged_entry_is_named(tmp_path, ngram_model):
    output = write(tmp_path, ngram_model)
    for values in ([], {"name": "a"}, "entry"):
        output.write("entries/a.json", json.dumps(values).encode())
        for read in (read_entries, lambda output: read_entry(output, "a")):
            with pytest.raises(PipelineError, match=f"{tmp_path}/entries/a.json: is damaged: "):
                read(output)


def test_workers_get_the_set_without_its_entries(tmp_path, ngram_model):
    write(tmp_path, ngram_model)
    shards = open_shards(str(tmp_path))
    assert len(shards.entries) == len(shards.shards.name) == 1  # which the set then holds
    alone = shards.without_entries()
    assert not {"entries", "shards"} & vars(alone).keys()
    alone = pickle.loads(pickle.dumps(alone))
    assert "sources" not in alone.manifest
    assert alone.patcher == PATCHER and alone.metadata_columns == ["meta"] and alone.has_entropies
    (batch,) = alone.checked_batches(shards.entries[0])
    assert batch.num_rows == 4


def test_verification_notices_wrong_summaries(tmp_path, ngram_model):
    output = write(tmp_path, ngram_model, summary=True)
    shards = open_shards(str(tmp_path))
    assert list(verify(shards)) == []
    (entry,) = shards.entries
    stored = output.read_json(entry.summary_path)
    for damaged, message in (
        (stored | {"scripts": {}}, "rows do not give what summaries/"),
        (stored | {"more": 1}, "rows do not give what summaries/"),
        ([], "summaries/000000-00000-00000.json cannot be read: "),
    ):
        output.write(entry.summary_path, json.dumps(damaged).encode())
        (problem,) = verify(shards)
        assert problem.startswith(f"{tmp_path}/shards/000000-00000-00000.arrow: {message}")
    output.remove(entry.summary_path)
    (problem,) = verify(shards)
    assert "summaries/000000-00000-00000.json cannot be read: " in problem


def test_a_shard_that_is_gone_or_cut_is_named(tmp_path, ngram_model):
    write(tmp_path, ngram_model)
    shard = next((tmp_path / "shards").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    (problem,) = verify(open_shards(str(tmp_path)))
    assert problem.startswith(f"{shard}: sha256 is ")
    shutil.rmtree(tmp_path / "shards")
    (problem,) = verify(open_shards(str(tmp_path)))
    assert problem.startswith(f"{shard}: cannot be read: ")


def test_a_set_of_many_parts(tmp_path, monkeypatch):
    """As one of some thousand shards: its tables are read in parts, of which few are kept."""
    monkeypatch.setattr("os.fsync", lambda file: None)
    monkeypatch.setattr("support.shard_sets.SHARDS_PER_PART", 3)
    monkeypatch.setattr(tables, "BATCHES_PER_PART", 4)
    monkeypatch.setattr(tables, "CACHED_PARTS", 2)
    texts = [str(i).encode() for i in range(44)]
    shards = write_shards(str(tmp_path), texts, per_batch=1, per_shard=2)
    parts = [shards.manifest[name]["parts"]["rows"] for name in ("entries", "batches")]
    assert parts == [[3] * 7 + [1], [4, 2] * 7 + [2]]
    for number in (0, 21, 5, 11, 21, 1, 0, 2, 20):
        for shard in (number, shards.entries[number]):
            found = [read_texts(batch) for batch in shards.shard_batches(shard)]
            assert found == [[text] for text in texts[2 * number : 2 * number + 2]]
    assert [document.text.encode() for document in shards] == texts and not list(verify(shards))
