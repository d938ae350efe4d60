"""The training dataloader: text per second on one core, and padding; target: 50 times plain Python.

About 40 MB of Python sources, Python's documentation, short pieces and books made of many files,
patched at random at the rates of their kinds, as shards on a local disk (in the page cache). The
process and its threads are pinned to one core, and its processor time is what counts: others use
the machine too. Printed, measured in turn:

- the multiple of the rate of a loader written the obvious way: Python lists of tokens and patch
  lengths, document after document, sliced into rows, ``torch.tensor``;
- the share of the rate at which numpy copies the same number of bytes as the batches hold;
- where the time goes: reading and packing alone;
- padding of tokens and of patches.
"""

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from common import ROOT, quotient, short_documents, source_documents, spread, verdict

sys.path.insert(0, str(ROOT / "tests"))

import numpy as np
import torch
from support.shard_sets import write_shards

from pipeline import open_shards
from train.data.dataloader import ShardDataLoader

TARGET = 50.0
TARGET_PADDING = 0.02
ROUNDS = 5
BATCH = 8
PLAIN_BYTES = 4_000_000
"""Of text, after which the plain loader is stopped."""


def write_corpora(directory: str) -> list[str]:
    """Three shard sets: code, prose and short pieces, books."""
    code, book_parts = source_documents(0, 16_000_000, 12_000_000)
    short = short_documents(12_000_000, 1)
    draw = random.Random(2)
    books = []
    while book_parts:
        size = draw.randint(30, 120)
        books.append(b"".join(book_parts[:size]))
        del book_parts[:size]
    urls = []
    for name, texts, rates, per_batch in (
        ("code", code, [draw.gauss(0.15, 0.02) for _ in range(999)], 150),
        ("prose", short, [draw.gauss(0.24, 0.03) for _ in range(999)], 400),
        ("books", books, [draw.gauss(0.21, 0.01) for _ in range(999)], 2),
    ):
        urls.append(f"{directory}/{name}")
        write_shards(urls[-1], texts, rates=rates, per_batch=per_batch, per_shard=8)
    return urls


def loader(urls: list[str], seq_len: int) -> ShardDataLoader:
    config = ShardDataLoader.Config(shards=urls, infinite=False)
    return config.build(dp_world_size=1, dp_rank=0, seq_len=seq_len, local_batch_size=BATCH)


def plain_batches(urls: list[str], seq_len: int, patches: int) -> Iterator[tuple]:
    """The obvious loader: the same rows but for their order and how well they are packed."""
    row: tuple[list[int], list[int], list[int]] = ([], [], [])
    rows = []

    def finish() -> None:
        tokens, labels, lengths = row
        tokens += [-1] * (seq_len - len(tokens))
        labels += [-100] * (seq_len - len(labels))
        lengths += [0] * (patches - len(lengths))
        rows.append((tokens, labels, lengths))

    for url in urls:
        for document in open_shards(url):
            tokens = [1] + [byte + 4 for byte in document.text.encode()] + [2]
            lengths = document.patch_lengths.tolist()
            position, patch = 0, 1
            while patch < len(lengths):
                taken, count = 1, 1
                while (
                    patch < len(lengths)
                    and len(row[0]) + taken + lengths[patch] <= seq_len
                    and len(row[2]) + count < patches
                ):
                    taken += lengths[patch]
                    count += 1
                    patch += 1
                if count > 1:
                    stop = position + taken - 1
                    row[0].extend([*tokens[position:stop], 2])
                    row[1].extend([*tokens[position + 1 : stop + 1], -100])
                    row[2].extend([1, *lengths[patch - count + 1 : patch]])
                    position = stop
                if patch < len(lengths):
                    finish()
                    row = ([], [], [])
                    if len(rows) == BATCH:
                        yield tuple(torch.tensor(part) for part in zip(*rows, strict=True))
                        rows.clear()


def run_plain(urls: list[str], seq_len: int, patches: int) -> int:
    """Bytes of text that the plain loader gave."""
    given = 0
    for _, labels, _ in plain_batches(urls, seq_len, patches):
        given += int((labels >= 4).sum())
        if given > PLAIN_BYTES:
            break
    return given


