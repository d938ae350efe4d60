"""How work is cut; entries of work that is done: those of another form are named."""

from dataclasses import replace

import pytest

from pipeline.corpus.documents import Columns
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError
from pipeline.prepare import plan as planning
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.prepare.plan import commit_piece, plan, units_done
from pipeline.prepare.shuffle import Sorted, Source
from pipeline.prepare.sorted_runs import SortedRun
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory

CONFIG = PrepareCorpusConfig(input=("in",), output="out", sort_bytes=100)
FILE = InputFile("in/a.jsonl", "a.jsonl", 1, "v1")


def splits_of(sizes: list[int]) -> list[Split]:
    return [Split(FILE, "jsonl", i, i, i + 1, size) for i, size in enumerate(sizes)]


def test_units_hold_neighbours_up_to_a_size_and_a_number(monkeypatch):
    monkeypatch.setattr(planning, "MOST_SPLITS", 3)
    sizes = [60, 40, 1, 150, 99, 1, *[0] * 5]
    splits = splits_of(sizes)
    units = plan([FILE], splits, Columns(), CONFIG).units
    assert [[s.size for s in unit] for unit in units] == [
        [60, 40],
        [1],
        [150],
        [99, 1, 0],
        [0, 0, 0],
        [0],
    ]
    assert [split for unit in units for split in unit] == splits


@pytest.mark.parametrize(
    ("chunks", "cells", "fine_cells"),
    # 16 cells for each chunk, at least 64; with many chunks 256, each cut into fine ones.
    [(1, 64, None), (5, 128, None), (128, 2048, None), (129, 256, 8), (40_000, 256, 4096)],
)
def test_cells_follow_from_the_number_of_chunks(chunks, cells, fine_cells):
    asked = plan([FILE], splits_of([1]), Columns(), replace(CONFIG, num_chunks=chunks)).shuffle
    assert (asked.cells, asked.fine_cells) == (cells, fine_cells)
    # By default a chunk has 256 MB of text.
    splits = splits_of([(chunks - 1) * 256_000_000, 1])
    assert plan([FILE], splits, Columns(), CONFIG).shuffle == asked
    # A worker holds a cell: in fewer and larger chunks cells are no larger.
    assert plan([FILE], splits, Columns(), replace(CONFIG, num_chunks=1)).shuffle == asked


def test_a_plan_is_read_as_it_was_written(tmp_path):
    columns = Columns("t", "i", ("m",))
    settings = {"seed": 3, "deduplicate": True, "max_document_bytes": 9, "on_bad_document": "fail"}
    config = replace(CONFIG, num_chunks=200, **settings)
    begun = plan([FILE], splits_of([60, 60]), columns, config)
    shuffle = begun.shuffle
    assert {name: getattr(shuffle, name) for name in settings} == settings
    assert (shuffle.columns, shuffle.sort_bytes) == (columns, 100)
    output = OutputDirectory(str(tmp_path))
    begun.begin(output)
    resumed = type(begun).resume(output)
    assert resumed == begun
    # What an error advises a rerun to change is changed: this did not help, however often.
    again = {"on_bad_document": "reject", "sort_bytes": 50}
    other = replace(config, **again, num_chunks=3, seed=4)
    assert resumed.continued(other) == replace(begun, shuffle=replace(shuffle, **again))


def test_the_counts_of_a_file_that_several_units_read_add_up():
    parts = Source(DocumentStatistics(2, 9), 1), Source(DocumentStatistics(3, 5), 4, "broken")
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        assert (total.documents.documents, total.documents.bytes) == (5, 14)
        assert (total.rejects, total.error) == (5, "broken")


def test_entries_come_back_and_those_of_another_form_are_named(tmp_path):
    output = OutputDirectory(str(tmp_path))
    done = Sorted([SortedRun("a.run", 3, 4, 7, "0" * 16, "1" * 16)], DocumentStatistics())
    done.sources["a"] = Source(error="gone")
    commit_piece(output, "units", 0, done)
    (found,) = units_done(output).values()
    assert found.runs == done.runs and found.sources["a"].error == "gone"
    run = {"name": "a.run", "rows": 3, "offsets": [1, 2], "keys_offset": 7}
    entry = {"runs": [run], "duplicates": DocumentStatistics().to_json(), "sources": {}}
    output.write("exchange/units/000001.json", to_checked_json(entry))
    with pytest.raises(PipelineError, match=r"was begun by another release.*--overwrite starts"):
        units_done(output)
