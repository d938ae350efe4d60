"""The progress of a stage of very many pieces: what a look costs its driver, with Ray's part.

Before, the actor sent the counts of all pieces at each look, and the driver added them up; now it
sends what changed, and sums are kept. A number on the command line stands for 200,000 pieces.
"""

import os
import sys
import time

from common import ROOT, alternating, quotient, spread, verdict

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(ROOT / "tests"))

import ray
from support.summed_anew import summed_anew

from pipeline.cli.progress_bar import Rate
from pipeline.cli.work_counts import WorkCounts
from pipeline.cluster.connect import connect
from pipeline.cluster.progress import start_progress
from pipeline.cluster.stage_sums import StageSums

PIECES = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
CHANGED = 200
"""Pieces that a hundred workers report between two looks."""
ROUNDS = 5


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


def main() -> int:
    connect(1)
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
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
