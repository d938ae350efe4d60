"""Readers: every format, split or not, gives the same documents; broken input is told, not lost."""

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.documents import Columns, Document, Reject, check_columns, read_split
from pipeline.corpus.formats import file_format
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.json_lines import FIRST_LINES
from pipeline.corpus.lines import read_lines
from pipeline.corpus.splits import plan_file
from pipeline.errors import BadFileError, ConfigError, UnreachableFileError
from pipeline.storage.listing import InputFile

TEXTS = [f"document {i} é\n" * (i % 7) for i in range(300)]


def input_file(path: Path) -> InputFile:
    (file,) = find_inputs([str(path)]).files
    return file


def read(path: Path, split_bytes=1 << 20, columns=Columns(), most=1 << 20, kind="auto"):  # noqa: B008
    file = input_file(path)
    found = file_format(file, kind)
    assert found is not None
    plan = plan_file(file, found, split_bytes)
    assert [split.index for split in plan.splits] == list(range(len(plan.splits)))
    return [record for split in plan.splits for record in read_split(split, columns, most)]


def texts(records) -> list[str]:
    assert all(isinstance(record, Document) for record in records)
    return [record.text.decode() for record in records]


def jsonl(documents=TEXTS) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in documents)


def write(path: Path) -> Path:
    """TEXTS in the format that the name tells."""
    table = pa.table({"text": TEXTS, "other": range(len(TEXTS))})
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=37)
    elif path.name == "file.arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=41)
    elif path.name == "stream.arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=41)
    elif compress:
        # Two members after one another, as concatenated files have.
        path.write_bytes(compress(jsonl(TEXTS[:100])) + compress(jsonl(TEXTS[100:])))
    else:
        path.write_bytes(jsonl())
    return path


NAMES = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split_bytes", [100, 3000, 1 << 20])
def test_every_format_gives_the_documents_in_order(tmp_path, name, split_bytes):
    records = read(write(tmp_path / name), split_bytes)
    assert texts(records) == TEXTS
    assert len({record.sample_id for record in records}) == len(TEXTS)


def test_large_files_are_split(tmp_path):
    for name in ("a.jsonl", "a.parquet", "file.arrow"):
        file = input_file(write(tmp_path / name))
        kind = file_format(file, "auto")
        assert len(plan_file(file, kind, 3000).splits) > 3


@given(
    lines=st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=12),
    split_bytes=st.integers(1, 60),
    last_newline=st.booleans(),
)
def test_byte_ranges_share_no_line_and_lose_none(
    tmp_path_factory, lines, split_bytes, last_newline
):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    data = jsonl(lines)
    path.write_bytes(data if last_newline else data.rstrip(b"\n"))
    records = read(path, split_bytes)
    assert texts(records) == lines
    for record in records:  # a position is the offset of the line
        line = data[int(record.position) :].split(b"\n")[0]
        assert json.loads(line)["text"] == record.text.decode()


def test_the_examples_of_ranges_in_the_descriptions(tmp_path):
    lines = b"ab\ncde\nf\n"
    for ranges, expected in (
        ([(0, 4), (4, 8)], [[0, 3], [7]]),
        ([(0, 3), (3, 8)], [[0], [3, 7]]),
    ):
        for (start, stop), offsets in zip(ranges, expected, strict=True):
            assert [at for at, _ in read_lines(io.BytesIO(lines), start, stop, 99)] == offsets
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"text": "%027d"}\n' % i for i in range(3)))
    assert path.stat().st_size == 120
    splits = plan_file(input_file(path), "jsonl", 50).splits
    assert [(split.start, split.stop) for split in splits] == [(0, 50), (50, 100), (100, 120)]
    positions = [[r.position for r in read_split(split, Columns(), 99)] for split in splits]
    assert positions == [["0", "40"], ["80"], []]


def test_text_files_are_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("é\nb")
    assert texts(read(path)) == ["é\nb"]
    path.write_bytes(b"")
    assert texts(read(path)) == [""]


