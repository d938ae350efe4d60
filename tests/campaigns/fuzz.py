"""``make fuzz``: damaged files of every format, read in processes with bounded memory and time.

A worker process plans and reads one file after another, as those of jobs do. An input is *accepted*
(only documents came of it), *rejected* (the file or a record of it, with a reason), or it *crashed*
its process: jobs try such a file three times alone and name it, as pipeline/cluster/stage.py says;
here it is written to ``--keep``, too. What must not happen: a worker *hangs*, takes more *memory*
than docs/memory.md says, or ends in another error than those that name a file (*traceback*).

The bombs of tests/support/bombs.py are read first, and damaged ones are among the inputs. The same
seed and count give the same inputs. The exit status is 0 if nothing happened that must not.
"""

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from support.bombs import write_bombs
from support.mutations import COMPRESSED, mutated, valid_files

from pipeline.corpus.headers.limits import reading_bytes

OUTCOMES = ("accepted", "rejected", "crashed", "hung", "memory", "traceback")
FORBIDDEN = ("hung", "memory", "traceback")
SECONDS = 60
"""Wall time after which an input hangs: a busy machine takes ten times as long as an idle one."""
MOST_TEXT = 64 << 20
"""Bytes of text after which enough of an input is read: a bomb may have any number of them."""
BOUND = reading_bytes(64 << 20)
BOMB_SHARE = 0.02
"""Share of the inputs that are damaged bombs: they take long."""


class Worker:
    """A process that reads files; another one takes its place when it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def read(self, path: Path) -> dict[str, object]:
        """What came of a file."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            result: dict[str, object] = json.loads(line)
            return result
        self.end()
        return {"ended": "hung" if not ready else f"crashed: status {process.returncode}"}

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "support.peak_memory", str(MOST_TEXT)]
        return subprocess.Popen(
            *(command,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def outcome_of(result: dict[str, object]) -> str:
    if "ended" in result:
        return str(result["ended"]).split(":")[0]
    if result["bug"]:
        return "traceback"
    if int(str(result["peak"])) > BOUND:
        return "memory"
    if result["error"] or result["rejects"]:
        return "rejected" if result["error"] or result["reason"] else "traceback"
    return "accepted"


def inputs(seed: int, bombs: list[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Format, ending and content of one damaged file after another, without end."""
    chance = random.Random(seed)
    files = valid_files()
    # Most of what can go wrong goes wrong in Arrow's own code.
    weights = [3 if name.startswith(("Parquet", "Arrow")) else 1 for name in files]
    small = [bomb for bomb in bombs if bomb.stat().st_size < 50_000]
    while True:
        if small and chance.random() < BOMB_SHARE:
            bomb = chance.choice(small)
            yield "bombs", "".join(bomb.suffixes), mutated(bomb.read_bytes(), chance)
            continue
        (name,) = chance.choices(list(files), weights)
        ending, data = chance.choice(files[name])
        compress = COMPRESSED.get(Path(ending).suffix)
        if compress is not None and chance.random() < 0.3:  # what is inside is damaged
            (_, plain), *_ = files["JSONL"]
            yield name, ending, compress(mutated(plain, chance))
        else:
            yield name, ending, mutated(data, chance)


@dataclass
class Report:
    """What came of all inputs."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """By format and outcome."""
    peak: dict[str, int] = field(default_factory=dict)
    """Most memory, by format."""
    notable: list[str] = field(default_factory=list)
    """Lines about inputs that are neither accepted nor rejected."""

    def add(self, kind: str, name: str, result: dict[str, object]) -> str:
        outcome = outcome_of(result)
        self.counts.setdefault(kind, Counter())[outcome] += 1
        self.peak[kind] = max(self.peak.get(kind, 0), int(str(result.get("peak", 0))))
        if outcome not in ("accepted", "rejected"):
            bug = str(result.get("bug", "")).strip().splitlines()[-1:]
            self.notable.append(f"{kind}: {name}: {result.get('ended') or outcome} {''.join(bug)}")
        return outcome

    @property
    def is_good(self) -> bool:
        return not any(counts[name] for counts in self.counts.values() for name in FORBIDDEN)

    def table(self) -> str:
        head = ["", "inputs", *OUTCOMES, "peak MB"]
        rows = [
            [kind, counts.total(), *(counts[o] for o in OUTCOMES), self.peak[kind] >> 20]
            for kind, counts in sorted(self.counts.items())
        ]
        total = sum(self.counts.values(), Counter[str]())
        rows.append(
            ["all", total.total(), *(total[o] for o in OUTCOMES), max(self.peak.values()) >> 20]
        )
        return "\n".join("".join(f"{cell!s:>13}" for cell in row) for row in [head, *rows])


def campaign(count: int, seed: int, workers: int, keep: Path, *, with_bombs: bool = True) -> Report:
    """Read the bombs, and ``count`` damaged files."""
    report = Report()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "bombs").mkdir()
        bombs = write_bombs(place / "bombs") if with_bombs else []
        everyone = [Worker() for _ in range(workers)]
        idle = list(everyone)

        def work(kind: str, name: str, data: bytes) -> None:
            worker = idle.pop()
            path = place / name
            path.write_bytes(data)
            if report.add(kind, name, worker.read(path)) not in ("accepted", "rejected"):
                keep.mkdir(parents=True, exist_ok=True)
                (keep / name).write_bytes(data)
            path.unlink()
            idle.append(worker)

        damaged = (
            (kind, f"{seed}-{i:06d}{ending}", data)
            for i, (kind, ending, data) in enumerate(islice(inputs(seed, bombs), count))
        )
        whole = (("bombs", bomb.name, bomb.read_bytes()) for bomb in bombs)
        try:
            with ThreadPoolExecutor(workers) as pool:
                running: set[Future[None]] = set()
                for item in chain(whole, damaged):
                    running.add(pool.submit(work, *item))
                    if len(running) >= workers:
                        done, running = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            future.result()
                for future in running:
                    future.result()
        finally:
            for worker in everyone:
                worker.end()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20_000, help="damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="gets notable inputs")
    flags = parser.parse_args()
    report = campaign(flags.count, flags.seed, flags.workers, flags.keep)
    print(report.table())
    print(*report.notable, sep="\n")
    if report.notable:
        print(f"these inputs are in {flags.keep}")
    print(f"bound: {BOUND >> 20} MB; {SECONDS} s; seed {flags.seed}")
    sys.exit(not report.is_good)


if __name__ == "__main__":
    main()
