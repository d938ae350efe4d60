"""Shuffling a corpus: against GNU shuf and Ray Data's random_shuffle, and as the corpus grows.

``prepare_corpus.py`` reads JSONL, checks every line, shuffles through storage and writes chunks;
``shuf`` holds all lines in memory, and looks at nothing; Ray Data reads and writes JSONL through
its object store. Rates are MB of text for each second of processor time, all processes counted,
and of wall time. Memory is the most that the process tree held at a time (proportional set size:
shared pages count once).

    bench_shuffle.py [GIGABYTES ...]    (by default 1, then 8)
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from common import ROOT, short_documents, verdict

GIGABYTE = 10**9
CHUNKS_PER_GIGABYTE = 4
ROUNDS = 3
MEMORY_TARGET = 2 * GIGABYTE
OBJECT_STORE_BYTES = 600 * 10**6
"""For Ray Data's shuffle, which spills the rest to disk: so that it, too, keeps to 2 GB."""


class Run(NamedTuple):
    wall: float
    """Seconds."""
    processor: float
    """Seconds, of all processes."""
    memory: int
    """Bytes."""


def write_corpus(directory: Path, gigabytes: int) -> float:
    """Files of 100 MB; documents over and over, each time with another number in front.

    Returns:
        megabytes of text.
    """
    documents = [document.decode() for document in short_documents(16_000_000, seed=4)]
    directory.mkdir()
    number = text_bytes = 0
    for part in range(10 * gigabytes):
        written = 0
        with (directory / f"{part:03}.jsonl").open("w") as file:
            while written < GIGABYTE // 10:
                text = f"{number}\n{documents[number % len(documents)]}"
                line = json.dumps({"id": str(number), "text": text}, ensure_ascii=False)
                written += file.write(line + "\n")
                text_bytes += len(text.encode())
                number += 1
    return text_bytes / 1e6


def measured(*command: object, **options: object) -> Run:
    """Run a command, and watch its process tree."""
    began = time.monotonic()
    process = psutil.Popen(list(map(str, command)), **options)
    memory, processor = 0, {}
    while process.poll() is None:
        held = 0
        for one in _tree(process):
            try:
                held += one.memory_full_info().pss
                times = one.cpu_times()
                processor[one.pid] = times.user + times.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        memory = max(memory, held)
        time.sleep(1)  # looking costs time of the processes that are looked at
    assert process.returncode == 0, command
    return Run(time.monotonic() - began, sum(processor.values()), memory)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    """The process and all that came of it: Ray's are its children."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def ours(corpus: Path, output: Path, chunk_format: str, chunks: int) -> Run:
    shutil.rmtree(output, ignore_errors=True)
    job = [sys.executable, ROOT / "jobs" / "prepare_corpus.py", "--input", corpus]
    flags = ["--output", output, "--num-chunks", chunks, "--chunk-format", chunk_format]
    return measured(*job, *flags, "--id-column", "id", stdout=subprocess.DEVNULL)


def gnu_shuf(corpus: Path, output: Path) -> Run:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    return measured("bash", "-c", f"cat {corpus}/*.jsonl | shuf > {output}/shuffled.jsonl")


def ray_shuffle(corpus: Path, output: Path) -> Run:
    shutil.rmtree(output, ignore_errors=True)
    child = [sys.executable, __file__, "--ray", corpus, output]
    return measured(*child, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ray_child(corpus: str, output: str) -> None:
    import ray
    import ray.data

    ray.init("local", object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False)
    ray.data.read_json(corpus).random_shuffle(seed=0).write_json(output)


def compare(directory: Path) -> None:
    """All of them on 1 GB, round by round."""
    megabytes = write_corpus(directory / "corpus", 1)
    corpus, output = directory / "corpus", directory / "output"
    ways = {
        "ours, to JSONL": lambda: ours(corpus, output, "jsonl", CHUNKS_PER_GIGABYTE),
        "ours, to Parquet": lambda: ours(corpus, output, "parquet", CHUNKS_PER_GIGABYTE),
        "GNU shuf": lambda: gnu_shuf(corpus, output),
        "Ray Data random_shuffle": lambda: ray_shuffle(corpus, output),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            runs[name].append(way())
    for name, found in runs.items():
        processor, wall = (median(getattr(r, field) for r in found) for field in Run._fields[1::-1])
        print(
            f"{name}: {megabytes / processor:.1f} MB/s of a core, {megabytes / wall:.1f} MB/s, "
            f"{max(run.memory for run in found) / 1e6:.0f} MB at most"
        )
    for name in list(ways)[2:]:
        for field in ("processor", "wall"):
            quotients = [
                getattr(b, field) / getattr(a, field)
                for a, b in zip(runs["ours, to JSONL"], runs[name], strict=True)
            ]
            print(
                f"result: {name} / ours, {field} time: {median(quotients):.2f} "
                f"({min(quotients):.2f} to {max(quotients):.2f} in {ROUNDS} rounds)"
            )
    most = max(run.memory for name in list(ways)[:2] for run in runs[name])
    met = verdict(most < MEMORY_TARGET)
    print(f"result: {most / 1e6:.0f} MB for 1 GB (target < {MEMORY_TARGET / 1e6:.0f}, {met})")


def grow(directory: Path, sizes: list[int]) -> None:
    """Ours, as the corpus grows."""
    found = []
    for gigabytes in sizes:
        corpus = directory / f"corpus-{gigabytes}"
        megabytes = write_corpus(corpus, gigabytes)
        run = ours(corpus, directory / "output", "parquet", CHUNKS_PER_GIGABYTE * gigabytes)
        shutil.rmtree(corpus)
        found.append(run)
        print(
            f"{gigabytes} GB: {run.wall / megabytes * 1e3:.1f} s a GB, "
            f"{megabytes / run.processor:.1f} MB/s of a core, {run.memory / 1e6:.0f} MB at most"
        )
    first, last = found[0], found[-1]
    growth = sizes[-1] / sizes[0]
    print(
        f"result: {growth:.0f} times the corpus: {last.wall / first.wall / growth:.2f} times the "
        f"time a GB, {last.memory / first.memory:.2f} times the memory (target: flat)"
    )


def main() -> None:
    if sys.argv[1:2] == ["--ray"]:
        ray_child(*sys.argv[2:])
        return
    sizes = [int(argument) for argument in sys.argv[1:]] or [1, 8]
    print(f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as directory:
        compare(Path(directory))
        grow(Path(directory), sizes)


if __name__ == "__main__":
    main()
