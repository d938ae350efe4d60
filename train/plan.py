"""The needs of a training on so many GPUs: memory, FLOPs, time, checkpoints; nothing is built.

Parameters are counted on the model itself, on the meta device, and activations by running it there
(:mod:`train.live_memory`). The layout is HSDP: blocks are sharded over the ranks of a group, which
is one node or a few, and groups hold copies, so that gathering weights stays inside a node. Hash
tables are sharded by column over all ranks.

Memory of a rank, with P its parameters outside of hash tables over a group of S ranks, and V in
tables over all R ranks: ``16 P / S`` bytes (weight, gradient and two moments in float32), ``12 V /
R`` (no gradient of a whole table), and what is there at some moment: gathered blocks, activations,
gradients of the rows that were looked up, and the exchange of these rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torchtitan.config import TORCH_DTYPE_MAP, ParallelismConfig

from model import BLTConfig
from model.layers.hash_embedding import HashEmbedding
from model.layers.transformer import Block
from model.token_transformer import TokenTransformerConfig
from model.training_flops import training_flops
from pipeline.errors import ConfigError
from train.checkpoints.kinds import Shape, build_model
from train.flags.assumptions import Assumptions
from train.live_memory import activation_bytes
from train.parallelize import keeps_unsharded
from train.refusals import check_batch

MASTER, MOMENTS = 4, 8
"""Bytes per parameter: weight or gradient in float32, AdamW's two moments."""
NODE = 8
"""GPUs per node."""


class Parameters(NamedTuple):
    """Parameters of a model, by what becomes of them."""

    largest_block: int
    around: int
    """Outside of blocks and tables: gathered once, for the whole step."""
    held: int
    """Outside of tables, on the first rank of a group: FSDP deals out whole rows."""
    dense: int
    """Outside of tables, on all ranks of a group together."""
    tables: int
    tables_held: int
    """In tables, on the first rank: some columns of all rows."""


@dataclass(frozen=True)
class Plan:
    """A training on a number of GPUs. Memory is that of the first rank, in bytes."""

    gpus: int
    shard: int
    """Ranks of a group, which hold the blocks once together."""
    copies: int
    """Groups: ``--parallelism.data-parallel-replicate-degree``."""
    rows: int
    """Rows that a rank takes at once."""
    microbatches: int
    """How often it does so per step."""
    step_bytes: int
    """Text per step."""
    state: int
    """Weights, gradients and moments."""
    tables: int
    """The same of hash tables, with the rows that were looked up and their exchange."""
    gathered: int
    """Blocks that are whole for a moment, and their gradients."""
    activations: int
    fits: bool
    most_rows: int
    """Rows that a rank could take at once; activations grow with them."""
    step_flops: float
    """FLOPs of all ranks in a step."""
    step_seconds: float
    days: float
    """All steps of the configuration, without failures."""
    checkpoint: int
    """Bytes of a checkpoint: weights and moments in float32."""
    interval: int
    """Steps between two checkpoints."""
    failures: float
    """Nodes that are expected to fail within a day."""
    lost: float
    """GPU hours that the loss of a node costs: half an interval, and the restart."""
    overhead: float
    """Share of the time that writing checkpoints and failures take together."""

    @property
    def memory(self) -> int:
        """Bytes of a GPU in use at the fullest moment."""
        return self.state + self.tables + self.gathered + self.activations


