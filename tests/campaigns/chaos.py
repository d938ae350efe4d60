"""Random kills of everything that a job runs on, with reruns until it is done: ``make chaos``.

Each round runs one job on a small corpus, in a process of its own with a Ray of its own, and hits
one or two of its processes at random times: its driver, a worker (of a training: a rank), the
raylet, Ray's control store (GCS), an agent of Ray's, all of these at once, or the storage server. A
hit kills (SIGKILL), ends (SIGTERM) or stops a process for some seconds (SIGSTOP, SIGCONT). A job
that does not exit with 0 is run again. What it has written in the end has to be byte for byte what
an undisturbed run writes; of a training, the weights of the last step.

Everything follows from the seed but the moment at which a process is when it is hit.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import s3fs
from support.clusters import S3Server, an_s3_bucket
from support.jobs import ROOT, environment, files_below
from support.texts import topics, write_jsonl

from train.checkpoints.steps import read_step

JOBS = ("prepare", "patch", "export", "pretrain")
STORAGES = ("local", "s3")
VICTIMS = ("driver", "worker", "raylet", "gcs", "agent", "everything")
PATCHED = "patched"
"""The output of an undisturbed patching, which is exported and trained on."""
STEPS = 10
MOST_RUNS = 8
TIMEOUT_S = 420.0
"""Seconds after which a run counts as hanging."""
NOT_THE_SAME = ("runs/", "lease/", "run.json")
"""Paths of what may differ between two outputs: times, and the number of a rerun."""


@dataclass
class Hit:
    """One blow."""

    victim: str
    how: str
    after: float
    """Seconds since the run began."""
    pause: float
    """Seconds that a process stays stopped, or the storage away."""
    once: Callable[[], bool] = lambda: True
    """Has to be true, too, before it falls."""

    def __str__(self) -> str:
        return f"{self.victim} {self.how} at {self.after:.1f} s"


@dataclass
class Round:
    """What happened in one round."""

    job: str
    storage: str
    hits: list[str] = field(default_factory=list)
    exits: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """The last line of each run that was not done."""
    problem: str = ""
    seconds: float = 0.0

    @property
    def identical(self) -> bool:
        return not self.problem

    def row(self, number: int) -> str:
        exits = " ".join(map(str, self.exits))
        verdict = self.problem or "identical"
        return (
            f"| {number} | {self.job} {self.storage} | {'; '.join(self.hits) or 'none in time'} | "
            f"{exits} | {len(self.exits) - 1} | {self.seconds:.0f} s | {verdict} | "
            f"{'; '.join(self.said)} |"
        )


HEADER = "| round | job | hit | exits | reruns | took | output | said |\n|" + "---|" * 8


class Place:
    """Where a campaign reads and writes, locally or on S3."""

    def __init__(self, directory: Path, storage: str, server: S3Server | None):
        self.directory, self.storage, self.server = directory, storage, server
        if server is not None:
            straight = {"endpoint_url": server.variables["AWS_ENDPOINT_URL"]}
            self._s3 = s3fs.S3FileSystem(skip_instance_cache=True, client_kwargs=straight)

    def url(self, name: str) -> str:
        return str(self.directory / name) if self.server is None else f"s3://chaos/{name}"

    def contents(self, name: str) -> dict[str, bytes]:
        """The part of an output that is the same each time: files by path, or weights by name."""
        if name.endswith("pretrain"):
            step = read_step(f"{self.url(name)}/checkpoint/step-{STEPS}")
            weights = step.state_dict()
            return {each: weights[each].float().numpy().tobytes() for each in weights}
        if self.server is None:
            files = files_below(self.directory / name)
        else:
            self._s3.invalidate_cache()
            root = f"chaos/{name}/"
            files = {
                path.removeprefix(root): self._s3.cat_file(path) for path in self._s3.find(root)
            }
        return {path: data for path, data in files.items() if not path.startswith(NOT_THE_SAME)}

    def remove(self, name: str) -> None:
        if self.server is None:
            shutil.rmtree(self.directory / name, ignore_errors=True)
        else:
            self._s3.invalidate_cache()
            with suppress(FileNotFoundError):
                self._s3.rm(f"chaos/{name}", recursive=True)

    def upload(self, directory: Path, name: str) -> None:
        if self.server is not None:
            self._s3.put(str(directory), f"chaos/{name}", recursive=True)


def command(job: str, place: Place, output: str) -> list[str]:
    """The command line of a job."""
    flags = {
        "prepare": [
            *("prepare_corpus.py", "--input", place.url("in"), "--id-column", "id"),
            *("--num-chunks", "150", "--sort-bytes", "200000", "--name", "corpus"),
        ],
        "patch": [
            *("patch_corpus.py", "--input", place.url("in"), "--entropy-model", "ngram"),
            *("--target-patch-size", "4.5", "--shard-bytes", "60000", "--id-column", "id"),
        ],
        "export": [
            *("export_shards.py", "--shards", place.url(PATCHED)),
            *("--layout", "datasets"),
        ],
        "pretrain": [
            *("pretrain.py", "--dataloader.shards", place.url(PATCHED), "--config", "blt_debug"),
            *("--training.seq-len", "128", "--training.local-batch-size", "2"),
            *("--training.steps", str(STEPS), "--checkpoint.interval", "2"),
        ],
    }[job]
    script, *rest = flags
    to = "--dump-folder" if job == "pretrain" else "--output"
    rest += [to, place.url(output), "--num-workers", "2"]
    return [sys.executable, str(ROOT / "jobs" / script), *rest]


def processes(driver: psutil.Process) -> dict[str, list[psutil.Process]]:
    """The processes of a job by what they are."""
    found: dict[str, list[psutil.Process]] = {name: [] for name in VICTIMS}
    found["driver"].append(driver)
    found["everything"] = [driver, *driver.children(recursive=True)]
    for process in found["everything"][1:]:
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if line.startswith("ray::"):
                found["worker"].append(process)
            elif "raylet/raylet" in line or process.name() == "raylet":
                found["raylet"].append(process)
            elif "gcs_server" in line:
                found["gcs"].append(process)
            elif "agent" in line:
                found["agent"].append(process)
    return found


class Striker(threading.Thread):
    """Hits the processes of one run at their times."""

    def __init__(self, run: psutil.Process, hits: list[Hit], draw: random.Random, place: Place):
        super().__init__(daemon=True)
        self._run, self._hits, self._draw, self._place = run, hits, draw, place
        self.landed: list[str] = []

    def run(self) -> None:
        began = time.monotonic()
        for hit in sorted(self._hits, key=lambda hit: hit.after):
            time.sleep(max(0.0, hit.after - (time.monotonic() - began)))
            while not hit.once() and self._runs():
                time.sleep(0.01)
            with suppress(psutil.Error):
                if hit.victim == "storage":
                    self._hit_storage(hit)
                elif targets := self._wait_for(hit.victim):
                    hit.after = time.monotonic() - began
                    if hit.victim != "everything":
                        targets = [self._draw.choice(targets)]
                    for target in targets:
                        self._hit(target, hit)
                else:
                    continue
                self.landed.append(str(hit))

    def _runs(self) -> bool:
        with suppress(psutil.Error):
            return self._run.is_running() and self._run.status() != psutil.STATUS_ZOMBIE
        return False

    def _wait_for(self, victim: str) -> list[psutil.Process]:
        """The processes of a kind, as soon as there are some; none if the run ends before."""
        while self._runs():
            if found := processes(self._run)[victim]:
                return found
            time.sleep(0.05)
        return []

    def _hit_storage(self, hit: Hit) -> None:
        server = self._place.server
        assert server is not None
        if hit.how == "SIGSTOP":
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(hit.pause)
            server.process.send_signal(signal.SIGCONT)
        else:
            server.kill()
            time.sleep(hit.pause)
            server.start()

    @staticmethod
    def _hit(process: psutil.Process, hit: Hit) -> None:
        process.send_signal(getattr(signal, hit.how))
        if hit.how == "SIGSTOP":
            time.sleep(hit.pause)
            with suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)


def run_once(
    line: list[str], env: dict[str, str], hits: list[Hit], draw: random.Random, place: Place
) -> tuple[int, str, list[str], float]:
    """Run a command while it is hit: its exit status (negative: the signal that killed it; 124: it
    hangs), what it says, the hits that landed, and its seconds."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        driver = psutil.Popen(line, env=env, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        striker = Striker(driver, hits, draw, place)
        striker.start()
        started: dict[int, psutil.Process] = {}
        while driver.poll() is None and time.monotonic() - began < TIMEOUT_S:
            with suppress(psutil.Error):
                started |= {child.pid: child for child in driver.children(recursive=True)}
            time.sleep(0.1)
        status = 124 if driver.poll() is None else driver.returncode
        seconds = time.monotonic() - began
        striker.join(60)
        time.sleep(0.5)  # a process that filters the driver's last words writes on
        for process in [driver, *started.values()]:  # a killed driver's Ray ends a little later
            with suppress(psutil.Error):
                process.kill()
        driver.wait()
        psutil.wait_procs(list(started.values()), timeout=20)
        said.seek(0)
        return status, said.read(), striker.landed, seconds


