"""The shuffle: the order that its rule defines, however the work is cut, and no other documents."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import shuffles
from support.shuffles import (
    SHUFFLE,
    Texts,
    count,
    distinct,
    expected_shuffle,
    shuffle_files,
    write_files,
)

import pipeline.prepare.sort_unit
from pipeline.corpus.documents import Columns
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.errors import BadDocumentError, PipelineError
from pipeline.prepare.sort_unit import sort_unit
from pipeline.storage.output import OutputDirectory


@pytest.fixture(scope="module", autouse=True)
def small_and_not_to_disk() -> Iterator[None]:
    """Thousands of small files are committed here: don't wait for each to be on disk. Batches are
    small, so that a file has several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda file: None)
        patch.setattr(pipeline.prepare.sort_unit, "BATCH_RECORDS", 5)
        yield


# Few different texts: many are equal.
few = st.text(st.sampled_from("aé\0\n"), max_size=3)
corpora = st.dictionaries(
    st.sampled_from([f"{name}.jsonl" for name in "abcd"]),
    st.lists(few | st.text(st.characters(codec="utf-8"), max_size=9), max_size=12),
    min_size=1,
).filter(count)
cuts = st.fixed_dictionaries(
    {
        "split_bytes": st.sampled_from([1, 40, 200, 1 << 20]),
        "splits_in_unit": st.integers(1, 9),
        "sort_bytes": st.sampled_from([1, 200, 1 << 20]),
        "cells": st.sampled_from([1, 2, 16]),
        "fine_cells": st.sampled_from([None, 1, 4]),
        "runs_in_merge": st.sampled_from([1, 3, 256]),
    }
)


@settings(max_examples=60)
@given(
    texts=corpora,
    cut=cuts,
    seed=st.sampled_from([0, 1, 2**64 - 1]),
    deduplicate=st.booleans(),
    chunks=st.integers(1, 7),
    data=st.data(),
)
def test_the_order_is_the_rule_s_however_the_work_is_cut(
    tmp_path_factory, texts, cut, seed, deduplicate, chunks, data
):
    documents = distinct(texts) if deduplicate else count(texts)
    rule = {"seed": seed, "deduplicate": deduplicate, "chunks": chunks}
    rule["validation"] = data.draw(st.integers(0, documents - 1))
    tmp_path = tmp_path_factory.mktemp("shuffle")
    done = shuffle_files(write_files(tmp_path / "in", texts), tmp_path / "out", **cut, **rule)
    assert (done.validation, done.chunks) == expected_shuffle(texts, **rule)
    assert done.duplicates.documents == count(texts) - documents


def keys_are(monkeypatch: pytest.MonkeyPatch, key_of_text) -> None:
    """Have keys made by another function, of texts."""
    monkeypatch.setattr(
        pipeline.prepare.sort_unit._Keys,
        "__call__",
        lambda self, file, document: key_of_text(document.text),
    )


TWO_LEVELS = {"fine_cells": 4, "runs_in_merge": 2}


@pytest.mark.parametrize("cut", [{}, {"sort_bytes": 1}, {"sort_bytes": 1} | TWO_LEVELS])
def test_of_different_texts_with_one_key_none_is_a_duplicate(tmp_path, monkeypatch, cut):
    keys_are(monkeypatch, lambda text: 7)
    texts = {"a.jsonl": ["x", "y", "x", "z", "y"], "b.jsonl": ["z", "w", "x", ""]}
    source = write_files(tmp_path / "in", texts)
    done = shuffle_files(source, tmp_path / "out", deduplicate=True, chunks=3, **cut)
    # Equal keys: in the order of the corpus.
    assert [text for part in done.chunks for _, text in part] == ["x", "y", "z", "w", ""]
    assert done.order == ["a.jsonl#0", "a.jsonl#14", "a.jsonl#42", "b.jsonl#14", "b.jsonl#42"]
    assert done.duplicates.documents == 4
    every = shuffle_files(source, tmp_path / "every", **cut)
    assert [text for _, text in every.chunks[0]] == [*texts["a.jsonl"], *texts["b.jsonl"]]


EDGES = {
    b"lowest": 0,
    b"next": 1,
    b"middle": 1 << 63,
    b"last but one": 2**64 - 2,
    b"last": 2**64 - 1,
}