def count_parameters(shape: Shape, *, shard: int, ranks: int) -> Parameters:
    """The parameters of a model, of one rank and of all.

    Args:
        shard: ranks of a group.
        ranks: all ranks.
    """
    with torch.device("meta"):
        model = build_model(shape)
    tables = [
        table for part in model.modules() if isinstance(part, HashEmbedding) for table in part
    ]
    in_tables = {weight for table in tables for weight in table.parameters()}
    dense = [weight for weight in model.parameters() if weight not in in_tables]
    blocks = [_numel(part) for part in model.modules() if isinstance(part, Block)]
    whole = sum(weight.numel() for weight in dense)
    return Parameters(
        largest_block=max(blocks),
        around=whole - sum(blocks),
        held=sum(-(-len(w) // shard) * (w.numel() // len(w)) for w in dense),
        dense=whole,
        tables=sum(weight.numel() for weight in in_tables),
        tables_held=sum(len(weight) * -(-weight.shape[1] // ranks) for weight in in_tables),
    )


def _numel(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def plan(config: Any, gpus: int, assumed: Assumptions, activations: int) -> Plan:
    """The plan of a configuration on a number of GPUs.

    Args:
        config: a ``ByteTrainer.Config``.
        activations: as :func:`activations_of` counts them.

    Raises:
        ConfigError: the configuration asks for a layout that cannot be, or is not planned here, or
            the GPUs cannot divide the rows of a step.
    """
    shape, training = config.model_spec.model.shape, config.training
    _check_planned(config)
    check_batch(training, gpus)
    rows = training.local_batch_size
    size = assumed.bytes_per_patch
    row_bytes = training.seq_len * (size if isinstance(shape, TokenTransformerConfig) else 1)
    microbatches = max(1, training.global_batch_size // (gpus * rows))
    step_bytes = round(microbatches * gpus * rows * row_bytes)
    budget = round(0.9e9 * assumed.gpu_memory)
    for shard in _groups(gpus, config.parallelism):
        count = count_parameters(shape, shard=shard, ranks=gpus)
        state = (2 * MASTER + MOMENTS) * count.held
        tables = _table_bytes(shape, count, gpus, rows * training.seq_len, microbatches)
        # The weights of the block at work and of the next one, or all of them where a rank keeps
        # them until backward, and the gradients of one block.
        kept = keeps_unsharded(config.parallelism, shard)
        whole = count.dense if kept else count.around + 2 * count.largest_block
        gathered = TORCH_DTYPE_MAP[training.mixed_precision_param].itemsize * whole
        gathered += MASTER * (count.around + count.largest_block)
        most_rows = max(0, (budget - state - tables - gathered) * rows // activations)
        if most_rows >= rows:
            break
    flops = sum(training_flops(shape, patch_size=size, context=training.seq_len).values())
    seconds = flops * step_bytes / (gpus * assumed.gpu_tflops * 1e12 * assumed.mfu)
    checkpoint = (MASTER + MOMENTS) * (count.dense + count.tables)
    nodes = -(-gpus // NODE)
    write_s = checkpoint / (nodes * assumed.node_write * 1e9)
    between_s = assumed.node_mtbf_days * 86_400 / nodes
    interval_s = best_interval(write_s, between_s)
    lost_s = interval_s / 2 + 60 * assumed.restart_minutes
    return Plan(
        gpus=gpus,
        shard=shard,
        copies=gpus // shard,
        rows=rows,
        microbatches=microbatches,
        step_bytes=step_bytes,
        state=state,
        tables=tables,
        gathered=gathered,
        activations=activations,
        fits=most_rows >= rows,
        most_rows=most_rows,
        step_flops=flops * step_bytes,
        step_seconds=seconds,
        days=training.steps * seconds / 86_400,
        checkpoint=checkpoint,
        interval=max(1, round(interval_s / seconds)),
        failures=86_400 / between_s,
        lost=lost_s * gpus / 3600,
        overhead=write_s / interval_s + lost_s / between_s,
    )


def best_interval(write_s: float, between_s: float) -> float:
    """Seconds between two checkpoints that lose the least time, to first order (Young 1974):
    ``sqrt(2 * write * between)``.

    More checkpoints cost ``write / interval`` of the time, fewer lose ``interval / (2 * between)``
    of it; both are equal there. With 50 s to write one and a failure every 100,000 s, for example:
    3,162 s, and 3.2 % of the time.

    Args:
        write_s: seconds to write a checkpoint.
        between_s: seconds between two failures.
    """
    return math.sqrt(2 * write_s * between_s)


def _check_planned(config: Any) -> None:
    """
    Raises:
        ConfigError: a flag changes what a rank holds in a way that is not planned; names it.
    """
    parallelism, training, optimizer = config.parallelism, config.training, config.optimizer
    tables, bf16_moments = getattr(parallelism, "hash_tables", "sharded"), "fused_opt_states_bf16"
    for flag, differs, usual in (
        (
            "parallelism.tensor-parallel-degree",
            parallelism.tensor_parallel_degree != 1,
            "1: groups of data-parallel ranks share the weights as well",
        ),
        ("parallelism.hash-tables", tables != "sharded", "sharded"),
        ("training.dtype", training.dtype != "float32", "float32"),
        ("training.enable-cpu-offload", training.enable_cpu_offload, "False"),
        ("optimizer.implementation", optimizer.implementation == bf16_moments, "fused"),
    ):
        if differs:
            raise ConfigError(f"--{flag}: is not planned; leave it at {usual}")


def _groups(gpus: int, parallelism: ParallelismConfig) -> list[int]:
    """Numbers of ranks that a group may have, the smallest first: a node, 2 nodes, 4, ..., and all
    ranks; one number where the configuration says how many ranks or copies there are."""
    copies, shard = (
        parallelism.data_parallel_replicate_degree,
        parallelism.data_parallel_shard_degree,
    )
    if shard > 0:
        if shard * copies != gpus:
            raise ConfigError(
                f"--parallelism.data-parallel-shard-degree: {shard} ranks times {copies} copies "
                f"(--parallelism.data-parallel-replicate-degree) are not {gpus} GPUs"
            )
        return [shard]
    if copies > 1:
        if gpus % copies:
            raise ConfigError(
                f"--parallelism.data-parallel-replicate-degree: {gpus} GPUs cannot hold {copies} "
                "copies"
            )
        return [gpus // copies]
    if gpus <= NODE:
        return [gpus]
    sizes = [NODE << doubled for doubled in range(gpus.bit_length())]
    return [*(size for size in sizes if size < gpus and gpus % size == 0), gpus]


def _table_bytes(shape: Shape, count: Parameters, ranks: int, tokens: int, times: int) -> int:
    """Memory of hash tables on one rank, whose microbatch has so many tokens."""
    if not count.tables or not isinstance(shape, BLTConfig):
        return 0
    rows = shape.encoder_hash_byte_group_vocab
    # Within a step, no more rows get a gradient than there are, or than are looked up.
    touched = min(rows, tokens * ranks * times) / rows
    number = count.tables // (rows * shape.dim_local)
    # Ids of all ranks' tokens in 4 bytes, and sums in float32 on both sides of the exchange.
    exchange = MASTER * (ranks * tokens * number + 2 * tokens * shape.dim_local)
    return round((MASTER + MOMENTS + MASTER * touched) * count.tables_held) + exchange


def activations_of(config: Any, assumed: Assumptions) -> int:
    """Most bytes of a microbatch's activations on one rank: :mod:`train.live_memory`."""
    training = config.training
    return activation_bytes(
        config.model_spec.model.shape,
        rows=training.local_batch_size,
        seq_len=training.seq_len,
        patches=math.ceil(training.seq_len / assumed.bytes_per_patch),
        checkpointing=config.activation_checkpoint,
        dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
    )


COLUMNS: tuple[tuple[str, Callable[[Plan], str]], ...] = (
    ("GPUs", lambda p: f"{p.gpus}"),
    ("shard x copies", lambda p: f"{p.shard} x {p.copies}"),
    ("rows x times", lambda p: f"{p.rows} x {p.microbatches}"),
    ("MB per step", lambda p: f"{p.step_bytes / 1e6:.1f}"),
    ("state", lambda p: f"{p.state / 1e9:.1f}"),
    ("tables", lambda p: f"{p.tables / 1e9:.1f}"),
    ("activations", lambda p: f"{(p.activations + p.gathered) / 1e9:.1f}"),
    ("GB per GPU", lambda p: f"{p.memory / 1e9:.1f}{'' if p.fits else ', too much'}"),
    ("rows that fit", lambda p: f"{p.most_rows}"),
    ("EFLOP per step", lambda p: f"{p.step_flops / 1e18:.2f}"),
    ("seconds per step", lambda p: f"{p.step_seconds:,.1f}"),
    ("days", lambda p: f"{p.days:,.1f}"),
    ("checkpoint, GB", lambda p: f"{p.checkpoint / 1e9:.1f}"),
    ("every … steps", lambda p: f"{p.interval:,}"),
    ("one costs, GPU h", lambda p: f"{p.lost:,.1f}"),
    ("overhead", lambda p: f"{100 * p.overhead:.1f} %"),
)
"""Columns of the table: heading, and the text of a plan."""


def markdown_table(plans: dict[str, list[Plan]]) -> str:
    """Plans by configuration, a row for each number of GPUs."""
    lines = [["configuration", *(heading for heading, _ in COLUMNS)]]
    for name, of_name in plans.items():
        lines += [[name, *(text(one) for _, text in COLUMNS)] for one in of_name]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * (width - 1) + ":" for width in widths])
    return "".join(
        "| " + " | ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )
