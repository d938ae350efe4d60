"""Sharded hash tables against plain ones, which FSDP gathers, reduces and steps whole.

Time of a training step on one process, 1.5 million rows of 64 values (blt_debug with larger
tables), float32, one thread, measured in turn. Then blt_1b's memory on one GPU, and its traffic on
8, 64 and 512, as they follow from shapes: memory is counted on fake tensors, all of those that are
alive at a time from forward to backward, with every operation that is not compiled. Target: 80 GB.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from common import ROOT, alternating, quotient, spread, verdict  # isort: skip

sys.path.insert(0, str(ROOT / "tests"))

import torch
import torch.distributed as dist
import torch.nn.functional as F
from bench_training import make_shards, trainer_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from train.shim import prepare

prepare()

from torchtitan.distributed import ParallelDims

from model import BLT_SIZES
from train.config_registry import blt_1b, blt_debug
from train.sharded_tables import HostCopy
from train.table_optimizer import split_off_tables

FORMS = ("plain", "sharded")
ROWS = 250_000
PATCH_SIZE = 4.5
GIB, TARGET = 2**30, 80e9


def time_of_steps(rounds: int) -> None:
    """Print how many sharded steps a plain one takes the time of."""
    with tempfile.TemporaryDirectory() as directory:
        shards = make_shards(Path(directory, "text"), 2_000_000)
        steps = []
        for form in FORMS:
            config = blt_debug()
            shape = config.model_spec.model.shape
            config.model_spec.model.shape = replace(shape, encoder_hash_byte_group_vocab=ROWS)
            config.parallelism.hash_tables = form
            config.metrics.log_freq = 1_000_000
            trainer = trainer_of(config, shards, directory)
            batches = trainer.batch_generator(trainer.dataloader)

            def step(trainer: Any = trainer, batches: Any = batches) -> None:
                trainer.step += 1
                trainer.train_step(batches)

            steps.append(step)
        times = alternating(rounds, *steps)
    print(
        f"result: a step with plain tables / with sharded ones, {6 * ROWS / 1e6} million rows: "
        f"{quotient(times, 0, 1):.2f} ({spread(times, 0, 1)}); sharded: "
        f"{median(row[1] for row in times):.2f} s"
    )
    dist.destroy_process_group()


class FusedAttention(torch.autograd.Function):
    """The memory of FlexAttention, which keeps its inputs, its output and a sum for each query."""

    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> Tensor:
        out_THD = torch.empty_like(q_THD)
        sums_TH = q_THD.new_empty(q_THD.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, sums_TH)
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def memory(form: str, checkpointing: Any = None) -> tuple[float, float]:
    """GiB of weights, moments and gradients after a backward of blt_1b, and the peak before."""
    config = blt_1b()
    config.parallelism.hash_tables = form
    training = replace(config.training, mixed_precision_param="bfloat16")
    rows, width = training.local_batch_size, training.seq_len
    dist.init_process_group("fake", rank=0, world_size=1)
    dims = ParallelDims(1, 1, 1, 1, 1, 1, 1, "partial_dtensor")
    dims.build_mesh()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch("model.blt.segment_attention", lambda position_T, window: FusedAttention.apply),
        patch("model.blt.check_batch", lambda *batch: None),
        # As many rows as could be looked up.
        patch.object(HostCopy, "__init__", lambda self, values: None),
        patch.object(HostCopy, "read", lambda self: [rows * width] * 6),
    ):
        with torch.device("meta"):
            model = config.model_spec.model.build()
        model = config.model_spec.parallelize_fn(
            model,
            parallel_dims=dims,
            training=training,
            parallelism=config.parallelism,
            compile_config=replace(config.compile, enable=False),
            ac_config=checkpointing or config.activation_checkpoint,
            dump_folder="",
        )
        model.to_empty(device="cpu")
        optimizers = config.optimizer.build(model_parts=[model])
        split_off_tables(optimizers, [model], dims)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[weight] = moments
        tracker = MemTracker()
        tracker.track_external(model, *optimizers.optimizers)
        tokens_BS = torch.zeros(rows, width, dtype=torch.int64)
        lengths_BP = torch.zeros(rows, int(width / PATCH_SIZE), dtype=torch.int64)
        with tracker:
            logits_TV = model(tokens_BS, lengths_BP).flatten(0, 1)
            F.cross_entropy(logits_TV.float(), tokens_BS.flatten(), reduction="sum").backward()
            device = torch.device("cpu")
            state, peak = (
                tracker.get_tracker_snapshot(kind)[device]["Total"] / GIB
                for kind in ("current", "peak")
            )
    dist.destroy_process_group()
    return state, peak


def traffic(ranks: int) -> tuple[float, float]:
    """GB that a rank sends for the tables of blt_1b in a microbatch: plain, and sharded. The tests
    count the same on ranks of a small model."""
    shape, rows, width = BLT_SIZES["1b"], 4, 8192
    tables = len(shape.encoder_hash_byte_group_size) * shape.encoder_hash_byte_group_nb_functions
    others = (ranks - 1) / ranks
    values = tables * shape.encoder_hash_byte_group_vocab * shape.dim_local
    plain = values * others * (2 + 2 + 4)
    ids = (ranks - 1) * tables * rows * width * 4
    sharded = ids + 2 * others * rows * width * shape.dim_local * 2
    return plain / 1e9, sharded / 1e9


def main() -> None:
    torch.set_num_threads(1)
    time_of_steps(9 if "--long" in sys.argv[1:] else 5)
    for ranks in (2, 8, 64, 512):
        plain, sharded = traffic(ranks)
        print(
            f"traffic of blt_1b's tables, {ranks} ranks: {plain:.1f} GB; {sharded:.2f} GB sharded"
        )
    for form in FORMS:
        state, peak = memory(form)
        print(f"memory of blt_1b, {form} tables: {state:.1f} GiB of state, peak {peak:.1f} GiB")
    print(f"result: peak {peak * GIB / 1e9:.1f} GB, {verdict(peak * GIB < TARGET)}")


if __name__ == "__main__":
    main()
