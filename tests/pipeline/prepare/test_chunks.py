"""Chunks as others read them: plain columns of strings in Parquet, lines of JSON."""

import json
import random
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.prepare import chunks
from pipeline.prepare.chunks import chunk_names, chunk_writer, validation_name
from pipeline.prepare.sorted_runs import run_schema

ODD = ["", "\0", "é😀\u2028", '"\\\n\r\t', "\ufeff bom", "\uffff", " ", "a" * 100_000]
METADATA = ("url", "n")


def batch(texts: list[str]) -> pa.RecordBatch:
    """As runs have them."""
    numbers = range(len(texts))
    ids = [f"é#{i}" for i in numbers]
    urls = [None if i % 3 else f"u{i}" for i in numbers]
    columns = [
        [*numbers],
        [*numbers],
        [text.encode() for text in texts],
        ids,
        urls,
        ["1"] * len(ids),
    ]
    schema = run_schema(METADATA)
    arrays = [pa.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def write(path: Path, parts: list[list[str]]) -> list[dict]:
    """A chunk; gives the rows that it ought to hold."""
    rows = []
    with chunk_writer(path, path.suffix[1:], METADATA) as write_rows:
        for texts in parts:
            part = batch(texts)
            write_rows(part)
            found = part.drop_columns(["key", "place", "text"]).to_pylist()
            rows += [row | {"text": text} for row, text in zip(found, texts, strict=True)]
    return rows


@pytest.mark.parametrize("parts", [[ODD], [ODD, [], ODD[::-1]], [], [[]]])
def test_parquet_chunks_are_plain_strings_to_everybody(tmp_path, parts):
    path = tmp_path / "c.chunk.00.parquet"
    rows = write(path, parts)
    assert pq.read_table(path).to_pylist() == rows
    schema = pq.read_schema(path)
    assert schema.names == ["sample_id", "text", "url", "n"]
    assert set(schema.types) == {pa.string()} and schema.metadata is None
    table = pq.ParquetFile(path)
    kinds = [table.schema.column(i) for i in range(4)]
    assert {str(kind.logical_type) for kind in kinds} == {"String"}
    groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
    assert {group.column(i).compression for group in groups for i in range(4)} <= {"ZSTD"}
    assert all(group.column(1).statistics is None for group in groups)  # would be whole texts


def test_datasets_read_parquet_chunks_and_lines(tmp_path):
    for kind in ("parquet", "jsonl"):
        first = write(tmp_path / f"c.chunk.00.{kind}", [ODD])
        more = write(tmp_path / f"c.chunk.01.{kind}", [["x"]])
        loaded = datasets.load_dataset(
            "json" if kind == "jsonl" else kind,
            data_files=sorted(map(str, tmp_path.glob(f"*.{kind}"))),
            cache_dir=str(tmp_path / "cache"),
        )["train"]
        assert loaded.to_list() == first + more
        strings = {name: datasets.Value("string") for name in loaded.column_names}
        assert loaded.features == strings


@pytest.mark.parametrize("parts", [[ODD], [ODD, [], ["x"] * 1000], []])
def test_lines_are_json_whatever_the_text(tmp_path, parts):
    path = tmp_path / "c.chunk.00.jsonl"
    rows = write(path, parts)
    data = path.read_bytes()
    assert [json.loads(line) for line in data.split(b"\n")[:-1]] == rows
    assert not data or data.endswith(b"\n")
    assert all(
        list(json.loads(line)) == ["sample_id", "text", *METADATA] for line in data.splitlines()
    )


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    """They are what a reader holds; many small batches, and few large ones, make the same."""
    monkeypatch.setattr(chunks, "ROW_GROUP_BYTES", 100_000)
    random_ = random.Random(0)
    texts = ["x" * random_.randint(0, 2000) for _ in range(1500)]
    for parts in ([texts], [[text] for text in texts], [texts[:7], texts[7:900], texts[900:]]):
        path = tmp_path / "c.chunk.00.parquet"
        assert len(write(path, parts)) == 1500
        metadata = pq.read_metadata(path)
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        starts = [sum(rows[:i]) for i in range(len(rows))]
        sizes = [sum(map(len, texts[a : a + n])) for a, n in zip(starts, rows, strict=True)]
        assert max(sizes) < 140_000
        assert sum(sizes) / len(sizes) > 40_000  # nor are they crumbs
    file_sizes = set()
    with chunk_writer(path, "parquet", METADATA) as write_rows:
        for text in texts[:700]:
            write_rows(batch([text]))
            file_sizes.add(path.stat().st_size)
    assert len(file_sizes) > 5  # groups are written as they fill, not held until the end


def test_names_are_those_of_the_published_recipe():
    assert chunk_names("dclm", "jsonl", 2) == ["dclm.chunk.00.jsonl", "dclm.chunk.01.jsonl"]
    assert validation_name("dclm", "jsonl") == "dclm.val.jsonl"
    assert chunk_names("c", "parquet", 1001)[7] == "c.chunk.0007.parquet"