@pytest.mark.parametrize("validation", range(5))
@pytest.mark.parametrize("fine_cells", [None, 8])
def test_the_lowest_and_the_highest_key_are_in_a_chunk(
    tmp_path, monkeypatch, validation, fine_cells
):
    keys_are(monkeypatch, EDGES.__getitem__)
    source = write_files(tmp_path / "in", {"a.jsonl": [key.decode() for key in reversed(EDGES)]})
    done = shuffle_files(
        source, tmp_path / "out", chunks=4, validation=validation, fine_cells=fine_cells
    )
    order = [text for part in (done.validation, *done.chunks) for _, text in part]
    assert order == [key.decode() for key in EDGES]
    assert len(done.validation) == validation
    assert done.chunks[3][-1][1] == "last"


@pytest.mark.parametrize("cut", [{"sort_bytes": 70}, {"sort_bytes": 70, **TWO_LEVELS}])
def test_the_example_in_the_description_of_the_shuffle(tmp_path, monkeypatch, cut):
    keys = {b"a": 9, b"b": 2, b"c": 13, b"d": 4, b"e": 6, b"f": 11}
    keys_are(monkeypatch, lambda text: keys[text] << 60)
    source = write_files(tmp_path / "in", {"0.jsonl": ["a", "b", "c"], "1.jsonl": ["d", "e", "f"]})
    done = shuffle_files(source, tmp_path / "out", chunks=2, validation=1, cells=4, **cut)
    parts = [[text for _, text in part] for part in (done.validation, *done.chunks)]
    assert parts == [["b"], ["d", "e", "a"], ["f", "c"]]


def test_the_first_of_thousands_of_equal_texts_is_kept(tmp_path):
    """They are spread over many runs, each of which is merged with a few others."""
    texts = {f"{name}.jsonl": [f"own {name}", *["", "again"] * 700] for name in "cab"}
    source = write_files(tmp_path / "in", texts)
    cut = {"split_bytes": 2000, "sort_bytes": 3000, **TWO_LEVELS}
    done = shuffle_files(source, tmp_path / "out", deduplicate=True, chunks=2, **cut)
    assert len(list((tmp_path / "out" / "exchange" / "runs").iterdir())) > 30
    first = len(shuffles.jsonl_line("own a"))
    assert sorted(done.order) == [
        *("a.jsonl#0", f"a.jsonl#{first}", f"a.jsonl#{first + len(shuffles.jsonl_line(''))}"),
        *("b.jsonl#0", "c.jsonl#0"),
    ]
    assert done.duplicates.documents == count(texts) - 5
    assert done.duplicates.bytes == (3 * 700 - 1) * len("again")


def unlike(documents: int, files: int = 3) -> Texts:
    """Documents that all differ, and every tenth again."""
    every = [f"document {i - i % 10 // 9}" for i in range(documents)]
    return {f"{i}.jsonl": every[i::files] for i in range(files)}


@pytest.mark.parametrize("deduplicate", [False, True])
def test_the_validation_set_is_the_same_for_any_number_of_chunks(tmp_path, deduplicate):
    source = write_files(tmp_path / "in", unlike(500))
    cuts = {1: {}, 2: {"sort_bytes": 999}, 70: {"cells": 64}, 300: {"cells": 4, "fine_cells": 8}}
    done = [
        shuffle_files(
            source,
            tmp_path / str(chunks),
            chunks=chunks,
            validation=60,
            deduplicate=deduplicate,
            **cut,
        )
        for chunks, cut in cuts.items()
    ]
    assert len(done[0].validation) == 60
    assert all(each.validation == done[0].validation for each in done)
    assert all(each.order == done[0].order for each in done)


def test_more_chunks_than_documents_leave_some_empty(tmp_path):
    source = write_files(tmp_path / "in", {"a.jsonl": ["one", "two"]})
    done = shuffle_files(source, tmp_path / "out", chunks=50)
    sizes = Counter(map(len, done.chunks))
    assert sizes == {0: 48, 1: 2}


