"""A training step through torchtitan against transformers' BLT under the same optimizer.

58 million parameters beside the hash tables, one row of 4096 bytes a step, float32, one thread,
measured in turn: the trainer's whole step (fetching the batch, forward, loss, backward, clipping,
AdamW) and the same by hand with transformers' model. Target: 1.5 times as fast, and less than 1 %
of the step's time spent waiting for data.

With a GPU, instead: blt_1b compiled, as a share of the rate of a bfloat16 product measured in the
same run (aim: half).
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from common import ROOT, alternating, quotient, short_documents, spread, verdict, write_jsonl  # isort: skip

sys.path.insert(0, str(ROOT / "tests"))

import torch
import torch.nn.functional as F
from bench_blt import MEDIUM, PRODUCT
from support import tiny

from model import NGramEntropyModel, Patcher
from model.flops import flops_per_byte
from model.tokenizer import encode_documents
from train.shim import prepare

prepare()

from train.__main__ import set_single_process_environment
from train.config_registry import blt_1b, blt_debug
from train.shape_flags import ShapeFlags
from train.trainer import ByteTrainer

WIDTH = 4096
TARGET, WAIT = 1.5, 0.01


def make_shards(directory: Path, size: int) -> str:
    """A shard set of real text, cut at spaces."""
    directory.mkdir()
    documents = short_documents(size, seed=1)
    write_jsonl(directory / "text.jsonl", documents)
    model = NGramEntropyModel.fit([encode_documents(documents[:100])])
    shards = directory / "shards"
    tiny.make_shards(shards, directory / "text.jsonl", model, Patcher(rule="space"))
    return str(shards)


def trainer_of(config: ByteTrainer.Config, shards: str, folder: str) -> ByteTrainer:
    """A trainer on one process, without checkpoints."""
    set_single_process_environment()
    config.dataloader.shards = [shards]
    config.dump_folder = folder
    config.checkpoint.enable = False
    return config.build()


def against_transformers(rounds: int) -> None:
    from transformers import BltForCausalLM
    from transformers.utils import logging

    from model import BLT, save_blt

    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as directory:
        config = replace(blt_debug(), shape=ShapeFlags(MEDIUM))
        config.training.seq_len, config.training.local_batch_size = WIDTH, 1
        config.metrics.log_freq = 1_000_000
        trainer = trainer_of(config, make_shards(Path(directory, "text"), 2_000_000), directory)
        save_blt(BLT(MEDIUM), Path(directory, "transformers"), layout="transformers")
        theirs = BltForCausalLM.from_pretrained(f"{directory}/transformers", dtype=torch.float32)
        batches = trainer.batch_generator(trainer.dataloader)
        more = iter(
            trainer.dataloader.config.build(
                dp_world_size=1, dp_rank=0, seq_len=WIDTH, local_batch_size=1
            )
        )
        optimizer = torch.optim.AdamW(theirs.parameters(), lr=3e-3, fused=True)
        waited: list[float] = []

        def ours_step() -> None:
            trainer.step += 1
            trainer.metrics_processor.data_loading_times.clear()
            trainer.train_step(batches)
            waited.append(sum(trainer.metrics_processor.data_loading_times))

        def theirs_step() -> None:
            inputs, labels = next(more)
            optimizer.zero_grad(set_to_none=True)
            logits = theirs(
                inputs["input"].long().clamp(min=0),
                patch_lengths=inputs["patch_lengths"].long(),
                use_cache=False,
            ).logits
            F.cross_entropy(logits.flatten(0, 1), labels.long().flatten()).backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0, foreach=True)
            optimizer.step()

        a, b = torch.randn(2, PRODUCT, PRODUCT)

        def multiply() -> None:
            for _ in range(4):
                torch.mm(a, b)

        times = alternating(rounds, ours_step, theirs_step, multiply)
    ratio = quotient(times, 1, 0)
    wait = median(w / row[0] for w, row in zip(waited[1:], times, strict=True))
    patch_size = WIDTH / (batch_patches := int((next(more)[0]["patch_lengths"] > 0).sum()))
    work = WIDTH * flops_per_byte(MEDIUM, patch_size=patch_size, context=WIDTH, training=True)
    share = median(work / row[0] / (4 * 2 * PRODUCT**3 / row[2]) for row in times)
    print(
        f"training step: {WIDTH / median(row[0] for row in times) / 1e3:.2f} kB/s, {ratio:.2f} "
        f"times transformers ({spread(times, 1, 0)}), {share:.0%} of the product's rate, "
        f"{wait:.2%} of the time waiting for data, {batch_patches} patches a row"
    )
    met = ratio >= TARGET and wait < WAIT
    print(f"result: {ratio:.2f} times as fast (target {TARGET}), {verdict(met)}")


def on_gpu() -> None:
    """blt_1b as ``python -m train --config blt_1b`` trains it, on one GPU."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for repeat in range(13):
        if repeat == 3:
            began.record()
        a @ b
    ended.record()
    torch.cuda.synchronize()
    ceiling = 10 * 2 * 8192**3 / (began.elapsed_time(ended) / 1e3)
    with tempfile.TemporaryDirectory() as directory:
        config = blt_1b()
        config.training.steps, config.metrics.log_freq = 40, 10
        config.training.global_batch_size = -1  # no accumulation
        shards = make_shards(Path(directory, "text"), 20_000_000)
        trainer = trainer_of(config, shards, directory)
        found: list[dict[str, Any]] = []
        trainer.metrics_processor.logger.log = lambda metrics, step: found.append(metrics)
        trainer.train()
        trainer.close()
    last = found[-1]
    print(f"{torch.cuda.get_device_name()}: bfloat16 product {ceiling / 1e12:.0f} TFLOP/s")
    print(
        f"result: blt_1b {last['tflops']:.0f} TFLOP/s, {last['tflops'] * 1e12 / ceiling:.0%} of "
        f"the product's rate, {last['throughput(bytes/s)'] / 1e3:.0f} kB/s, "
        f"{last['time_metrics/data_loading(%)']:.2f} % of the time waiting for data"
    )


def main() -> None:
    if torch.cuda.is_available():
        on_gpu()
        return
    torch.set_num_threads(1)
    against_transformers(5 if "--long" in sys.argv[1:] else 3)


if __name__ == "__main__":
    main()
