"""Large shard sets: opening and closing one, and what checking its record batches costs.

- opening a set of 100,000 shards, and one of 16,000 in format versions 2 and 1: seconds and memory,
  each in a process of its own, beyond what importing takes;
- closing 100,000 shards: what the driver takes, and a worker for each part;
- comparing record batches with their hashes, as a share of reading them, and of loading rows.

The entries and summaries of these sets are copies of real ones; shards are not needed. A number on
the command line stands for 100,000.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from common import ROOT, alternating, short_documents

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
from support import tiny

from model import NGramEntropyModel, Patcher
from model.tokenizer import encode_documents
from pipeline.shards import record_batches
from pipeline.shards.closing import Closing, Part, make_part
from pipeline.shards.entries import ShardEntry, commit_entry, read_entries, shard_name
from pipeline.shards.record_batches import BatchIndex
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import SHARDS_PER_PART
from pipeline.storage.checked_json import to_json
from pipeline.storage.output import OutputDirectory
from train.data.row_settings import RowSettings
from train.data.row_stream import RowStream

SHARDS = int(sys.argv[1]) if sys.argv[1:2] and sys.argv[1].isdigit() else 100_000
SHARDS_OF_VERSION_1 = 16_000
BATCHES = 64
TEXT_BYTES = 32 << 20
REAL_PARTS = 3
"""Parts whose entries and summaries are really there; the driver gets them again and again."""
ROUNDS = 5
PROVENANCE = {"format_version": 2}
OPENING = """
import re, sys, time
sys.path.insert(0, {root!r})
from pipeline.shards.shard_set import ShardSet
def megabytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e3
before, began, cpu = megabytes("VmRSS"), time.perf_counter(), time.process_time()
shards = ShardSet({url!r})
if shards.is_checked:
    arrays = shards.shards
    assert arrays.tokens.sum() > 0 and shards.batch_index(len(arrays.name) - 1).rows.sum() > 0
else:
    assert sum(shard.tokens for shard in shards.entries) > 0