def draw_hits(draw: random.Random, storage: str, seconds: float) -> list[Hit]:
    """One or two hits in a run of so many seconds."""
    hits = []
    for _ in range(draw.randint(1, 2)):
        victims = [*VICTIMS, *(["storage"] * 2 if storage == "s3" else [])]
        victim = draw.choice(victims)
        hows = {"storage": ("SIGKILL", "SIGSTOP"), "everything": ("SIGKILL",)}.get(
            victim, ("SIGKILL", "SIGTERM", "SIGSTOP")
        )
        hits.append(
            Hit(victim, draw.choice(hows), draw.uniform(2.0, 0.7 * seconds), draw.uniform(2.0, 8.0))
        )
    return hits


def play(
    job: str,
    place: Place,
    reference: dict[str, bytes],
    env: dict[str, str],
    draw: random.Random,
    hits_of_run: Callable[[int], list[Hit]],
) -> Round:
    """One round: a job that is hit, and run again until it is done."""
    result, output = Round(job, place.storage), f"out-{job}"
    place.remove(output)
    began = time.monotonic()
    while not result.exits or result.exits[-1] != 0:
        if len(result.exits) == MOST_RUNS:
            result.problem = "not done"
            break
        hits = hits_of_run(len(result.exits))
        line = command(job, place, output)
        status, said, landed, _ = run_once(line, env, hits, draw, place)
        result.hits += landed
        result.exits.append(status)
        if place.server is None:  # what has a final name is whole, even now
            for path in (place.directory / output).glob("entries/*.json"):
                json.loads(path.read_text())
        if status:
            result.said.append((said.strip().splitlines() or ["(nothing)"])[-1][:240])
        if status == 124:
            result.problem = "hangs"
        elif "Traceback" in said or "constructor arguments" in said:
            result.problem = "shows a traceback"
        elif status == 1 and "error: " not in said and "could not be" not in said:
            result.problem = "ends without a sentence"
        if result.problem:
            print(said[-6000:], file=sys.stderr)
            break
    result.seconds = time.monotonic() - began
    if not result.problem:
        result.problem = differences(reference, place.contents(output))
    return result


