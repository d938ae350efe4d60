"""The table of formats: an entry in it is all that a new format takes."""

import io
from collections.abc import Iterator, Sequence
from typing import get_args

import pytest

from pipeline.corpus.documents import Columns, Document, Reject, read_split
from pipeline.corpus.formats import (
    FORMAT_TITLES,
    FORMATS,
    FormatName,
    file_format,
    input_suffixes,
    known_format,
)
from pipeline.corpus.input_format import Cut, InputFormat, Part, Record
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.named import find_corpus
from pipeline.corpus.splits import plan_file
from pipeline.errors import BadFileError, ConfigError
from pipeline.storage.listing import InputFile
from pipeline.storage.places import open_input


class TabbedText(InputFormat):
    """Lines of an id, a tab and a text; two lines per split."""

    name, title, endings = "tabbed", "tabbed text", (".tsvtext",)

    def cut(self, file: InputFile, split_bytes: int) -> Cut:
        with open_input(file.url) as raw:
            lines = len(raw.read().splitlines())
        return Cut([Part(i, min(i + 2, lines), 8) for i in range(0, lines, 2)], ["id", "text"])

    def records(
        self,
        file: io.BufferedIOBase,
        start: int,
        stop: int | None,
        columns: Sequence[str],
        max_document_bytes: int,
    ) -> Iterator[Record]:
        for number, line in enumerate(file.read().splitlines()[start:stop], start):
            key, tab, text = line.partition(b"\t")
            yield str(number), {"id": key, "text": text} if tab else "there is no tab in the line"


@pytest.fixture
def with_tabbed_text(monkeypatch):
    monkeypatch.setitem(FORMATS, "tabbed", TabbedText())


def test_a_format_is_one_entry_in_the_table(tmp_path, with_tabbed_text):
    (tmp_path / "a.tsvtext").write_bytes(b"x\tfirst\nno\ny\tthird\nz\t\xff\nz\tlast\n")
    (tmp_path / "b.other").write_bytes(b"x\tnot found")
    (file,) = find_inputs([str(tmp_path)]).files
    assert file_format(file, "auto") == "tabbed"
    splits, columns = plan_file(file, "tabbed", 1)[:2]
    assert columns == ["id", "text"]
    assert [(split.index, split.start, split.stop) for split in splits] == [
        (0, 0, 2),
        (1, 2, 4),
        (2, 4, 5),
    ]
    records = [r for split in splits for r in read_split(split, Columns("text", "id"), 100)]
    assert records == [
        Document("0", "x", b"first", ()),
        Reject("1", "there is no tab in the line"),
        Document("2", "y", b"third", ()),
        Reject("3", "'text' is not valid UTF-8: invalid start byte at byte 0"),
        Document("4", "z", b"last", ()),
    ]
    assert "*.tsvtext.zst" in find_corpus("some/dataset").files


def test_a_format_need_not_cut_its_files_nor_read_their_names(tmp_path, monkeypatch):
    class Broken(TabbedText):
        def cut(self, file: InputFile, split_bytes: int) -> Cut:
            raise ValueError("not now")

        def records(self, *_: object) -> Iterator[Record]:
            raise BadFileError("nothing of the kind")

    monkeypatch.setitem(FORMATS, "tabbed", Broken())
    (tmp_path / "a.tsvtext").write_bytes(b"x\ty")
    (file,) = find_inputs([str(tmp_path)]).files
    ((split,), columns) = plan_file(file, "tabbed", 1)
    assert (split.start, split.stop, split.size, columns) == (0, None, 3, None)
    with pytest.raises(BadFileError, match="nothing of the kind"):
        list(read_split(split, Columns(), 100))


def test_flags_and_help_follow_the_table():
    names = ("auto", "parquet", "jsonl", "arrow", "csv", "tsv", "text")
    assert get_args(FormatName) == ("auto", *FORMATS) == names
    assert FORMAT_TITLES == "Parquet, JSONL, Arrow, CSV, TSV or text"


def test_no_two_formats_share_a_name_or_an_ending():
    assert all(name == form.name for name, form in FORMATS.items())
    suffixes = input_suffixes()
    assert len(set(suffixes)) == len(suffixes)
    assert not [(a, b) for a in suffixes for b in suffixes if a != b and a.endswith(b)]


def test_a_name_that_tells_no_format_needs_the_flag():
    file = InputFile("s3://bucket/data", "data", 1, "")
    assert known_format(file, "jsonl", "--input-format") == "jsonl"
    message = r"^--input-format: cannot tell what s3://bucket/data holds from its name$"
    with pytest.raises(ConfigError, match=message):
        known_format(file, "auto", "--input-format")
