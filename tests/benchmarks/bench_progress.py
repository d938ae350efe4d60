"""What it costs to report progress.

- A stage of very many pieces: what a look costs its driver, with Ray's part. Before, the actor sent
  the counts of all pieces at each look, and the driver added them up; now it sends what changed,
  and sums are kept. A number on the command line stands for 200,000 pieces.
- A worker that patches with the cheapest model, which therefore reports the most bytes per second:
  with messages to the driver and Ray's metrics / without.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, alternating, quotient, source_documents, spread, verdict, write_jsonl

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(ROOT / "tests"))

import ray
from support.summed_anew import summed_anew

from model import NGramEntropyModel, Patcher
from model.tokenizer import encode_documents
from pipeline.cli.progress_bar import Rate
from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.connect import connect
from pipeline.cluster.progress import Reporter, start_progress
from pipeline.cluster.stage_sums import StageSums
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import whole_file
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.patch_split import patch_unit
from pipeline.patch.scoring import Scorer
from pipeline.storage.output import OutputDirectory

PIECES = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
CHANGED = 200
"""Pieces that a hundred workers report between two looks."""
ROUNDS = 5
TEXT_BYTES = 48 << 20


@ray.remote(num_cpus=0)
class All:
    """Sends the counts of all pieces, as the actor did."""

    def __init__(self) -> None:
        self.counts: dict[int, WorkCounts] = {}

    def put(self, counts: dict[int, WorkCounts]) -> None:
        self.counts |= counts

    def get(self) -> dict[int, WorkCounts]:
        return self.counts


def processor_seconds(function) -> float:
    began = time.process_time()
    function()
    return time.process_time() - began


def looks() -> None:
    estimates = dict.fromkeys(range(PIECES), 1000)
    half = {n: WorkCounts(1100, 1, 0, 0.1) for n in range(PIECES // 2)}
    changes = {n: WorkCounts(500) for n in range(PIECES // 2, PIECES // 2 + CHANGED)}
    before, now = All.remote(), start_progress("x")
    ray.get(before.put.remote(half | changes))
    sums, rates = StageSums(estimates, {}), (Rate(), Rate())
    for piece, counts in half.items():
        sums.finish(piece, counts)
    used: dict[str, list[float]] = {"before": [], "now": []}

    def look_before() -> None:
        def look() -> None:
            reported = ray.get(before.get.remote())
            summed_anew("x", 1.0, estimates, {}, reported, dict(half), rates[0])

        used["before"].append(processor_seconds(look))

    def look_now() -> None:
        now.put(changes)

        def look() -> None:
            for piece, counts in now.get()[0].items():
                sums.report(piece, counts)
            sums.state("x", 1.0, rates[1])

        used["now"].append(processor_seconds(look))

    times = alternating(ROUNDS, look_before, look_now)
    cores = list(zip(used["before"][1:], used["now"][1:], strict=True))
    print(f"{PIECES:,} pieces, {CHANGED} of them changed since the last look")
    ratio = quotient(cores, 0, 1)
    print(f"a look before / now, processor time: {ratio:.0f} ({spread(cores, 0, 1)})")
    print(f"… wall time: {quotient(times, 0, 1):.0f} ({spread(times, 0, 1)})")
    typical = sorted(cores)[ROUNDS // 2]
    print(f"… milliseconds of a core: {typical[0] * 1e3:.0f}; {typical[1] * 1e3:.1f}")
    print(f"at two looks per second, share of a core: {2 * typical[1]:.2%}", verdict(ratio > 10))


def reports(directory: Path) -> None:
    (documents,) = source_documents(3, TEXT_BYTES)
    write_jsonl(directory / "a.jsonl", documents)
    model = NGramEntropyModel.fit([encode_documents(documents[:500])])
    (file,) = find_inputs([str(directory / "a.jsonl")]).files
    unit = (whole_file(file, "jsonl"),)
    config = PatchCorpusConfig((file.url,), "unused", threshold=1.0)
    progress = start_progress("patching")
    used: dict[bool, list[float]] = {True: [], False: []}

    def patch(reporting: bool) -> None:
        report = Reporter(progress, 0)
        told = (report, report.count) if reporting else (lambda count: None, lambda counts: None)
        output = OutputDirectory(str(directory / "out"))

        def work() -> None:
            patch_unit(unit, 0, config, Scorer(model, Patcher(1.0)), output, *told)
            report.finish()

        used[reporting].append(processor_seconds(work))
        shutil.rmtree(directory / "out")

    times = alternating(ROUNDS, lambda: patch(True), lambda: patch(False))
    cores = list(zip(used[True][1:], used[False][1:], strict=True))
    size = sum(map(len, documents))
    print(f"patching {size / 1e6:.0f} MB with an n-gram model, {size / cores[0][1] / 1e6:.0f} MB/s")
    ratio = quotient(cores, 0, 1)
    print(f"… with / without reports, processor time: {ratio:.3f} ({spread(cores, 0, 1)})")
    print(
        f"… wall time: {quotient(times, 0, 1):.3f} ({spread(times, 0, 1)})", verdict(ratio < 1.02)
    )


def main() -> int:
    connect(1)
    looks()
    with tempfile.TemporaryDirectory() as directory:
        reports(Path(directory))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
