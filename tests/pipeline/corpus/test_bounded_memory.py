"""A file of a few kilobytes takes no more memory than docs/memory.md says, and seconds at most."""

import io
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support import bombs

from pipeline.corpus.columnar import arrow_rows, parquet_rows
from pipeline.corpus.headers import parquet_pages
from pipeline.corpus.headers.limits import most_bytes, reading_bytes
from pipeline.corpus.headers.parquet_footer import Footer, leaves_of
from pipeline.corpus.lines import open_decompressed, read_lines
from pipeline.corpus.row_bytes import BEYOND, row_bytes
from pipeline.errors import BadFileError

ROOT = Path(__file__).parents[3]
MB = 1 << 20
SECONDS = 30
"""Of the processor: a few, on a machine that does nothing else."""
OUTCOMES = {
    "newlines.jsonl.zst": "1 documents",
    "blank.jsonl.zst": "1 documents",
    "newlines.jsonl.bz2": "0 documents",
    "newlines.jsonl.xz": "0 documents",
    "members.jsonl.gz": "1 documents",
    "frames.jsonl.zst": "1 documents",
    "empty.jsonl.zst": "100000 documents",
    "ids.jsonl.zst": "documents",
    "names.jsonl.zst": "no field 'text'",
    "fraction.jsonl.zst": "1 documents",
    "endless.jsonl.zst": "line of more than 205520896 bytes",
    "endless.jsonl.gz": "line of more than 205520896 bytes",
    "long.jsonl.zst": "longer than 67108864 bytes",
    "lists.jsonl.zst": "line holds more than 8,388,608 values",
    "deep.jsonl.zst": "line holds more than 8,388,608 values",
    "integer.jsonl.zst": "line is not valid JSON",
    "window.jsonl.zst": "has a zstd window of more than 1,073,741,824 bytes",
    "dictionary.jsonl.xz": "it has a dictionary of more than 1,073,741,824 bytes",
    "quote.csv.zst": "the next row has more than 142,606,336 bytes",
    "fields.csv.zst": "the next row has more than 8,388,608 fields",
    "header.csv.zst": "the next row has more than 8,388,608 fields",
    "quotes.csv.zst": "the next row has more than 8,388,608 fields",
    "newlines.csv.zst": "more than 4,194,304 empty lines",
    "endless.txt.zst": "longer than 67108864 bytes",
    "plain_page.parquet": "a page of column 'text', with its dictionary states 1,610,612,736 bytes",
    "dictionary_page.parquet": "with its dictionary states 1,610,612,736 bytes",
    "accepted_page.parquet": "1000 documents",
    "long_value.parquet": "longer than 67108864 bytes",
    "long_repeated.parquet": "longer than 67108864 bytes",
    "delta.parquet": "documents",
    "repeated.parquet": "documents",
    "repeated_id.parquet": "documents",
    "rows.parquet": "states 2,147,483,647 rows, in a file of ",
    "wide.parquet": "a batch of 1024 rows states 549,755,813,888 bytes",
    "deep.parquet": "columns of more than 100 groups within one another",
    "footer.parquet": "bytes) has too many parts",
    "list.parquet": "'id' holds more than 8,388,608 values",
    "lying_list.parquet": "a row of column 'id.list.element' states ",
    "fields.parquet": "1 documents",
    "buffer.arrow": "a record batch states 3,221,234,480 bytes",
    "lie.arrow": "a record batch states 1,099,511,636,784 bytes",
    "rows.arrow": "states 235,929,599 rows",
    "indices.arrow": "states 235,929,600 rows",
    "repeated.arrow": "documents",
    "runs.arrow": "documents",
    "views.arrow": "documents",
    "list_views.arrow": "'id' holds 268,435,520 bytes",
}


