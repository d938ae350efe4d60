"""The line of a report about the validation set that lies below a shard set."""

import shutil
from dataclasses import replace

import pytest
from support import tiny
from support.texts import topics, write_jsonl

from model import Patcher
from pipeline.cli.commands import command_line
from pipeline.report.held_out import read_held_out
from pipeline.report.set_counts import read_counts
from pipeline.report.set_figures import set_figures
from pipeline.report.wording import overview


@pytest.fixture(scope="module")
def shards(tmp_path_factory, ngram_model):
    directory = tmp_path_factory.mktemp("held-out")
    write_jsonl(directory / "in" / "a.jsonl", [(k, text[:2000]) for k, text in topics()[:4]])
    return tiny.make_shards(directory / "set", directory / "in", ngram_model, Patcher(1.5))


def row(shards) -> list[str] | None:
    counts = replace(read_counts("set", shards), held_out=read_held_out(shards.output.url))
    figures = set_figures(counts, targets=(), context_bytes=8192, tokenizer=None)
    assert figures.to_json()["held_out"] is None or counts.held_out is not None
    return dict(overview([figures])).get("validation set")


def test_a_set_without_one_has_no_line(shards):
    assert read_held_out(shards.output.url) is None and row(shards) is None


def test_its_counts_and_how_to_report_on_it(shards, tmp_path):
    directory = shutil.copytree(shards.output.url, tmp_path / "set")
    shutil.copytree(shards.output.url, directory / "validation")
    both = tiny.ShardSet(str(directory))
    (cell,) = row(both)
    counts = both.statistics
    assert cell.startswith(f"{counts.documents:,} documents, ")
    assert f", {counts.mean_patch_bytes:.3f} bytes per patch; " in cell
    assert cell.endswith(f"{command_line('patch_report')} --shards {directory}/validation")


def test_one_that_cannot_be_used_is_named(shards, tmp_path):
    directory = shutil.copytree(shards.output.url, tmp_path / "set")
    (directory / "validation").mkdir()
    (directory / "validation" / "run.json").write_text("{}")
    both = tiny.ShardSet(str(directory))
    assert row(both) == [
        f"{directory}/validation: is not finished; run the command that patches again"
    ]
    (directory / "validation" / "manifest.json").write_text("{")
    (cell,) = row(both)
    assert cell.startswith(f"{directory}/validation") and "is damaged" in cell
