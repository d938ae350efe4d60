"""Reports and exports: what a report on very many shards takes, and what counting costs.

- a report from manifests with 10,000 shards, of one set and of 10,000 sets merged;
- all thresholds from counts, against cutting anew at each of them;
- counting for reports while patching, as a share of what patching takes with the n-gram model,
  the fastest there is;
- exporting to Parquet, against reading the shards and writing the same rows with pyarrow alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common import ROOT, alternating, quotient, short_documents, spread

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
import pyarrow.parquet as pq
import torch
from support import tiny
from support.shard_sets import write_manifest

from model import NGramEntropyModel, Patcher
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import export_shard, plan_export
from pipeline.export.layouts import LAYOUTS
from pipeline.patch.scoring import Scorer
from pipeline.shards.entries import read_entries, shard_name
from pipeline.shards.format import record_batch, shard_schema
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.summary import Summary
from pipeline.statistics.threshold_curve import ThresholdCounts
from pipeline.storage.output import OutputDirectory

MANIFESTS = 10_000
TEXT_BYTES = 8 << 20
THRESHOLDS = 400
ROUNDS = 3
RULE = Patcher(1.5)


def paired(slow: Callable[[], object], quick: Callable[[], object]) -> str:
    """How many times as long the first takes."""
    times = alternating(ROUNDS, slow, quick)
    return f"{quotient(times, 0, 1):.2f} ({spread(times, 0, 1)})"


def make_set(directory: Path) -> ShardSet:
    """Eight shards of a megabyte."""
    documents = short_documents(TEXT_BYTES, seed=7)
    model = NGramEntropyModel.fit([encode_documents(documents)])
    (directory / "in").mkdir(parents=True)
    lines = (json.dumps({"text": text.decode()}) + "\n" for text in documents)
    (directory / "in" / "a.jsonl").write_text("".join(lines))
    settings = {"shard_bytes": 1 << 20}
    return tiny.make_shards(directory / "set", directory / "in", model, RULE, **settings)


def report_seconds(directory: Path, *flags: object) -> float:
    """Of the whole command, its start included."""
    job = [sys.executable, ROOT / "jobs" / "patch_report.py", "--output", directory / "report"]
    began = time.monotonic()
    subprocess.run([*map(str, job), *map(str, flags)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def many_manifests(shards: ShardSet, directory: Path) -> None:
    entry = next(iter(read_entries(shards.output).values()))
    whole, one = directory / "whole", directory / "one"
    copies = [replace(entry, name=shard_name(i, 0, 0)) for i in range(MANIFESTS)]
    for url, entries in ((whole, copies), (one, [entry])):
        for copy in entries:
            for path in (copy.path, copy.summary_path):
                (url / path).parent.mkdir(parents=True, exist_ok=True)
                original = path.replace(copy.name, entry.name)
                os.link(shards.output.locate(original), url / path)
        made = {key: shards.manifest[key] for key in ("patcher", "columns", "entropy_model")}
        write_manifest(OutputDirectory(str(url)), made, entries)
    for i in range(MANIFESTS):
        shutil.copytree(one, directory / "many" / f"{i:05d}", copy_function=os.link)
    alone = report_seconds(directory, "--shards", shards.output.url)
    print(f"report on {len(shards.entries)} shards: {alone:.1f} s")
    seconds = report_seconds(directory, "--shards", directory / "whole")
    print(f"report on a set of {MANIFESTS:,} shards: {seconds:.1f} s")
    seconds = report_seconds(directory, "--merge", "--shards", *(directory / "many").iterdir())
    print(f"report on {MANIFESTS:,} sets merged: {seconds:.1f} s")


def all_thresholds(shards: ShardSet) -> None:
    batches = list(shards.batches(["entropies"]))
    h_T = np.concatenate([np.array(batch["entropies"].flatten()) for batch in batches])
    lengths_D = np.concatenate([np.diff(batch["entropies"].offsets) for batch in batches])
    lengths_D = lengths_D.astype(np.int64)
    thresholds = np.linspace(0, 5, THRESHOLDS).astype(np.float16)
    h, lengths = torch.from_numpy(h_T), torch.from_numpy(lengths_D)

    def anew() -> None:
        for threshold in thresholds.tolist():
            replace(RULE, threshold=threshold).patch_lengths_flat(h, lengths)

    def counted() -> None:
        ThresholdCounts.of(RULE, h_T, lengths_D).patches(thresholds)

    print(f"cutting anew at {THRESHOLDS} thresholds / counting once: {paired(anew, counted)}")


def counting(directory: Path) -> None:
    documents = short_documents(1 << 20, seed=8)
    model = NGramEntropyModel.fit([encode_documents(documents)])
    scorer = Scorer(model, RULE)
    schema = shard_schema()
    rows = [Document(str(i), str(i), text, ()) for i, text in enumerate(documents)]
    scored = scorer.score(documents)
    batch = record_batch(rows, scored, schema)
    size = sum(map(len, documents))
    began = time.process_time()
    for _ in range(20):
        Summary.of(batch, scored, RULE, ())
    each = (time.process_time() - began) / 20
    print(f"counting for reports: {1e9 * each / size:.1f} ns of a core a byte")
    found = paired(lambda: scorer.score(documents), lambda: Summary.of(batch, scored, RULE, ()))
    print(f"n-gram `Scorer.score` / it: {found}")


def exporting(shards: ShardSet, directory: Path) -> None:
    config = ExportShardsConfig(shards.output.url, str(directory / "out"), "parquet")
    output = OutputDirectory(config.output)
    pieces = plan_export(shards, LAYOUTS["parquet"], config)

    def ours() -> None:
        for piece in pieces:
            export_shard(shards, piece, LAYOUTS["parquet"], config, output)

    def plain() -> None:
        for piece in pieces:
            with pq.ParquetWriter(
                directory / "plain.parquet", SCHEMA, compression="zstd", use_dictionary=False
            ) as writer:
                for batch in shards.shard_batches(piece.entry):
                    writer.write_batch(batch)

    SCHEMA = next(shards.batches()).schema
    print(f"pyarrow alone / export_shard: {paired(plain, ours)}")
    began = time.process_time()
    ours()
    rate = shards.statistics.bytes / (time.process_time() - began) / 1e6
    print(f"export_shard: {rate:.0f} MB of text a second of a core")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        shards = make_set(directory)
        all_thresholds(shards)
        counting(directory)
        exporting(shards, directory)
        many_manifests(shards, directory)


if __name__ == "__main__":
    main()