@pytest.mark.slow
def test_no_bomb_takes_more_memory_than_is_documented(tmp_path):
    paths = bombs.write_bombs(tmp_path)
    assert {path.name for path in paths} == OUTCOMES.keys()
    # One process for all of them: starting is most of the time. It ends at the first that kills it.
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "support.peak_memory", str(200 * MB)]
    given = "".join(f"{path}\n" for path in paths)
    done = subprocess.run(
        command, input=given, env=environment, capture_output=True, text=True, check=False
    )
    results = {line["file"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"after {[*results][-1:]}: {done.stderr}"
    bound = reading_bytes(64 * MB)
    for name, found in results.items():
        assert found["peak"] < bound, found
        assert found["seconds"] < SECONDS, found
        assert (tmp_path / name).stat().st_size < (7 if "footer" in name else 1) * MB
        told = f"{found['documents']} documents; {found['reason']}; {found['error']}"
        assert OUTCOMES[name] in told, found
        # Nothing vanishes: a file gives documents or says why not.
        assert found["documents"] or found["rejects"] or found["error"] or "newlines" in name
        assert not found["bug"], found["bug"]
    worst = max(results.values(), key=lambda found: found["peak"])
    assert worst["peak"] > 300 * MB, "the measurement misses what it measures"


def test_the_documented_bound_is_the_one_that_is_kept():
    text = (ROOT / "docs" / "memory.md").read_text()
    assert "3 GiB" in text and reading_bytes(64 * MB) == 3 << 30
    assert most_bytes(64 * MB) == 1 << 30 and most_bytes(1 << 30) == 2 << 30


def uneven_texts() -> list[str]:
    """Short ones, then a stretch of long ones, then short ones: no two equal."""
    long = [f"{i:06d}" * 5000 for i in range(120)]
    return [f"a{i}" for i in range(3000)] + long + [f"b{i}" for i in range(3000)]


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("buffer", [1 << 13, 1 << 20])
def test_batches_get_smaller_where_rows_are_long(
    tmp_path, monkeypatch, dictionary, version, buffer
):
    """Whatever the watch asks for, every row comes once, in order."""
    for name in ("WINDOW_BYTES", "REPEATED_BYTES"):
        monkeypatch.setattr(parquet_pages, name, 200_000)
    monkeypatch.setattr("pipeline.corpus.columnar.BUFFER_BYTES", buffer)
    monkeypatch.setattr("pipeline.corpus.columnar.READ_BYTES", 1 << 40)
    texts = uneven_texts()
    table = pa.table(
        {"n": range(len(texts)), "text": texts, "tag": ["x", "yy"] * (len(texts) // 2)}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(
        *(table, path),
        row_group_size=5000,
        use_dictionary=dictionary,
        data_page_size=30_000,
        data_page_version=version,
        write_batch_size=64,
    )
    with path.open("rb") as raw:
        rows = list(parquet_rows(raw, ["text", "n", "tag"], 0, None, MB))
    assert [row["text"].decode() for _, row in rows] == texts
    assert [row["n"] for _, row in rows] == list(range(len(texts)))
    assert [position for position, _ in rows] == [str(i) for i in range(len(texts))]


def test_a_watch_reduces_the_rows_of_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_pages, "WINDOW_BYTES", 200_000)
    texts = uneven_texts()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, use_dictionary=False, write_batch_size=64)
    with path.open("rb") as raw:
        watch = parquet_pages.PageWatch(raw, 1 << 30)
        footer = Footer(raw)
        metadata = footer.parquet.metadata
        leaves = leaves_of(metadata, ["text"])
        watch.begin(footer.places(0, leaves), 8192)
        file = pq.ParquetFile(watch, metadata=metadata, buffer_size=1 << 16, pre_buffer=False)
        with pytest.raises(Exception, match="batches have to be smaller"):
            list(file.iter_batches(8192))
    assert watch.fewer_rows and watch.rows < 1024 and not watch.problem


def test_texts_that_are_too_long_are_rejected_alone(tmp_path):
    texts = ["a", "b" * 5000, "c", "d" * 3000]
    for kind in (pa.string(), pa.dictionary(pa.int32(), pa.string())):
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), path)
        with path.open("rb") as raw:
            rows = [row for _, row in parquet_rows(raw, ["text"], 0, None, 4000)]
        # What is rejected here or where a document is made of it: in the job it is one reason.
        assert [len(row["text"]) for row in rows if isinstance(row, dict)] in (
            [1, 1, 3000],
            [1, 5000, 1, 3000],
        )


