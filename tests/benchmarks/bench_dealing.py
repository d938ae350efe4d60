"""What a rank of R reads of a large set with the dataloader's defaults, and how full rows are.

The set is about 100 MB of real text in record batches of a megabyte, patched at random at the rates
of its kinds, whose shards are listed under so many names (hard links) that the default number of
lanes has enough text: 17 GB. Ranks need no peers, so each is measured alone, for an epoch:

- bytes that the process has read from files, the set's tables included, as a multiple of the rank's
  share of the shards' bytes; target: at most 1.1 for 8, 64 and 512 ranks;
- padding of tokens and of patches: of one kind, of three sets at once (code, prose, books), of
  their documents shuffled into one set, as ``prepare_corpus.py`` does it, and of shards of one
  kind each in one set;
- memory of one rank alone, which holds a window of every lane, for each window.
"""

import argparse
import os
import random
import sys
import tempfile
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from common import ROOT, short_documents, source_documents, verdict

sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
from support.shard_sets import PATCHER, write_manifest, write_shards

from pipeline.shards.entries import read_entries
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory
from train.data.dataloader import ShardDataLoader
from train.data.lanes import LEAST_WINDOWS
from train.data.row_settings import LANES, WINDOW_BYTES

TARGET = 1.1
SEQ_LEN, BATCH = 8192, 8


def write_kinds(directory: str, size: int) -> list[str]:
    """Sets of code, prose and books, of so many bytes each, and of all their documents shuffled,
    in record batches of a megabyte."""
    draw = random.Random(2)
    code, parts = source_documents(0, size, size)
    books = []
    while parts:
        count = draw.randint(30, 120)
        books.append(b"".join(parts[:count]))
        del parts[:count]
    kinds = {
        name: [(text, draw.gauss(rate, spread)) for text in texts]
        for name, texts, rate, spread in (
            ("code", code, 0.15, 0.02),
            ("prose", short_documents(size, 1), 0.24, 0.03),
            ("books", books, 0.21, 0.01),
        )
    }
    kinds["shuffled"] = list(chain(*kinds.values()))
    draw.shuffle(kinds["shuffled"])
    for name, rated in kinds.items():
        texts, rates = zip(*rated, strict=True)
        per_batch = max(1, round(1e6 * len(texts) / sum(map(len, texts))))
        write_shards(f"{directory}/{name}", texts, rates=rates, per_batch=per_batch, per_shard=16)
    return [f"{directory}/{name}" for name in kinds]


def linked(urls: list[str], directory: str, size: int) -> str:
    """A set that lists the shards of all sets so often that it has ``size`` tokens."""
    output = OutputDirectory(directory)
    Path(directory, "shards").mkdir(parents=True)
    entries = []
    tokens = number = 0
    while tokens < size:
        for url in urls:
            for entry in read_entries(OutputDirectory(url)).values():
                copy = replace(entry, name=f"{number:06d}-00000-00000")
                os.link(f"{url}/{entry.path}", f"{directory}/{copy.path}")
                entries.append(copy)
                tokens += entry.statistics["tokens"]
                number += 1
    write_manifest(
        output,
        {"patcher": PATCHER.to_json(), "columns": ShardSet(urls[0]).manifest["columns"]},
        entries,
    )
    return directory


def loader(urls: list[str], rank: int, ranks: int, *, infinite: bool = False) -> ShardDataLoader:
    config = ShardDataLoader.Config(shards=urls, infinite=infinite)
    return config.build(dp_world_size=ranks, dp_rank=rank, seq_len=SEQ_LEN, local_batch_size=BATCH)


def bytes_read() -> int:
    """Bytes that this process has read from files, in the page cache or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def report_reading(url: str, ranks: int) -> None:
    shards = ShardSet(url).shards
    share = int(shards.shard_bytes.sum()) / ranks
    rank = ranks // 3
    before = bytes_read()
    one = loader([url], rank, ranks)
    text, padding = padding_of(one)
    read = (bytes_read() - before) / share
    text_share = text / (int(shards.tokens.sum()) / ranks)
    print(
        f"rank {rank} of {ranks}, {one.stream.lanes} lanes: reads {read:.3f} of its share, target "
        f"<= {TARGET}: {verdict(read <= TARGET)}; yields {text_share:.3f} of its share of the "
        f"text; {padding}"
    )


def padding_of(one: ShardDataLoader) -> tuple[int, str]:
    """Bytes of text that a loader yields, and the padding of its rows."""
    text, tokens, patches = 0, [], []
    for inputs, labels in one:
        text += int((labels >= 0).sum())
        tokens.append((inputs["input"] == -1).float().mean().item())
        patches.append((inputs["patch_lengths"] == 0).float().mean().item())
    return text, f"padding of tokens {np.mean(tokens):.2%}, of patches {np.mean(patches):.2%}"


def report_padding(urls: list[str]) -> None:
    one = loader(urls, 0, 1)
    names = " + ".join(Path(url).name for url in urls)
    print(f"{names}, {one.stream.window_bytes >> 20} MiB a window: {padding_of(one)[1]}")


def report_memory(url: str) -> None:
    before = resident()
    one = loader([url], 0, 1, infinite=True)
    batches = iter(one)
    for _ in islice(batches, LANES // BATCH + 1):
        pass
    used = resident() - before
    print(
        f"one rank alone holds {used / 1e9:.1f} GB: {used / LANES / one.stream.window_bytes:.2f} "
        f"bytes per byte of text in {LANES} windows of {one.stream.window_bytes >> 20} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[512, 64, 8])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        urls = write_kinds(directory, 40_000_000)
        for some in (*([url] for url in urls), urls[:3]):
            report_padding(some)
        size = LANES * LEAST_WINDOWS * WINDOW_BYTES
        report_reading(linked(urls[:3], f"{directory}/unshuffled", size), 64)
        large = linked(urls[3:], f"{directory}/large", size)
        for ranks in arguments.ranks:
            report_reading(large, ranks)
        report_memory(large)


if __name__ == "__main__":
    main()
