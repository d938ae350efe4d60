"""Lines of JSON: what they hold, and where they cannot be written."""

import json

import pytest

from pipeline.cli.progress_json import LINES, StageState, progress_lines
from pipeline.cli.work_counts import WorkCounts
from pipeline.errors import ConfigError


def state(**changes) -> StageState:
    counts = WorkCounts(bytes=3_000, documents=7, rejects=1, device_seconds=1.5)
    values = {
        **{"stage": "patching", "seconds": 2.0, "counts": counts, "bytes_left": 6_000},
        **{"bytes_per_second": 1_500.0, "pieces_waiting": 4, "pieces_working": 2},
        "pieces_done": 1,
    }
    return StageState(**values | changes)


def test_a_line_per_call_is_added_to_the_file(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"of": "an earlier run"}\n')
    with progress_lines(str(path)):
        LINES.write(state())
        LINES.write(state(bytes_per_second=0.0))
        LINES.write(state(bytes_left=0, bytes_per_second=0.0))
    LINES.write(state())  # nobody asked
    first, line, waiting, done = map(json.loads, path.read_text().splitlines())
    assert first == {"of": "an earlier run"}
    assert line.pop("time").endswith("+00:00")
    assert line == {
        **{"stage": "patching", "seconds": 2.0, "bytes": 3_000, "documents": 7, "rejects": 1},
        **{"device_seconds": 1.5, "bytes_left": 6_000, "bytes_per_second": 1_500.0},
        **{"pieces_waiting": 4, "pieces_working": 2, "pieces_done": 1, "seconds_left": 4.0},
    }
    assert waiting["seconds_left"] is None and done["seconds_left"] == 0


def test_a_file_that_cannot_be_written_is_said_before_any_work(tmp_path):
    with (
        pytest.raises(ConfigError, match=r"--progress-json: .*none/lines cannot be written: "),
        progress_lines(str(tmp_path / "none" / "lines")),
    ):
        pass
    with progress_lines(str(tmp_path / "lines")):
        LINES.path = tmp_path  # as if the disk were full from now on
        LINES.write(state())
        assert LINES.path is None