def test_positions_not_places_in_the_work_decide(tmp_path):
    """What is added after a file leaves the order of its documents as it was."""
    texts = unlike(300)
    before = shuffle_files(write_files(tmp_path / "in", texts), tmp_path / "before")
    more = texts | {"0.jsonl": [*texts["0.jsonl"], "more"], "00.jsonl": ["new"] * 50}
    after = shuffle_files(write_files(tmp_path / "in", more), tmp_path / "after", sort_bytes=500)
    kept = set(before.order)
    assert [name for name in after.order if name in kept] == before.order
    assert len(after.order) == len(before.order) + 51


def sort_one(source: Path, output: Path, split_bytes: int = 1 << 20, **settings: object):
    (file,) = find_inputs([str(source)]).files
    splits = plan_file(file, "jsonl", split_bytes).splits
    shuffle = replace(SHUFFLE, **settings)
    return sort_unit(3, splits, shuffle, OutputDirectory(str(output)), output, lambda count: None)


def test_rejects_are_told_with_file_position_and_reason(tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_bytes(b'{"text": "ok"}\nnothing\n{"text": null}\n{"text": "longer than 9"}\n')
    done = sort_one(source, tmp_path, split_bytes=20, max_document_bytes=9)
    assert done.sources["a.jsonl"].documents.documents == 1
    assert done.sources["a.jsonl"].rejects == 3
    rejects = [*map(json.loads, (tmp_path / "rejects" / "000003.jsonl").read_text().splitlines())]
    assert [(r["file"], r["position"]) for r in rejects] == [
        ("a.jsonl", "15"),
        ("a.jsonl", "23"),
        ("a.jsonl", "38"),
    ]
    assert [r["reason"][:14] for r in rejects] == [
        "line is not va",
        "'text' is null",
        "longer than 9 ",
    ]
    with pytest.raises(BadDocumentError, match=r"a.jsonl, position 15: line is not valid JSON"):
        sort_one(source, tmp_path / "strict", on_bad_document="fail")


def test_of_a_file_that_breaks_off_the_good_part_is_kept(tmp_path):
    source = tmp_path / "a.jsonl.gz"
    lines = "".join(shuffles.jsonl_line(f"document {i}") for i in range(5000))
    source.write_bytes(gzip.compress(lines.encode())[:-2000])
    done = sort_one(source, tmp_path, sort_bytes=1000).sources["a.jsonl.gz"]
    assert 1000 < done.documents.documents < 5000
    assert done.error.startswith("truncated or corrupt: ")
    (line,) = (tmp_path / "rejects" / "000003.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "file": "a.jsonl.gz",
        "position": "whole file",
        "reason": done.error,
    }


def test_a_split_that_ends_its_readers_is_named_and_the_others_are_sorted(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(shuffles.jsonl_line(f"in {name}"))
    files = [find_inputs([str(tmp_path / name)]).files[0] for name in ("a.jsonl", "b.jsonl")]
    splits = [split for file in files for split in plan_file(file, "jsonl", 1 << 20).splits]
    output = OutputDirectory(str(tmp_path / "out"))
    deadly = {splits[0]: "ended the process that read it"}
    done = sort_unit(0, splits, SHUFFLE, output, tmp_path, lambda count: None, deadly)
    assert done.sources["a.jsonl"].error == deadly[splits[0]]
    assert done.sources["b.jsonl"].documents.documents == 1
    (line,) = (tmp_path / "out" / "rejects" / "000000.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == deadly[splits[0]]


def test_nothing_is_rejected_without_a_reason(tmp_path):
    source = write_files(tmp_path / "in", {"a.jsonl": ["ok"]})
    sort_one(source, tmp_path / "out")
    assert not (tmp_path / "out" / "rejects").exists()


def test_ids_and_metadata_go_with_their_texts(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "id": 5, "url": "u", "tags": [1, "é"]}\n{"text": "b", "id": "x"}\n'
    )
    columns = Columns("text", "id", ("url", "tags"))
    shuffle_files(tmp_path, tmp_path / "out", columns=columns)
    rows = pq.read_table(tmp_path / "out" / "corpus.chunk.00.parquet").to_pylist()
    assert sorted(rows, key=lambda row: row["text"]) == [
        {"sample_id": "5", "text": "a", "url": "u", "tags": '[1, "é"]'},
        {"sample_id": "x", "text": "b", "url": None, "tags": None},
    ]


def test_no_document_at_all_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("nothing\n")
    with pytest.raises(PipelineError, match="the input holds no document; see rejects/"):
        shuffle_files(tmp_path, tmp_path / "out")
