"""Shared by the benchmarks: real text that every Python has, and paired timing.

Nothing here imports torch, so that a process that only prepares text stays small.
"""

import gc
import json
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
# A checkout that is not installed: the packages lie at its root.
sys.path.insert(0, str(ROOT))


def sources(where: str, seed: int) -> Iterator[str]:
    """Python sources below a directory of the interpreter (a name of sysconfig), shuffled."""
    paths = sorted(Path(sysconfig.get_path(where)).rglob("*.py"))
    if where == "stdlib":
        paths = [path for path in paths if "site-packages" not in path.parts]
    random.Random(seed).shuffle(paths)
    for path in paths:
        text = path.read_bytes().decode(errors="ignore")
        if text:
            yield text


def source_documents(seed: int, *sizes: int, where: str = "purelib") -> list[list[bytes]]:
    """Whole source files, dealt out to sets of at least ``sizes`` bytes; no file is in two."""
    texts = sources(where, seed)
    sets = []
    for size in sizes:
        documents: list[bytes] = []
        taken = 0
        while taken < size:
            documents.append(next(texts).encode())
            taken += len(documents[-1])
        sets.append(documents)
    return sets


def short_documents(total: int, seed: int) -> list[bytes]:
    """Documents of 0.2 to 8 KB, 2 to 3 KB on average: Python's help topics and library sources."""
    from pydoc_data.topics import topics

    draw = random.Random(seed)
    texts = [text for _, text in sorted(topics.items())]
    for text in sources("stdlib", seed):
        texts.append(text)
        if sum(map(len, texts)) > 2 * total + (1 << 20):
            break
    draw.shuffle(texts)
    documents: list[bytes] = []
    taken = 0
    for text in texts:
        start = 0
        while start < len(text) and taken < total:
            length = int(min(max(draw.lognormvariate(7.5, 0.8), 200), 8000))
            piece = text[start : start + length].encode()[:8000].decode(errors="ignore").encode()
            start += length
            if len(piece) >= 200:
                documents.append(piece)
                taken += len(piece)
    return documents


def write_jsonl(path: Path, documents: Sequence[bytes]) -> None:
    with path.open("w") as file:
        for document in documents:
            file.write(json.dumps({"text": document.decode()}) + "\n")


def in_batches(documents: Sequence[bytes], batch_bytes: int) -> list[list[bytes]]:
    """Neighbouring documents, a batch ending with the one that fills it: as workers do it."""
    batches: list[list[bytes]] = [[]]
    filled = 0
    for document in documents:
        if filled >= batch_bytes:
            batches.append([])
            filled = 0
        batches[-1].append(document)
        filled += len(document)
    return batches


def seconds(function: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def alternating(rounds: int, *functions: Callable[[], object]) -> list[tuple[float, ...]]:
    """Seconds that each function took, round by round: what slows a machine down for a while slows
    down all of them, so that quotients within a round can be trusted."""
    for function in functions:
        function()  # warm-up
    return [tuple(seconds(function) for function in functions) for _ in range(rounds)]


def quotient(times: Sequence[tuple[float, ...]], upper: int, lower: int) -> float:
    """Median over the rounds of one function's time as a multiple of another's."""
    return median(row[upper] / row[lower] for row in times)


def spread(times: Sequence[tuple[float, ...]], upper: int, lower: int) -> str:
    values = [row[upper] / row[lower] for row in times]
    return f"{min(values):.2f} to {max(values):.2f} in {len(values)} rounds"


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"