def test_ids_and_metadata(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "n": 7, "url": "u"}\n{"text": "b", "n": null, "url": {"k": [1]}}\n'
    )
    first, second = read(path, columns=Columns("text", "n", ("url",)))
    assert (first.sample_id, first.metadata) == ("7", ("u",))
    assert isinstance(second, Reject) and second.reason == "'n' is null"
    assert read(path)[1].sample_id == "a.jsonl#34"
    assert read(path, columns=Columns("text", None, ("url",)))[1].metadata == ('{"k": [1]}',)


def test_marks_and_ends_of_lines_as_other_systems_write_them(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl().replace(b"\n", b"\r\n"))
    assert texts(read(tmp_path / "a.jsonl", 3000)) == TEXTS
    assert plan_file(input_file(tmp_path / "a.jsonl"), "jsonl", 3000).columns == ["text"]


def test_a_field_need_not_be_in_every_record(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"other": 1}\nnothing\n[1]\n{"text": "a"}\n{"text": "b", "url": "u"}\n')
    assert plan_file(input_file(path), "jsonl", 1 << 20).columns == ["other", "text", "url"]
    records = read(path, columns=Columns(metadata=("url",)))
    assert [r.reason[:9] for r in records if isinstance(r, Reject)] == [
        "no field ",
        "line is n",
        "line is n",
    ]
    assert [r.metadata for r in records if isinstance(r, Document)] == [(None,), ("u",)]


def test_values_that_json_does_not_have_are_plain_strings(tmp_path):
    day, price = datetime.date(2024, 1, 2), decimal.Decimal("1.50")
    table = pa.table({"text": ["a"], "day": [day], "price": [price], "all": [{"k": [day, None]}]})
    pq.write_table(table, tmp_path / "a.parquet")
    (record,) = read(tmp_path / "a.parquet", columns=Columns("text", "day", ("price", "all")))
    assert (record.sample_id, *record.metadata) == (
        "2024-01-02",
        "1.50",
        '{"k": ["2024-01-02", null]}',
    )


