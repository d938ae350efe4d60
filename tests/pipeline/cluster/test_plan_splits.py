"""Which files the cluster looks into to plan them."""

import pytest

from pipeline.cluster import plan_splits
from pipeline.cluster.plan_splits import plan_files
from pipeline.corpus.documents import Columns
from pipeline.corpus.formats import FORMATS
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file


@pytest.mark.parametrize("name", [name for name, f in FORMATS.items() if not f.is_looked_into])
def test_files_that_nobody_need_look_into_are_planned_here(name, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_splits, "_plan_files", None)
    for i, text in enumerate(("", "one\n", "longer than a split\n" * 9)):
        (tmp_path / f"{i}{FORMATS[name].endings[0]}").write_text(text)
    files = find_inputs([str(tmp_path)]).files
    plans = plan_files(files, "auto", Columns(), 20)
    assert plans == [plan_file(file, name, 20) for file in files] and len(plans) == 3
    # A split refers to the file that was listed: hundreds of thousands of copies would take memory.
    assert all(plan.splits[0].file is file for plan, file in zip(plans, files, strict=True))


def test_plans_stay_in_the_order_of_the_files(tmp_path, monkeypatch):
    class Looking:
        @staticmethod
        def remote(part, split_bytes):
            return [plan_file(file, name, split_bytes) for file, name in part]

    monkeypatch.setattr(plan_splits, "_plan_files", Looking)
    monkeypatch.setattr(plan_splits.ray, "get", lambda plans: plans)
    monkeypatch.setattr(plan_splits, "FILES_PER_TASK", 2)
    for i, ending in enumerate(("jsonl", "txt", "jsonl", "jsonl", "md", "txt", "jsonl")):
        (tmp_path / f"{i}.{ending}").write_text('{"text": "a"}\n' * 9)
    files = find_inputs([str(tmp_path)]).files
    plans = plan_files(files, "auto", Columns(), 40)
    assert [plan.splits[0].file for plan in plans] == files and len(files) == 7
    assert [len(plan.splits) > 1 for plan in plans] == [f.name.endswith("l") for f in files]