SIZES = {
    "strings": (pa.array(["a", None, "bcd"]), [65, 64, 67]),
    "views": (pa.array(["a", None, "b" * 20], pa.string_view()), [65, 64, 84]),
    "dictionary": (pa.array(["aa", "b", None, "aa"]).dictionary_encode(), [66, 65, 66, 66]),
    "lists of a dictionary": (
        pa.ListArray.from_arrays([0, 1, 1, 1], pa.array(["a", "bcd"]).dictionary_encode()),
        [129, 64, 64],  # its last rows alone hold no value of it
    ),
    "numbers": (pa.array([1, None]), [64, 64]),
    "fixed": (pa.array([b"abc"], pa.binary(3)), [67]),
    "lists": (pa.array([["a"], [], None, ["b", "cc"]]), [129, 64, 64, 195]),
    "numbers in lists": (pa.array([[1, 2], [3]]), [192, 128]),
    "fixed lists": (pa.array([["a", "b"]], pa.list_(pa.string(), 2)), [194]),
    "maps": (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())), [257]),
    "structs": (pa.array([{"a": "x"}, None]), [129, 128]),
    "list views": (
        pa.ListViewArray.from_arrays(pa.array([0, 0]), pa.array([2, 1]), pa.array(["a", "bb"])),
        [195, 129],
    ),
    "runs": (
        pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "bbb"])),
        [65, 65, 67],
    ),
}


@pytest.mark.parametrize("kind", SIZES)
def test_bytes_of_rows(kind):
    column, expected = SIZES[kind]
    assert row_bytes(column).tolist() == expected
    for start in range(len(column) + 1):  # as slices, too
        assert row_bytes(column.slice(start)).tolist() == expected[start:]


def test_a_row_of_too_many_values_is_beyond_all_bounds(monkeypatch):
    monkeypatch.setattr("pipeline.corpus.row_bytes.MOST_VALUES", 10)
    column = pa.array([["a"] * 11, ["b"], ["c"] * 5, ["d"] * 6])
    assert (row_bytes(column) == [BEYOND, 129, 64 + 5 * 65, 64 + 6 * 65]).all()
    assert row_bytes(pa.array(np.zeros(25))).tolist() == [64] * 25


@pytest.mark.parametrize("gap", ["\n\n", " \n\t\r\n", "\n" * 5000, " \r\n" * 400])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 50])
def test_blank_lines_change_no_offset(gap, start):
    data = f"{gap}ab{gap}c d \n{gap}\n  e".encode()
    naive, offset = [], 0
    for line in data.split(b"\n"):
        if line.strip() and offset >= start:
            naive.append((offset, line))
        offset += len(line) + 1
    assert list(read_lines(io.BytesIO(data), start, None, 99)) == naive
    stop = len(gap) + 4
    before = [(at, line) for at, line in naive if at < stop]
    assert list(read_lines(io.BytesIO(data), start, stop, 99)) == before


def test_what_follows_compressed_data_is_no_longer_ignored(tmp_path):
    import bz2
    import lzma

    for name, compress in (("a.bz2", bz2.compress), ("a.xz", lzma.compress)):
        whole = compress(b"ab") + compress(b"cd")
        assert open_decompressed(io.BytesIO(whole), name).read() == b"abcd"
        with pytest.raises((OSError, lzma.LZMAError)):
            open_decompressed(io.BytesIO(whole + b"garbage" * 10), name).read()
        with pytest.raises(EOFError):
            open_decompressed(io.BytesIO(whole[:-3]), name).read()
    padded = lzma.compress(b"ab") + bytes(8) + lzma.compress(b"cd") + bytes(4)
    assert open_decompressed(io.BytesIO(padded), "a.xz").read() == b"abcd"


