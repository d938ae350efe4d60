"""Rows of a tokenizer's ids, made as shards are read: text per second of a core.

12 MB of short documents and a tokenizer of 32,000 tokens trained on them. The process and its
threads are pinned to one core, and its processor time is what counts. Printed, measured in turn:

- the multiple of the rate of the obvious way: ``tokenizer.encode`` of one document after another,
  without rows;
- the share of the rate of rows of bytes of the same shards;
- text per second.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # before the library's first batch

import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

from common import ROOT, quotient, short_documents, spread

sys.path.insert(0, str(ROOT / "tests"))

from support.shard_sets import write_shards

from train.data.dataloader import ShardDataLoader
from train.data.tokenizer import TitanBPETokenizer, TitanByteTokenizer

ROUNDS, BYTES, BATCH = 3, 12_000_000, 8


def processor_seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = short_documents(BYTES, 1)
    size = sum(map(len, texts))
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/shards", texts, per_batch=400, per_shard=4)
        job = runpy.run_path(str(ROOT / "jobs" / "train_tokenizer.py"))
        with open(f"{folder}/tokenizer.json", "wb") as file:  # noqa: PTH123
            file.write(job["train"]([text.decode() for text in texts], 32_000))
        bpe = TitanBPETokenizer.Config(source=folder).build()
        kinds = {"tokens": bpe, "bytes": TitanByteTokenizer.Config().build()}
        config = ShardDataLoader.Config(shards=[f"{folder}/shards"], patches=False, infinite=False)

        def rows(kind: str, seq_len: int) -> None:
            share = {"dp_world_size": 1, "dp_rank": 0, "local_batch_size": BATCH}
            for _ in config.build(**share, seq_len=seq_len, tokenizer=kinds[kind]):
                pass

        def plain() -> None:
            for text in texts:
                bpe.bpe.tokenizer.encode(text.decode(), add_special_tokens=False).ids  # noqa: B018

        times = [
            (
                processor_seconds(lambda: rows("tokens", 2048)),
                processor_seconds(plain),
                processor_seconds(lambda: rows("bytes", 8192)),
            )
            for _ in range(ROUNDS)
        ]
    for i, other in ((1, "one document at a time"), (2, "rows of bytes")):
        print(f"rows of tokens / {other}: {quotient(times, i, 0):.3f} ({spread(times, i, 0)})")
    rate = size / median(row[0] for row in times) / 1e6
    print(f"{rate:.2f} MB/s of a core, {size:,} bytes of text")


if __name__ == "__main__":
    main()
