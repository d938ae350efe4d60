"""Prepared corpora as input: their chunks are found, and what is not one is named in a sentence."""

import json
import re
from pathlib import Path

import pytest

from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.prepared import prepared_chunks, read_prepared_manifest
from pipeline.errors import ConfigError, PipelineError
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.output import OutputDirectory

NONE = DocumentStatistics().to_json()
CHUNK = {"documents": NONE, "duplicates": NONE, "file_bytes": 1, "sha256": "a" * 64}
SOURCE = {"name": "a.txt", "url": "/a.txt", "bytes": 1, "version": "1", "documents": NONE}
GOOD = {
    "format_version": 1,
    "stage": "prepare",
    "configuration": {"seed": 0},
    "columns": {"text": "text", "id": None, "metadata": []},
    "counts": dict.fromkeys(("records", "rejects", "duplicates", "validation", "chunks"), 0),
    "statistics": NONE,
    "sources": [SOURCE | {"rejects": 0, "error": None}],
    "validation": CHUNK | {"name": "c.val.parquet"},
    "chunks": [CHUNK | {"name": f"c.chunk.0{i}.parquet"} for i in range(2)],
}
RECORD = {"stage": "prepare"}


def write(directory: Path, manifest: object = None, record: object = None) -> str:
    for name, value in (("manifest.json", manifest), ("run.json", record)):
        if value is not None:
            (directory / name).write_text(json.dumps(value))
    return str(directory)


@pytest.mark.parametrize("changes", [{}, {"validation": None}, {"of another release": [1]}])
def test_chunks_are_found_without_the_validation_set(tmp_path, changes):
    url = write(tmp_path, GOOD | changes, RECORD)
    assert list(prepared_chunks(url) or ()) == [
        f"{tmp_path}/c.chunk.0{i}.parquet" for i in range(2)
    ]
    assert read_prepared_manifest(OutputDirectory(url)) == GOOD | changes


BAD = {
    "it is [], not an object": [],
    "it has no 'format_version'": {},
    "its stage is 'export', not 'prepare'": GOOD | {"stage": "export"},
    "chunks[0] is 'c.chunk.00.parquet', not an object": GOOD | {"chunks": ["c.chunk.00.parquet"]},
    "chunks[1] has no 'name'": GOOD | {"chunks": [GOOD["chunks"][0], CHUNK]},
    "chunks[0].name is 5, not a string": GOOD | {"chunks": [CHUNK | {"name": 5}]},
    "chunks is {}, not a list": GOOD | {"chunks": {}},
    "counts.rejects is None, not an integer": GOOD | {"counts": GOOD["counts"] | {"rejects": None}},
    "counts.records is True, not an integer": GOOD | {"counts": GOOD["counts"] | {"records": True}},
    "validation is 0, not an object": GOOD | {"validation": 0},
    "sources[0].error is 1, not a string": GOOD | {"sources": [GOOD["sources"][0] | {"error": 1}]},
}


@pytest.mark.parametrize("problem", BAD)
def test_a_manifest_that_is_none_is_named(tmp_path, problem):
    """Here the record, or the manifest itself, says that the directory is a prepared corpus."""
    url = write(tmp_path, BAD[problem], RECORD)
    sentence = re.escape(
        f"{tmp_path}/manifest.json: is not the manifest of a prepared corpus: {problem}; restore "
        "it, or prepare the corpus anew with --overwrite"
    )
    with pytest.raises(PipelineError, match=f"^{sentence}$"):
        read_prepared_manifest(OutputDirectory(url))
    with pytest.raises(ConfigError, match=f"^--input {sentence}$"):
        prepared_chunks(url)


def test_what_is_no_prepared_corpus_is_left_to_others(tmp_path):
    assert prepared_chunks(str(tmp_path / "missing")) is None
    assert prepared_chunks(write(tmp_path)) is None
    for value in ([], {}, [GOOD], GOOD | {"stage": "export"}, "text"):
        assert prepared_chunks(write(tmp_path, value)) is None
        assert prepared_chunks(write(tmp_path, value, value)) is None


def test_half_a_corpus_and_damaged_files_are_told(tmp_path):
    with pytest.raises(ConfigError, match="this corpus is not prepared to its end; run its"):
        prepared_chunks(write(tmp_path, None, RECORD))
    (tmp_path / "manifest.json").write_text('{"stage": "prep')
    with pytest.raises(ConfigError, match=r"--input .*/manifest\.json: is damaged: "):
        prepared_chunks(str(tmp_path))


def test_a_chunk_that_is_gone_or_has_another_size_is_named(tmp_path):
    url = write(tmp_path, GOOD, RECORD)
    for i in range(2):
        (tmp_path / f"c.chunk.0{i}.parquet").write_bytes(b"x")
    inputs = find_inputs([url])
    assert inputs.hashes == {file.url: "a" * 64 for file in inputs.files} and len(inputs.files) == 2
    (tmp_path / "c.chunk.01.parquet").write_bytes(b"xx")
    with pytest.raises(ConfigError, match=r"c.chunk.01.parquet: has 2 bytes; 1 bytes were written"):
        find_inputs([url])
    (tmp_path / "c.chunk.01.parquet").unlink()
    with pytest.raises(ConfigError, match=r"c.chunk.01.parquet: is gone; 1 bytes were written"):
        find_inputs([url])
