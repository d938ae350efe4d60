"""Entries of work that is done: what was begun in another form is no traceback."""

import pytest

from pipeline.errors import PipelineError
from pipeline.prepare.plan import commit_piece, units_done
from pipeline.prepare.shuffle import Sorted, Source
from pipeline.prepare.sorted_runs import SortedRun
from pipeline.statistics.counts import DocumentStatistics
from pipeline.storage.checked_json import to_checked_json
from pipeline.storage.output import OutputDirectory


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