def measure_padding(urls: list[str], seq_len: int) -> tuple[float, float, int]:
    """Share of positions and of patches that are padding, and the bytes of one batch."""
    tokens, patches, size = [], [], 0
    for inputs, labels in loader(urls, seq_len):
        tokens.append((inputs["input"] == -1).float().mean().item())
        patches.append((inputs["patch_lengths"] == 0).float().mean().item())
        size = sum(t.nbytes for t in (*inputs.values(), labels))
    return float(np.mean(tokens)), float(np.mean(patches)), size


def run_ours(urls: list[str], seq_len: int) -> None:
    for _ in loader(urls, seq_len):
        pass


def run_windows(urls: list[str], seq_len: int) -> None:
    stream = loader(urls, seq_len).stream
    for _ in stream.windows(stream.start(range(stream.lanes)), infinite=False):
        pass


def in_turn(*functions: Callable[[], object]) -> list[tuple[float, ...]]:
    """Seconds of processor time that each function took, threads included, round by round."""

    def seconds(function: Callable[[], object]) -> float:
        gc.collect()
        began = time.process_time()
        function()
        return time.process_time() - began

    return [tuple(seconds(function) for function in functions) for _ in range(ROUNDS + 1)][1:]


def report(urls: list[str], seq_len: int) -> None:
    text = sum(open_shards(url).statistics.bytes for url in urls)
    ours = loader(urls, seq_len)
    patches = ours.stream.patches_per_row
    tokens_padding, patches_padding, batch_bytes = measure_padding(urls, seq_len)
    plain_text = run_plain(urls, seq_len, patches)
    batches = sum(1 for _ in loader(urls, seq_len))
    source = np.ones(batch_bytes, np.uint8)
    target = np.empty_like(source)

    def copy() -> None:
        for _ in range(batches):
            np.copyto(target, source)

    big = np.ones(256 << 20, np.uint8)
    big_copy = np.empty_like(big)
    times = in_turn(
        lambda: run_ours(urls, seq_len),
        lambda: run_plain(urls, seq_len, patches),
        copy,
        lambda: run_windows(urls, seq_len),
        lambda: np.copyto(big_copy, big),
    )
    rates = [[size / row[i] for row in times] for i, size in ((0, text), (1, plain_text))]
    faster = median(a / b for a, b in zip(*rates, strict=True))
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    print(f"rows of {seq_len} tokens and {patches} patches, {text / 1e6:.0f} MB of text")
    print(
        f"  dataloader / plain Python: {faster:.1f} ({min(ratios):.1f} to {max(ratios):.1f} in "
        f"{ROUNDS} rounds), target {TARGET:.0f}: {verdict(faster >= TARGET)}"
    )
    print(f"  {median(rates[0]) / 1e6:.0f} and {median(rates[1]) / 1e6:.1f} MB of text a second")
    print(
        f"  time of copying its batches in the cache / dataloader: {quotient(times, 2, 0):.3f} "
        f"({spread(times, 2, 0)})"
    )
    written = batch_bytes * batches / median(row[0] for row in times)
    copied = median(big.nbytes / row[4] for row in times)
    print(
        f"  batches at {written / 1e9:.2f} GB/s, memory copied at {copied / 1e9:.1f} GB/s: "
        f"{written / copied:.2f}"
    )
    print(
        f"  reading and packing alone / all: {quotient(times, 3, 0):.2f} ({spread(times, 3, 0)}); "
        f"{text / median(row[3] for row in times) / 1e6:.0f} MB/s"
    )
    for what, padding in (("tokens", tokens_padding), ("patches", patches_padding)):
        met = verdict(padding < TARGET_PADDING)
        print(f"  padding of {what}: {padding:.2%}, target < {TARGET_PADDING:.0%}: {met}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seq-len", type=int, nargs="+", default=[2048, 4096, 8192])
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:
        urls = write_corpora(directory)
        for seq_len in arguments.seq_len:
            report(urls, seq_len)


if __name__ == "__main__":
    main()