def test_a_large_window_is_read_if_documents_may_be_large():
    frame = bombs.zstd_runs((b"{}\n", 1), window_log=31)
    limit = most_bytes(1 << 30)
    assert open_decompressed(io.BytesIO(frame), "a.zst", limit).read() == b"{}\n"
    frames = zstandard.compress(b"a") + zstandard.compress(b"b")
    assert open_decompressed(io.BytesIO(frames), "a.zst").read() == b"ab"


def shared_pairs(pairs: int, size: int) -> bytes:
    """A schema's message whose pairs of metadata all are one, with a long value."""
    metadata = {"long": "x" * size} | {f"key{i}": "" for i in range(pairs - 1)}
    message = bytearray(pa.schema([("text", pa.string())], metadata).serialize().to_pybytes())
    root = 8 + struct.unpack_from("<I", message, 8)[0]
    schema = _follow(message, root, 2)
    vector = _follow(message, schema, 2)
    (count,) = struct.unpack_from("<I", message, vector)
    assert count == pairs
    places = [vector + 4 + 4 * i for i in range(count)]
    targets = [at + struct.unpack_from("<I", message, at)[0] for at in places]
    long = max(targets, key=lambda at: struct.unpack_from("<I", message, _follow(message, at, 1)))
    assert long > places[-1]
    for at in places:
        struct.pack_into("<I", message, at, long - at)
    return bytes(message)


def _follow(message: bytearray, table: int, field: int) -> int:
    fields = table - struct.unpack_from("<i", message, table)[0]
    at = table + struct.unpack_from("<H", message, fields + 4 + 2 * field)[0]
    return at + struct.unpack_from("<I", message, at)[0]


def test_a_schema_that_refers_to_one_text_many_times(tmp_path):
    """Arrow makes as many copies as there are references: 100 KB here are 400 MB for it."""
    for pairs, is_read in ((100, True), (5000, False)):
        message = shared_pairs(pairs, 80_000)
        if is_read:
            stored = pa.ipc.read_schema(pa.py_buffer(message)).metadata
            assert len(stored[b"long"]) == 80_000  # it is such a schema to Arrow
        path = tmp_path / "a.arrow"
        path.write_bytes(message + b"\xff\xff\xff\xff\0\0\0\0")
        with path.open("rb") as raw:
            if is_read:
                assert list(arrow_rows(raw, ["text"], 0, None, MB)) == []
                continue
            with pytest.raises(BadFileError, match="names and metadata of more than 67,108,864"):
                list(arrow_rows(raw, ["text"], 0, None, MB))


@pytest.mark.parametrize("opened", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_schema_of_very_many_columns(tmp_path, monkeypatch, opened):
    kind = pa.struct([(f"f{i}", pa.int8()) for i in range(20)])
    schema = pa.schema([("text", pa.string()), ("more", kind)])
    path = tmp_path / "a.arrow"
    with opened(path, schema):
        pass
    with path.open("rb") as raw:
        assert list(arrow_rows(raw, ["text"], 0, None, MB)) == []
        monkeypatch.setattr("pipeline.corpus.headers.ipc_messages.MOST_FIELDS", 15)
        with pytest.raises(BadFileError, match="more than 15 columns"):
            list(arrow_rows(raw, ["text"], 0, None, MB))


@pytest.mark.parametrize("opened", [pa.ipc.new_file, pa.ipc.new_stream])
def test_dictionaries_of_a_file_count_together(tmp_path, monkeypatch, opened):
    schema = pa.schema([("text", pa.dictionary(pa.int32(), pa.string()))])
    path = tmp_path / "a.arrow"
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True, compression="zstd")
    with opened(path, schema, options=options) as writer:
        for count in range(1, 6):
            words = pa.array([f"{i}" * 1000 for i in range(count)])
            column = pa.DictionaryArray.from_arrays(pa.array([count - 1], pa.int32()), words)
            writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))
    with path.open("rb") as raw:
        assert len(list(arrow_rows(raw, ["text"], 0, None, MB))) == 5
        monkeypatch.setattr("pipeline.corpus.headers.limits.LEAST_LIMIT", 3000)
        with pytest.raises(BadFileError, match="a record batch, with dictionaries states 3,"):
            list(arrow_rows(raw, ["text"], 0, None, 1500))
