"""Ids of documents where nobody names their column."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.documents import Columns, Reject, read_split
from pipeline.corpus.ids import USUAL, Ids, left_behind
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import FilePlan, plan_file


def planned(directory: Path, files: dict[str, list[dict]]) -> list[FilePlan]:
    directory.mkdir(exist_ok=True)
    for name, records in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".arrow"):
            table = pa.Table.from_pylist(records)
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        else:
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    kinds = {".jsonl": "jsonl", ".arrow": "arrow", ".txt": "text"}
    found = find_inputs([str(directory)]).files
    return [plan_file(file, kinds[Path(file.name).suffix], 1 << 30) for file in found]


def test_the_order_is_that_of_the_published_preprocessing():
    assert USUAL[:7] == ("sample_id", "title", "qid", "paper_id", "path", "url", "id")


@pytest.mark.parametrize(
    ("records", "ids", "said"),
    [
        (["id"], Ids("id"), "ids are taken from the column 'id'"),
        (
            ["id", "url", "other"],
            Ids("url", ("id",)),
            "ids are taken from the column 'url'; there are also id (--id-column names another)",
        ),
        (["doc_id", "id"], Ids("id", ("doc_id",)), None),
        (["uuid"], Ids("uuid"), None),
        (["name"], Ids(None), ""),
    ],
)
def test_the_first_usual_column_is_taken(tmp_path, records, ids, said):
    record = {"text": "a", **dict.fromkeys(records, "x")}
    plans = planned(tmp_path / "in", {"a.jsonl": [record], "b.arrow": [record]})
    assert Ids.choose(plans, Columns()) == ids
    assert said is None or str(ids) == said


def test_a_column_has_to_be_in_all_files(tmp_path):
    files = {"a.jsonl": [{"text": "a", "url": "u", "id": 1}], "b.jsonl": [{"text": "b", "id": 2}]}
    assert Ids.choose(planned(tmp_path / "in", files), Columns()) == Ids("id", ("url",))
    files["c.arrow"] = [{"text": "c", "url": "u"}]
    ids = Ids.choose(planned(tmp_path / "in", files), Columns())
    assert ids == Ids(None, ("url", "id"))
    assert str(ids).startswith("ids are file#position: not every file has a column url, id;")
    # An empty file does not tell its columns, and a text has none.
    few = {"a.jsonl": [{"text": "a", "id": 1}], "b.jsonl": [], "c.txt": []}
    assert Ids.choose(planned(tmp_path / "few", few), Columns()) == Ids("id")


def test_what_is_read_as_something_else_is_no_id(tmp_path):
    plans = planned(tmp_path / "in", {"a.jsonl": [{"title": "a", "path": [1], "id": 1}]})
    assert Ids.choose(plans, Columns("title", patch_lengths="path")) == Ids("id")


def test_a_directory_names_no_ids_unless_somebody_says_so(tmp_path):
    """Else all documents below it would have one id, also where they have ids of their own."""
    line = {"text": "a", "doc_id": "x", "id": "mine"}
    plans = planned(tmp_path / "in", {"id=7/a.jsonl": [line]})
    plain = planned(tmp_path / "plain", {"id=7/a.jsonl": [{"text": "a", "doc_id": "x"}]})
    assert Ids.choose(plain, Columns()) == Ids("doc_id")

    def id_of(columns):
        (document,) = read_split(plans[0].splits[0], columns, 99)
        return document.sample_id

    assert id_of(Columns(usual_id="id")) == "mine"
    assert id_of(Columns(id="id")) == "7"


def test_a_record_without_the_usual_id_is_called_by_its_place(tmp_path):
    lines = [{"text": "a", "id": 5}, {"text": "b", "id": None}, {"text": "c"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (file,) = find_inputs([str(path)]).files
    (split,) = plan_file(file, "jsonl", 1 << 30).splits
    found = [document.sample_id for document in read_split(split, Columns(usual_id="id"), 99)]
    places = [f"a.jsonl#{at}" for at in (len(path.read_bytes().splitlines(True)[0]), 50)]
    assert found[0] == "5" and found[1] == places[0] and found[2].startswith("a.jsonl#")
    # A column that somebody named is another matter.
    named = list(read_split(split, Columns(id="id"), 99))
    assert [type(record) is Reject for record in named] == [False, True, True]


def test_ids_that_nobody_keeps_are_told(tmp_path):
    plans = planned(tmp_path / "in", {"a.jsonl": [{"text": "a", "url": "u", "id": 1}]})
    assert left_behind(plans, Columns()).startswith("ids are file#position; the input also has url")
    assert "has id, and" in left_behind(plans, Columns(metadata=("url",)))
    assert left_behind(plans, Columns("text", "id")) == ""
    assert left_behind(planned(tmp_path / "no", {"a.txt": [{}]}), Columns()) == ""
