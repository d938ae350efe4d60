"""The published loader reads an export, with one process in the place of Ray's workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from rich.console import Console
from support.published_loader import documents_of_rank
from support.shard_sets import real_texts, write_shards

from model.provenance import EntropyModelIdentity
from pipeline.cluster.stage import StageOutcome
from pipeline.export import job
from pipeline.export.config import ExportShardsConfig
from pipeline.export.job import ExportShardsResult, export_shards

MODEL = "transformer_100m"
TEXTS = real_texts(40)


def in_this_process(
    name: str, work: Callable, pieces: dict[int, int], shared: Any, console: Console, **_: Any
) -> StageOutcome:
    """In the place of :func:`pipeline.cluster.stage.run_stage`."""
    messages = {piece: work(piece, shared, MagicMock()) for piece in pieces}
    return StageOutcome({k: text for k, text in messages.items() if text}, [], {})


@pytest.fixture
def export(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "run_stage", in_this_process)
    write_shards(str(tmp_path / "web"), TEXTS, entropy_model=EntropyModelIdentity(MODEL, "0" * 64))

    def run(**flags: Any) -> ExportShardsResult:
        places = {"shards": str(tmp_path / "web"), "output": str(tmp_path / "out")}
        return export_shards(ExportShardsConfig(**places, format="reference", **flags), Console())

    return run


def test_every_document_is_read_once_on_any_number_of_ranks(export, tmp_path):
    assert export(verify=True).complete
    out = tmp_path / "out"
    for ranks in (1, 2, 3):
        of_ranks = [
            list(documents_of_rank(out / "web" / MODEL, out, MODEL, rank, ranks))
            for rank in range(ranks)
        ]
        read = [text for rows in of_ranks for text in (row["text"].encode() for row in rows)]
        assert sorted(read) == sorted(TEXTS)
        for rows in of_ranks:
            assert all(len(row["entropies"]) == len(row["text"].encode()) + 2 for row in rows)
        if ranks == 1:
            assert read == TEXTS


def test_what_names_a_chunk_is_written_again_and_removed_with_the_rest(
    export, tmp_path, monkeypatch
):
    assert export().exported > 1
    directory = tmp_path / "out" / "web" / MODEL
    chunk = directory / "web.chunk.00.jsonl"
    assert chunk.read_bytes() == b""
    whole = {path: path.stat().st_mtime_ns for path in directory.glob("*.arrow")}
    chunk.unlink()
    assert export().exported == 0 and chunk.exists()
    assert whole == {path: path.stat().st_mtime_ns for path in whole}
    assert export().exported == 0
    # An export that starts again leaves nothing of the one before.
    removed: list[Path] = []
    begin = job.ExportRun.begin

    def looking(run: Any, output: Any) -> Any:
        removed.extend(path for path in (chunk, *whole) if not path.exists())
        return begin(run, output)

    monkeypatch.setattr(job.ExportRun, "begin", looking)
    assert export(overwrite=True).exported == len(whole)
    assert removed == [chunk, *whole] and chunk.exists()
