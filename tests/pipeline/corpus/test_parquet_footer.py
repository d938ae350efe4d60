"""What the footer says of column chunks, and the pages that are found by it."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support import bombs
from support.bombs import Long
from support.mutations import valid_files

from pipeline.corpus.columnar import parquet_rows
from pipeline.corpus.headers import parquet_pages
from pipeline.corpus.headers.parquet_footer import OLD_HEADER_BYTES, Footer, leaves_of
from pipeline.errors import BadFileError

LIMIT = 1 << 20
CONTENT = b"\x01\0\0\0a"
"""A page of one string."""
COMPRESSED = zstandard.compress(CONTENT)


def rows(data: bytes) -> list:
    return [row for _, row in parquet_rows(io.BytesIO(data), ["text"], 0, None, LIMIT)]


def test_places_are_those_that_arrow_reads():
    seen = 0
    for _, data in valid_files()["Parquet"]:
        footer = Footer(io.BytesIO(data))
        metadata = footer.parquet.metadata
        leaves = leaves_of(metadata, metadata.schema.to_arrow_schema().names)
        for i in range(metadata.num_row_groups):
            places = footer.places(i, leaves)
            assert [place.leaf for place in places] == leaves
            for place in places:
                chunk = metadata.row_group(i).column(place.leaf.number)
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                assert place.start == start
                assert place.stop == start + chunk.total_compressed_size + OLD_HEADER_BYTES
                seen += 1
            assert footer.places(i, leaves[1:]) == places[1:]
    assert seen > 50


# pyarrow's RowGroupMetaData.column() ends the process on each of these: make fuzz found it.
DAMAGED = {
    "levels": ({"meta_too": {16: {3: [Long(1)] * 4}}}, "Definition level histogram size mismatch"),
    "encrypted": ({"chunk_too": {8: {2: {1: [b"text"]}}, 9: b"secret"}}, "it may be encrypted"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_metadata_of_a_column_rejects_the_file(kind):
    more, message = DAMAGED[kind]
    columns = [(bombs.TEXT, [bombs.page(COMPRESSED, len(CONTENT), 1)])]
    assert rows(bombs.parquet(columns, 1)) == [{"text": b"a"}]
    # The error of Arrow is one of those that read_split turns into one that names the file.
    with pytest.raises((BadFileError, OSError), match=message):
        rows(bombs.parquet(columns, 1, **more))


def test_a_row_group_that_lacks_a_column():
    data = bombs.parquet([(bombs.TEXT, [bombs.page(COMPRESSED, len(CONTENT), 1)])], 1)
    footer = Footer(io.BytesIO(data))
    (leaf,) = leaves_of(footer.parquet.metadata, ["text"])
    with pytest.raises(BadFileError, match="row group 0 lacks columns"):
        footer.places(0, [leaf, leaf._replace(number=1)])


def header(fields: dict, *, last: bytes = b"") -> bytes:
    """A page header; ``last`` are fields in its encoding, with numbers of their own."""
    return bombs.thrift(fields)[:-1] + last + b"\0"


ABOUT = {1: 1, 2: bombs.PLAIN, 3: bombs.RLE, 4: bombs.RLE}
PAGE = {1: 0, 2: len(CONTENT), 3: len(COMPRESSED), 5: ABOUT}
FIELD_3 = b"\x05\x06"
"""Type i32, number 3."""
DIFFERENT = {
    "truncated": (header(PAGE | {3: len(COMPRESSED) + (1 << 32)}), "a number of more than 32 bits"),
    "twice": (
        header(PAGE | {3: 99}, last=FIELD_3 + bombs.zigzag(len(COMPRESSED))),
        "field 3 twice",
    ),
    "number": (
        header(PAGE | {3: 99}, last=b"\x05" + bombs.zigzag(65_539) + bombs.zigzag(len(COMPRESSED))),
        "a number of more than 16 bits",
    ),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_headers_that_arrow_reads_otherwise_are_rejected(kind):
    """The watch must not look for the next page elsewhere than Arrow."""
    page, message = DIFFERENT[kind]
    data = bombs.parquet([(bombs.TEXT, [page + COMPRESSED])], 1)
    assert pq.ParquetFile(io.BytesIO(data)).read()["text"].to_pylist() == ["a"]
    with pytest.raises(BadFileError, match=message):
        rows(data)


def test_what_a_page_of_another_type_would_have_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(parquet_pages, "MOST_PAGE_VALUES", 2)
    table = pa.table({"text": pa.array(["a", "b", "c"])})
    for version in ("1.0", "2.0"):
        sink = io.BytesIO()
        pq.write_table(table, sink, data_page_version=version, use_dictionary=False)
        with pytest.raises(BadFileError, match=r"states 3 values \(2 at most\)"):
            rows(sink.getvalue())
    second = {1: 3, 2: 0, 3: 3, 4: bombs.PLAIN, 5: 0, 6: 0, 7: False}
    content = CONTENT * 3
    page = {1: 3, 2: len(content), 3: len(content), 5: ABOUT, 8: second}
    data = bombs.parquet([(bombs.TEXT, [bombs.thrift(page) + content])], 3)
    assert pq.ParquetFile(io.BytesIO(data)).read()["text"].to_pylist() == ["a"] * 3
    with pytest.raises(BadFileError, match=r"states 3 values \(2 at most\)"):
        rows(data)