seconds, used = time.perf_counter() - began, time.process_time() - cpu
took = f"{{seconds:.2f}} s ({{used:.2f}} s of a core)"
print(f"{{took}}, {{megabytes('VmHWM') - before:.0f}} MB more than the {{before:.0f}} of imports")
"""


def make_set(directory: Path) -> ShardSet:
    """One shard of 32 MB of text."""
    documents = short_documents(TEXT_BYTES, seed=7)
    model = NGramEntropyModel.fit([encode_documents(documents[:2000])])
    (directory / "in").mkdir(parents=True)
    lines = (json.dumps({"text": text.decode()}) + "\n" for text in documents)
    (directory / "in" / "a.jsonl").write_text("".join(lines))
    settings = {"shard_bytes": 1 << 30}
    return tiny.make_shards(directory / "set", directory / "in", model, Patcher(1.5), **settings)


class Copies:
    """Entries of as many shards as one likes, each with record batches of its own."""

    def __init__(self, shards: ShardSet):
        self.shards = shards
        (self.entry,) = read_entries(shards.output).values()
        self.summary = shards.output.read(self.entry.summary_path)
        self._draw = np.random.default_rng(0)

    def part(self, number: int) -> list[ShardEntry]:
        first = number * SHARDS_PER_PART
        return [self._copy(first + i) for i in range(SHARDS_PER_PART)]

    def _copy(self, number: int) -> ShardEntry:
        length, rows = self._draw.integers(1 << 19, 1 << 20, BATCHES), np.full(BATCHES, 400)
        index = BatchIndex(
            length.cumsum() - length,
            length,
            rows,
            length + 2 * rows,
            self._draw.integers(0, 1 << 64, BATCHES, np.uint64),
        )
        name = shard_name(number // 7, number % 7, 0)
        return replace(self.entry, name=name, batches=index.to_json())

    def write(self, directory: Path, parts: int) -> OutputDirectory:
        """Entries and summaries as workers would have committed them."""
        output = OutputDirectory(str(directory))
        (directory / "summaries").mkdir(parents=True)
        summary = directory / "summary"
        summary.write_bytes(self.summary)
        for number in range(parts):
            for entry in self.part(number):
                commit_entry(output, entry)
                os.link(summary, directory / entry.summary_path)
        return output


def closing(copies: Copies, directory: Path) -> OutputDirectory:
    """Close a set, and print what that takes."""
    parts = min(SHARDS // SHARDS_PER_PART, REAL_PARTS)
    output = copies.write(directory / "closing", parts)
    began = time.process_time()
    messages = []
    for number in range(parts):
        names = [entry.name for entry in copies.part(number)]
        messages.append(make_part(output, list(read_entries(output, names).values())).to_message())
    each = (time.process_time() - began) / parts
    Path("/proc/self/clear_refs").write_text("5")  # from now on the peak is this one's
    began, cpu = time.perf_counter(), time.process_time()
    with Closing(output, dict(copies.shards.manifest) | PROVENANCE) as closes:
        for number in range(SHARDS // SHARDS_PER_PART):
            closes.add(Part.from_message(messages[number % parts]))
    took = time.perf_counter() - began, time.process_time() - cpu
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
    print(f"a worker's {SHARDS_PER_PART} shards: {each:.2f} s of a core")
    print(
        f"the driver's {SHARDS:,} shards: {took[0]:.1f} s ({took[1]:.1f} s of a core), at most "
        f"{peak:.0f} MB in all; columns of "
        f"{sum(output.size(name) for name in ('entries.arrow', 'batches.arrow')) / 1e6:.0f} MB, "
        f"manifest of {output.size('manifest.json') / 1e6:.2f} MB"
    )
    return output


def opening(what: str, url: str) -> None:
    """Print what opening a set takes in a process of its own."""
    program = OPENING.format(root=str(ROOT), url=url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    print(f"opening {what}: {done.stdout.strip() or done.stderr}")


def both_versions(copies: Copies, directory: Path) -> None:
    """Sets of as many shards in both versions."""
    new, old = OutputDirectory(str(directory / "v2")), OutputDirectory(str(directory / "v1"))
    shards: list[dict] = []
    with Closing(new, dict(copies.shards.manifest) | PROVENANCE) as closes:
        for number in range(SHARDS_OF_VERSION_1 // SHARDS_PER_PART):
            entries = copies.part(number)
            closes.add(make_part(new, entries))
            shards += ({**asdict(entry), "batches": None} for entry in entries)
    for shard in shards:
        del shard["batches"]
    manifest = new.read_json("manifest.json")
    del manifest["entries"], manifest["batches"]
    old.write("manifest.json", to_json(manifest | {"format_version": 1, "shards": shards}))
    print(f"a manifest of version 1 has {old.size('manifest.json') / 1e6:.0f} MB")
    for version, output in ((2, new), (1, old)):
        opening(f"{SHARDS_OF_VERSION_1:,} shards of version {version}", output.url)


def checking(shards: ShardSet) -> None:
    """Reading with and without a look at the hashes, and loading rows, which reads the same."""
    columns = ["text", "patch_lengths"]
    index = shards.batch_index(0)
    data = np.fromfile(shards.path(0), np.uint8).data
    messages = [data[a : a + n] for a, n in zip(*(index.offset, index.length), strict=True)]
    check = record_batches.xxhash.xxh3_64_intdigest

    def hashes() -> None:
        for message in messages:
            check(message)

    def reads() -> None:
        for _ in shards.shard_batches(0, columns):
            pass

    def loads() -> None:
        stream = RowStream([shards.output.url], RowSettings(8192))
        for _ in stream.windows(stream.start(range(stream.lanes)), infinite=False):
            pass

    for what, function in (("reading and decoding", reads), ("loading rows' windows", loads)):
        print(f"hashing / {what}: {paired(hashes, function)}")
    file_bytes, text = len(data), shards.statistics.bytes
    times = alternating(ROUNDS, hashes)
    print(
        f"hashing: {file_bytes / min(times)[0] / 1e9:.1f} GB/s; a shard has "
        f"{file_bytes / text:.2f} bytes per byte of text"
    )


def paired(part: Callable[[], object], whole: Callable[[], object]) -> str:
    times = alternating(ROUNDS, part, whole)
    shares = sorted(100 * part / whole for part, whole in times)
    middle = shares[len(shares) // 2]
    return f"{middle:.2f} % ({shares[0]:.2f} to {shares[-1]:.2f} in {len(shares)} rounds)"


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        shards = make_set(directory)
        checking(shards)
        copies = Copies(shards)
        output = closing(copies, directory)
        opening(f"{SHARDS:,} shards of version 2", output.url)
        both_versions(copies, directory)


if __name__ == "__main__":
    main()
