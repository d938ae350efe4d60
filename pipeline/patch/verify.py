"""A set is read back by all workers: :mod:`pipeline.shards.verify`, as a stage.

A driver alone would read a set of 100 TB for days.
"""

import json
from typing import NamedTuple

import pyarrow as pa
from rich.console import Console

from pipeline.cluster.progress import Reporter
from pipeline.cluster.stage import run_stage
from pipeline.errors import DamagedShardError
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.tables import as_shards, shard_rows
from pipeline.shards.verify import set_problems, sum_problems, verify_shard
from pipeline.statistics.counts import PatchStatistics
from pipeline.storage.output import OutputDirectory


class _Shared(NamedTuple):
    shards: ShardSet
    """Without its entries."""
    rows: pa.RecordBatch
    """A row per shard. The workers of a node share its memory."""


def verify_set(output: OutputDirectory, console: Console, workers: int | None) -> list[str]:
    """Everything that is wrong with a finished set, in the order of its shards: see
    :func:`pipeline.shards.verify.verify`."""
    shards = ShardSet(output.url)
    try:
        problems, entries = list(set_problems(shards)), shards.entries
    except DamagedShardError as error:
        return [str(error)]
    total = PatchStatistics()
    found: dict[int, list[str]] = {}

    def receive(number: int, message: str) -> None:
        nonlocal total
        values = json.loads(message)
        total += PatchStatistics.from_json(values["statistics"])
        found[number] = values["problems"]

    shared = _Shared(shards.without_entries(), shard_rows(entries))
    sizes = {number: shard.bytes for number, shard in enumerate(entries)}
    outcome = run_stage(
        "verifying", _verify_piece, sizes, shared, console, workers=workers, receive=receive
    )
    problems += outcome.unreachable  # what cannot be read is not right
    problems += [problem for number in sorted(found) for problem in found[number]]
    return [*problems, *sum_problems(shards, total)]


def _verify_piece(number: int, shared: _Shared, report: Reporter) -> str:
    (shard,) = as_shards(shared.rows.slice(number, 1))
    statistics, problems = verify_shard(shared.shards, shard)
    report(shard.bytes)
    return json.dumps({"statistics": statistics.to_json(), "problems": problems})