def differences(reference: dict[str, bytes], now: dict[str, bytes]) -> str:
    """Names what differs; empty if nothing does."""
    wrong = [
        path
        for path in sorted(reference.keys() | now.keys())
        if reference.get(path) != now.get(path)
    ]
    return f"differs: {', '.join(wrong[:3])} ({len(wrong)} files)" if wrong else ""


@contextmanager
def places(directory: Path, storages: tuple[str, ...]) -> Iterator[dict[str, Place]]:
    """The corpus and the references' places, by storage."""
    documents = [(f"{n}-{name}", f"{n} {text}") for n in range(4) for name, text in topics()]
    part = len(documents) // 4
    for i in range(4):
        write_jsonl(directory / "in" / f"{i}.jsonl", documents[i * part : (i + 1) * part])
    found = {"local": Place(directory, "local", None)}
    if "s3" not in storages:
        yield found
        return
    (directory / "s3").mkdir()
    server = S3Server(directory / "s3")
    server.start()
    try:
        with an_s3_bucket(server.variables, "chaos"):
            found["s3"] = Place(directory, "s3", server)
            found["s3"].upload(directory / "in", "in")
            yield found
    finally:
        server.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=JOBS)
    parser.add_argument("--storages", nargs="+", choices=STORAGES, default=STORAGES)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends, too
    draw = random.Random(args.seed)
    kinds = [(job, storage) for job in args.jobs for storage in args.storages]
    failed = 0
    with (
        tempfile.TemporaryDirectory() as temporary,
        places(Path(temporary), tuple(args.storages)) as by_storage,
    ):
        references: dict[tuple[str, str], tuple[dict[str, bytes], float]] = {}
        print(HEADER, flush=True)
        for number in range(args.rounds):
            job, storage = kinds[number % len(kinds)]
            place = by_storage[storage]
            env = environment(RAY_AUTH_MODE="disabled", OMP_NUM_THREADS="1")
            env |= {} if place.server is None else place.server.variables
            needed = [job] if job in ("prepare", "patch") else ["patch", job]
            for name in needed:
                if (name, storage) not in references:
                    # What an export says of itself names its directory.
                    output = PATCHED if name == "patch" else f"out-{name}"
                    line = command(name, place, output)
                    status, said, _, seconds = run_once(line, env, [], draw, place)
                    if status:
                        raise SystemExit(
                            f"{name} {storage}, undisturbed, exits with {status}: {said}"
                        )
                    references[name, storage] = (place.contents(output), seconds)
            reference, seconds = references[job, storage]
            # The first run and, now and then, a rerun as well.
            plan = {0: draw_hits(draw, storage, seconds)}
            if draw.random() < 0.4:
                plan[1] = draw_hits(draw, storage, seconds)
            result = play(job, place, reference, env, draw, lambda n, plan=plan: plan.get(n, []))
            failed += not result.identical
            print(result.row(number + 1), flush=True)
    print(f"\n{args.rounds - failed} of {args.rounds} rounds: byte-identical (seed {args.seed})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
