"""One worker's job: where shards end, what a rerun skips, what an error leaves behind."""

import gzip
import io
import itertools
import json
import threading
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from support.jobs import contents

from model import Patcher
from pipeline.corpus import lines
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file, whole_file
from pipeline.errors import BadDocumentError, PipelineError, UnreachableFileError
from pipeline.patch import patch_split as worker
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.patch_split import give_up, patch_unit
from pipeline.patch.scoring import QueuedEntropies, Scorer
from pipeline.shards.entries import entry_path, read_entries
from pipeline.shards.sources import source_names
from pipeline.statistics.summary import Summary
from pipeline.storage import watched_file
from pipeline.storage.output import OutputDirectory

TEXTS = [f"document {i} " * 9 for i in range(60)]


class Patching:
    """A JSONL file as one split, and a place to patch it to."""

    def __init__(self, directory, model, lines=None):
        path = directory / "a.jsonl"
        path.write_text("\n".join(lines or [json.dumps({"text": text}) for text in TEXTS]))
        (file,) = find_inputs([str(path)]).files
        (self.split,) = self.unit = tuple(plan_file(file, "jsonl", 1 << 30).splits)
        self.scorer = Scorer(model, Patcher(1.0))
        self.config = PatchCorpusConfig((str(path),), "unused", threshold=1.0, shard_bytes=1000)
        self.scored = []

    def run(self, output, **changes) -> list:
        """Patch the split; gives its entries."""
        directory = OutputDirectory(str(output))
        config = replace(self.config, **changes)
        patch_unit(self.unit, 0, config, self.scorer, directory, self.scored.append)
        found = read_entries(directory)
        return [found[name] for name in sorted(found)]


def test_shards_close_at_their_size(tmp_path, ngram_model):
    patching = Patching(tmp_path, ngram_model)
    entries = patching.run(tmp_path / "out")
    longest = max(map(len, TEXTS))
    sizes = [entry.statistics["bytes"] for entry in entries]
    assert all(1000 <= size < 1000 + longest for size in sizes[:-1]) and len(sizes) > 4
    assert [entry.last for entry in entries] == [False] * (len(entries) - 1) + [True]
    assert sum(entry.records for entry in entries) == len(TEXTS)
    assert {entry.source for entry in entries} == {"a.jsonl"}
    assert not (tmp_path / "out" / "rejects").exists()
    (one,) = patching.run(tmp_path / "one", shard_bytes=1 << 20)
    assert one.last and one.records == len(TEXTS)