def test_ids_and_metadata_that_are_not_unicode_can_be_stored(tmp_path):
    """JSON can escape half of a surrogate pair, which no string of UTF-8 can hold."""
    path = tmp_path / "a.jsonl"
    lines = [
        {"text": "a", "id": "\ud800", "url": "é"},
        {"text": "b", "id": "b", "url": "x\udfff"},
        {"text": "c", "id": "c", "url": ["\ud800"]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    records = read(path, columns=Columns("text", "id", ("url",)))
    assert [(record.sample_id, record.metadata) for record in records] == [
        ("?", ("é",)),
        ("b", ("x?",)),
        ("c", ('["?"]',)),
    ]
    broken = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"text": ["a"], "id": broken}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", columns=Columns("text", "id"))[0].sample_id == "\ufffd"


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_lists_of_strings_and_bytes_are_json(tmp_path, form):
    table = pa.table(
        {
            "text": ["a"],
            "id": pa.array([b"\xfe\xff"], pa.binary(2)),
            "tags": [["é", "b"]],
            "all": [{"k": ["x", None], "digest": b"\xff"}],
            "map": pa.array([[("k", ["v"])]], pa.map_(pa.string(), pa.list_(pa.string()))),
        }
    )
    path = tmp_path / f"a.{form}"
    if form == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    (record,) = read(path, columns=Columns("text", "id", ("tags", "all", "map")))
    assert record.sample_id == "feff"
    assert record.metadata == (
        '["é", "b"]',
        '{"digest": "ff", "k": ["x", null]}',
        '[["k", ["v"]]]',
    )


POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_no_data(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(BadFileError, match=r"is a pointer of Git LFS .* run git lfs pull"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".zst", zstandard.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
    ],
)
def test_a_compressed_file_whose_name_does_not_say_so_is_no_text(tmp_path, name, ending, compress):
    """Its lines were rejected one by one, and the job had done everything. It is told once, however
    long the file is."""
    for content in (jsonl(), b""):
        (tmp_path / name).write_bytes(compress(content))
        with pytest.raises(BadFileError, match=rf"is compressed, .* let it end in \{ending}$"):
            read(tmp_path / name, split_bytes=50)
    (tmp_path / "b.txt").write_bytes(b"BZh9 is how bzip2 begins")
    assert texts(read(tmp_path / "b.txt")) == ["BZh9 is how bzip2 begins"]


STRINGS = {
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "binary_view": pa.binary_view(),
}


@pytest.mark.parametrize("kind", STRINGS)
@pytest.mark.parametrize("opened", [pa.ipc.new_file, pa.ipc.new_stream])
def test_every_kind_of_string_column(tmp_path, kind, opened):
    # The text is not the first column, and the others are of no interest.
    table = pa.table({"n": range(300), "text": pa.array(TEXTS).cast(STRINGS[kind])})
    with opened(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=41)
    assert texts(read(tmp_path / "a.arrow", 100)) == TEXTS
    assert read(tmp_path / "a.arrow", columns=Columns("text", "n"))[299].sample_id == "299"


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", None])
@pytest.mark.parametrize("empty", [0, 1500])
def test_lists_of_strings_however_parquet_stores_them(tmp_path, encoding, empty):
    """Arrow makes no dictionary of either delta encoding, and 1,024 rows may hold no string."""
    tags = [[]] * empty + [["a", "ab"], None, ["abc", None]]
    table = pa.table({"text": ["x"] * len(tags), "tags": tags})
    place = {"tags.list.element": encoding} if encoding else None
    pq.write_table(
        table, tmp_path / "a.parquet", use_dictionary=not encoding, column_encoding=place
    )
    found = read(tmp_path / "a.parquet", columns=Columns(metadata=("tags",)))
    told = [record.metadata for record in found]
    assert told[empty:] == [('["a", "ab"]',), (None,), ('["abc", null]',)]
    assert set(told[:empty]) <= {("[]",)}


BAD_LINES = {
    b'{"text": "a"': "line is not valid JSON",
    b'{"text": "\xff"}': "line is not valid UTF-8: invalid start byte at byte 10",
    b'{"text": "\\ud800"}': "'text' holds a lone surrogate",
    b'{"body": "a"}': "no field 'text'",
    b'{"text": null}': "'text' is null",
    b'{"text": 5}': "'text' is int, not a string",
    b"[1]": "line is not a JSON object",
    b"[" * 100_000: "line is not valid JSON",
    b'{"text": "' + b"a" * 600 + b'"}': "longer than 500 bytes (--max-document-bytes)",
    b'{"text": "' + b"a" * (5 << 20) + b'"}': "line of more than",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: BAD_LINES[line][:30])
def test_a_bad_line_is_rejected_alone(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "before"}\n' + line + b"\n\n" + b'{"text": "after"}\n')
    before, bad, after = read(path, most=500)
    assert (before.text, after.text) == (b"before", b"after")
    assert isinstance(bad, Reject) and bad.reason.startswith(BAD_LINES[line])
    assert bad.position == "19"


@pytest.mark.parametrize("begin", [b"[", b"\n [\n", b"\xef\xbb\xbf[\r\n"])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst"])
def test_a_json_array_is_told_and_not_taken_in_part(tmp_path, name, begin):
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(name[6:], bytes)
    (tmp_path / name).write_bytes(compress(begin + b'{"text": "a"},\n{"text": "b"}\n]\n'))
    with pytest.raises(BadFileError, match=r"is a JSON array and not JSONL: .* as jq -c '.\[\]'"):
        read(tmp_path / name)


def test_bad_values_in_columns_are_rejected_alone(tmp_path):
    # Arrow does not check that strings are UTF-8.
    broken = pa.array([b"a", b"\xff", None, b"b"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": broken}), tmp_path / "a.parquet")
    a, invalid, null, b = read(tmp_path / "a.parquet")
    assert (a.text, b.text) == (b"a", b"b")
    assert "not valid UTF-8" in invalid.reason and invalid.position == "1"
    assert null.reason == "'text' is null"


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_of_a_truncated_file_the_good_part_is_kept(tmp_path, name):
    path = write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-20])
    file = input_file(path)
    found = []
    with pytest.raises(BadFileError, match="truncated or corrupt"):
        for record in read_split(plan_file(file, "jsonl", 1).splits[0], Columns(), 1 << 20):
            found.append(record)
    assert len(found) >= 100
    assert texts(found) == TEXTS[: len(found)]


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("content", [b"", b"x", b"PAR1 ARROW1 nothing of the kind" * 10])
def test_garbage_is_a_bad_file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    is_empty = not content and name in ("a.jsonl.gz", "a.jsonl.zst")
    with pytest.raises(BadFileError, match="is empty" if is_empty else "truncated or corrupt"):
        read(path)


def ipc(opened, *texts):
    with opened(sink := pa.BufferOutputStream(), pa.schema({"text": pa.string()})) as writer:
        for text in texts:
            writer.write(pa.record_batch({"text": [text]}))
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("more", [("c",), ()])
def test_arrow_files_that_were_put_one_behind_the_other_are_told(tmp_path, more):
    # As `cat` does. Readers of Arrow see the first stream, or in the first file what the last
    # footer says, and nothing else.
    path = tmp_path / "a.arrow"
    path.write_bytes(ipc(pa.ipc.new_stream, "a", "b") + ipc(pa.ipc.new_stream, *more))
    with pytest.raises(BadFileError, match=r"^\d+ bytes follow the end of the stream and are not"):
        read(path)
    path.write_bytes(ipc(pa.ipc.new_file, "a", "b") + ipc(pa.ipc.new_file, *more))
    with pytest.raises(BadFileError, match="footer belong to no record batch that it lists: if"):
        read(path)
    path.write_bytes(ipc(pa.ipc.new_file))
    assert read(path) == []


def test_wrong_columns_are_told_with_those_there_are(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(BadFileError, match="no column 'text'; there are body, n"):
        read(tmp_path / "a.parquet")
    with pytest.raises(BadFileError, match="column 'n' is int64, not a string"):
        read(tmp_path / "a.parquet", columns=Columns("n"))
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(BadFileError, match="more than one column 'text'"):
        read(tmp_path / "a.parquet")


def test_a_missing_file_is_not_a_bad_one(tmp_path):
    path = write(tmp_path / "a.jsonl")
    split = plan_file(input_file(path), "jsonl", 1 << 20).splits[0]
    path.unlink()
    with pytest.raises(UnreachableFileError, match="No such file"):
        list(read_split(split, Columns(), 1 << 20))


def test_a_column_that_no_file_has_is_named(tmp_path):
    for name, content in (("a.jsonl", b'{"text": "a", "lang": "en"}\n'), ("b.txt", b"b")):
        (tmp_path / name).write_bytes(content)
    plans = [
        plan_file(input_file(tmp_path / name), form, 1 << 20)
        for name, form in (("a.jsonl", "jsonl"), ("b.txt", "text"))
    ]
    check_columns(plans, Columns(metadata=("lang",)))
    check_columns(plans, Columns("lang"))
    check_columns(plans[1:], Columns())
    with pytest.raises(ConfigError, match="--text-column: files of the format text are one text"):
        check_columns(plans[1:], Columns("lang"))
    with pytest.raises(ConfigError, match="--by: no input file has a column 'lang'; there are: te"):
        check_columns(plans[1:], Columns(metadata=("lang",)), "--by")
    with pytest.raises(ConfigError, match=rf"lang \(of JSONL, in the first {FIRST_LINES} records"):
        check_columns(plans[:1], Columns(metadata=("late",)))
    (tmp_path / "c.parquet").write_bytes(b"damaged: reading it says so")
    unknown = plan_file(input_file(tmp_path / "c.parquet"), "parquet", 1 << 20)
    with pytest.raises(ConfigError, match="--id-column: no input file has a column 'uuid'"):
        check_columns([*plans, unknown], Columns(id="uuid"))
    check_columns([unknown], Columns(id="uuid"))
