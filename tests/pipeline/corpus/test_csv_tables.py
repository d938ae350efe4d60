"""CSV and TSV files: quotes, line breaks, bytes that are no text, rows that do not fit."""

import gzip

import pytest

from pipeline.corpus.documents import Columns, Document, Reject, read_split
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.errors import BadFileError


def read(path, columns=Columns("text", "id", ("note",))):  # noqa: B008
    (file,) = find_inputs([str(path)]).files
    kind = "tsv" if ".tsv" in path.name else "csv"
    ((split,), names) = plan_file(file, kind, 1)
    return names, list(read_split(split, columns, 1000))


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.tsv", "a.csv.gz"])
def test_rows_become_documents(tmp_path, name):
    comma = "\t" if "tsv" in name else ","
    lines = [f"id{comma}text{comma}note", f'1{comma}"two\nlines ""quoted"""{comma}é', "", "2"]
    lines += [f"3{comma}{comma}", f"4{comma}x{comma}\udcff"]
    data = "\ufeff".encode() + "\r\n".join(lines).encode(errors="surrogateescape")
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    names, records = read(path)
    assert names == ["id", "text", "note"]
    assert records == [
        Document("0", "1", b'two\nlines "quoted"', ("é",)),
        Reject("1", "has 1 fields, and the first line names 3"),
        Document("2", "3", b"", ("",)),
        Document("3", "4", b"x", ("\ufffd",)),
    ]


def test_what_cannot_be_told_apart_into_rows_is_a_bad_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text\nok\n"no end\n' + "x" * 100)
    with pytest.raises(BadFileError, match="after row 0: unexpected end of data"):
        read(path, Columns())
    path.write_text('text,other\n"a" b,c\n')
    with pytest.raises(BadFileError, match="in the first row: ',' expected after '\"'"):
        read(path, Columns())
    path.write_text("")
    with pytest.raises(BadFileError, match="no column 'text'; there are none"):
        read(path, Columns())
    path.write_text("text,text\na,b\n")
    with pytest.raises(BadFileError, match="more than one column 'text'"):
        read(path, Columns())