def test_record_batches_end_at_each_of_their_limits(tmp_path, ngram_model, monkeypatch):
    patching = Patching(tmp_path, ngram_model)
    assert list(map(len, TEXTS)) == [99] * 10 + [108] * 50
    for limit, value, rows in (
        ("BATCH_BYTES", 297, [3] * 20),
        ("BATCH_DOCUMENTS", 7, [7] * 8 + [4]),
        ("BATCH_SIDE_BYTES", 1, [1] * 60),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(worker, limit, value)
            (entry,) = patching.run(tmp_path / limit, shard_bytes=1 << 20)
        assert entry.batches["rows"] == rows, limit


def test_shards_close_at_many_rejects(tmp_path, ngram_model, monkeypatch):
    monkeypatch.setattr(worker, "MOST_REJECTS", 10)
    lines = ["broken"] * 25 + ['{"text": "good"}'] + ["broken"] * 3
    entries = Patching(tmp_path, ngram_model, lines).run(tmp_path / "out")
    assert [entry.rejects for entry in entries] == [10, 10, 8]
    assert [entry.sha256 is None for entry in entries] == [True, True, False]
    rejects = (tmp_path / "out" / entries[2].rejects_path).read_text().splitlines()
    assert json.loads(rejects[0])["position"] == str(20 * 7)
    summaries = [json.loads((tmp_path / "out" / e.summary_path).read_bytes()) for e in entries]
    assert [list(summary["reasons"].values()) for summary in summaries] == [[10], [10], [8]]


def test_of_a_file_without_records_there_is_a_shard_without_rows(tmp_path, ngram_model):
    (entry,) = Patching(tmp_path, ngram_model, ["\n"]).run(tmp_path / "out")
    assert (entry.source, entry.records, entry.last, entry.sha256) == ("a.jsonl", 0, True, None)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_rerun_does_exactly_what_is_not_committed(tmp_path, ngram_model, kept, monkeypatch):
    # Batches of a few documents, so that a shard's end falls between batches and within one.
    monkeypatch.setattr(worker, "BATCH_BYTES", 300)
    patching = Patching(tmp_path, ngram_model)
    entries = patching.run(tmp_path / "out")
    before = contents(tmp_path / "out")
    for entry in entries[kept:]:
        (tmp_path / "out" / "entries" / f"{entry.name}.json").unlink()
    patching.scored.clear()
    patching.run(tmp_path / "out")
    assert contents(tmp_path / "out") == before
    assert sum(patching.scored) == sum(entry.statistics["tokens"] for entry in entries[kept:])
    patching.scored.clear()
    patching.run(tmp_path / "out")
    assert not patching.scored


def test_of_a_file_that_breaks_off_the_beginning_is_kept(tmp_path, ngram_model, monkeypatch):
    patching = Patching(tmp_path, ngram_model)

    class BreaksOff(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            if self.tell() > 4096:
                raise ConnectionResetError("the server went away")
            return super().read(size)

    monkeypatch.setattr(lines, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(watched_file, "open_input", BreaksOff)
    with pytest.raises(UnreachableFileError, match=r"a\.jsonl: cannot be read: the server went"):
        patching.run(tmp_path / "out")
    committed = read_entries(OutputDirectory(str(tmp_path / "out")))
    assert committed and not any(entry.last for entry in committed.values())
    assert not list((tmp_path / "out" / "_tmp").iterdir())
    monkeypatch.undo()
    patching.run(tmp_path / "out")
    patching.run(tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_split_that_ends_its_readers_is_closed_with_the_reason(tmp_path, ngram_model):
    patching = Patching(tmp_path, ngram_model)
    patching.run(tmp_path / "out")
    output = OutputDirectory(str(tmp_path / "out"))
    last = max(read_entries(output))
    output.remove(entry_path(last))
    give_up((patching.split,), 0, "ended its process", output)
    entry = read_entries(output)[last]
    assert (entry.last, entry.error, entry.sha256) == (True, "ended its process", None)
    reject = json.loads((tmp_path / "out" / entry.rejects_path).read_text())
    assert (reject["position"], reject["reason"]) == ("whole file", "ended its process")
    before = contents(tmp_path / "out")
    patching.run(tmp_path / "out")  # a rerun leaves it alone
    assert contents(tmp_path / "out") == before
    give_up((patching.split,), 7, "ended its process at once", output)  # with none of its records
    alone = read_entries(output)["000007-00000-00000"]
    assert output.read_json(alone.summary_path) == Summary().to_json()


def test_an_error_in_any_stage_comes_out_and_leaves_no_half_shard(tmp_path, ngram_model):
    patching = Patching(tmp_path, ngram_model, ['{"text": "good"}', "broken"])
    with pytest.raises(BadDocumentError, match=r"a\.jsonl, position 17: line is not valid JSON"):
        patching.run(tmp_path / "out", on_bad_document="fail")

    class Broken:
        device, context_length, token_budget = torch.device("cpu"), None, 1 << 20
        pack_sizes = ()

        def entropies_packed(self, tokens_T, lengths_S):
            raise PipelineError("the device is on fire")

    patching.scorer = Scorer(Broken(), Patcher(1.0))
    with pytest.raises(PipelineError, match="on fire"):
        patching.run(tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_a_batch_is_queued_while_the_one_before_is_computed(tmp_path, ngram_model, monkeypatch):
    """A GPU never runs dry: nobody waits for it before it has the next batch."""
    monkeypatch.setattr(worker, "BATCH_BYTES", 300)
    patching = Patching(tmp_path, ngram_model)
    patching.run(tmp_path / "expected", shard_bytes=1 << 20)
    queued: list[threading.Event] = []

    class Later(NamedTuple):
        """Entropies that are not there before the next batch is queued."""

        entropies: QueuedEntropies
        number: int

        def wait(self):
            last = self.number + 1 == batches
            assert last or queued[self.number + 1].wait(timeout=30)
            return self.entropies.wait()

        @property
        def device_seconds(self):
            return self.entropies.device_seconds

    class GPU(Scorer):
        def queue(self, *given):
            number = next(numbers)
            queued[number].set()
            return Later(super().queue(*given), number)

    sizes = [len(text.encode()) for text in TEXTS]
    batches, filled = 1, 0
    for size in sizes:
        if filled >= 300:
            batches, filled = batches + 1, 0
        filled += size
    numbers = itertools.count()
    queued += [threading.Event() for _ in range(batches)]
    patching.scorer = GPU(ngram_model, Patcher(1.0))
    patching.run(tmp_path / "out", shard_bytes=1 << 20)
    assert next(numbers) == batches > 10
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


class PatchingFiles(Patching):
    """Small files that share a unit; the second and the fourth break off, the fifth is empty."""

    def __init__(self, directory, model):
        super().__init__(directory, model)
        texts = [json.dumps({"text": text}) + "\n" for text in TEXTS]
        for i in range(7):
            lines = "".join(texts[8 * i : 8 * i + 8]).encode()
            data = gzip.compress(b"" if i == 4 else lines + b"broken\n", mtime=0)
            (directory / f"{i}.jsonl.gz").write_bytes(data[:-20] if i in (1, 3) else data)
        files = find_inputs([str(directory / "*.gz")]).files
        self.unit = tuple(whole_file(file, "jsonl") for file in files)


def test_files_share_shards_and_a_broken_one_costs_its_neighbours_nothing(tmp_path, ngram_model):
    patching = PatchingFiles(tmp_path, ngram_model)
    entries = patching.run(tmp_path / "out", shard_bytes=1 << 20)
    ends = [(entry.source, entry.error is not None, entry.last) for entry in entries]
    broken = [("1.jsonl.gz", True, False), ("3.jsonl.gz", True, False)]
    assert ends == [*broken, ("6.jsonl.gz", False, True)]
    rejects = [
        [(line["file"][0], line["position"] == "whole file") for line in map(json.loads, lines)]
        for entry in entries
        for lines in [(tmp_path / "out" / entry.rejects_path).read_text().splitlines()]
    ]
    assert rejects[0][0] == ("0", False) and rejects[0][-1] == ("1", True)
    assert rejects[1][0] == ("2", False) and rejects[1][-1] == ("3", True)
    assert rejects[2] == [("5", False), ("6", False)]
    # An entry names the file that its error is about; readers are told what its text is from.
    files = [f"in/{split.file.name}" for split in patching.unit]
    shards = [replace(entry.row(), source=f"in/{entry.source}") for entry in entries]
    assert source_names(shards, files) == ["in/*"] * 3


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_a_rerun_goes_on_behind_broken_files(tmp_path, ngram_model, kept, monkeypatch):
    monkeypatch.setattr(worker, "BATCH_BYTES", 300)
    patching = PatchingFiles(tmp_path, ngram_model)
    entries = patching.run(tmp_path / "out")
    before = contents(tmp_path / "out")
    assert len(entries) > 5
    for entry in entries[kept:]:
        (tmp_path / "out" / "entries" / f"{entry.name}.json").unlink()
    patching.run(tmp_path / "out")
    assert contents(tmp_path / "out") == before
