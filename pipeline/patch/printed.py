"""Lines that a job which makes patch shards prints: of its plan, and its result, for people and
for programs."""

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from pipeline.cli.commands import command_line
from pipeline.cli.progress_bar import amount_text, rate_text
from pipeline.cli.results import print_line, print_problems, print_table
from pipeline.corpus.ids import Ids
from pipeline.corpus.lines import COMPRESSIONS
from pipeline.corpus.splits import FilePlan, Unit
from pipeline.errors import listed
from pipeline.patch.record import PatchRun
from pipeline.patch.result import PatchCorpusResult
from pipeline.patch.shards_config import ShardsConfig
from pipeline.shards.format import ENTROPIES

if TYPE_CHECKING:
    from pipeline.patch.calibrate import Calibration  # needs torch, as no result does

TOLERANCE = 0.005
"""Relative difference from --target-patch-size from which on the nearest threshold is said to miss
it."""
MUCH_LARGER = 8
"""Times the size of splits from which on a file that cannot be cut is named."""


def print_columns(
    config: ShardsConfig, plans: Sequence[FilePlan], ids: Ids, console: Console
) -> None:
    """Say what was chosen of the input's columns, and which might have been meant."""
    if config.id_column is None and str(ids):
        print_line(console, str(ids))
    offered = {name for plan in plans for name in plan.columns or ()}
    if config.columns.entropies is None and ENTROPIES in offered:
        print_line(
            console,
            f"the input has a column {ENTROPIES!r}: jobs/adopt_shards.py takes entropies as they "
            "are, without a model",
        )


def print_largest(units: Sequence[Unit], split_bytes: int, console: Console) -> None:
    """Say if one worker may be busy long after the others, with a file that cannot be cut."""
    largest = max((split for unit in units for split in unit), key=lambda s: s.size, default=None)
    if largest is not None and largest.size > MUCH_LARGER * split_bytes and len(units) > 1:
        what = "a compressed file" if largest.file.typed_name.endswith(COMPRESSIONS) else "a part"
        print_line(
            console,
            f"{largest.file.url}: {what} of about {largest.size / 1e6:.1f} MB of text that cannot "
            "be cut: one worker reads all of it; jobs/prepare_corpus.py makes chunks of a corpus",
        )


def print_left_out(done: str, failures: Sequence[str], console: Console) -> None:
    """Name files that a fit or a calibration could not read: with them its result is another."""
    if failures:  # of a file as often as a part of it was tried
        print_line(console, f"{done} without what cannot be read:{listed(failures)}")


def print_calibration(calibration: "Calibration", target: float, console: Console) -> None:
    """Say how exact a calibration is, and if no threshold gives the patch size."""
    amount = f"{amount_text(calibration.text_bytes)} of text"
    error = f"{calibration.error:.2%}" if calibration.error else "none, as that is all of it"
    print_line(console, f"calibrated on {amount}; standard error of the mean patch size: {error}")
    if abs(calibration.patch_size / target - 1) > TOLERANCE:
        print_line(
            console,
            f"{calibration.patch_size:.3f} bytes per patch is as near to {target} as a threshold "
            "comes: too many places of this text have the very same entropy",
        )


def print_threshold(config: ShardsConfig, run: PatchRun, console: Console) -> None:
    """Say which threshold a calibration gave."""
    if config.calibrates:
        threshold = run.provenance["patcher"]["threshold"]
        size = f"{config.target_patch_size} bytes per patch"
        console.print(f"threshold {threshold!r} nats, calibrated for {size}")


def report_result(result: PatchCorpusResult, *, as_json: bool) -> int:
    """Print a result to standard output.

    Returns:
        the exit status.
    """
    if as_json:
        print(json.dumps(plain_values(result)))
    else:
        print_result(result, Console())
    return 0 if result.succeeded else 1


def plain_values(result: PatchCorpusResult) -> dict[str, object]:
    """The result as plain values."""
    statistics = result.statistics
    return {
        **{k: v for k, v in vars(result).items() if k not in ("statistics", "validation")},
        **statistics.to_json(),
        "mean_patch_bytes": statistics.mean_patch_bytes,
        "bytes_per_second": result.bytes_patched / result.seconds if result.seconds else 0.0,
        "validation": None if result.validation is None else plain_values(result.validation),
    }


def print_result(result: PatchCorpusResult, console: Console) -> None:
    """The result as a table, then what went wrong."""
    print_table(console, _rows(result))
    if result.validation is not None:
        print_line(console, "validation set, of the documents that the corpus holds out:")
        print_table(console, _rows(result.validation))
    if result.complete:
        look = f"look at them: {command_line('patch_report')} --shards {shlex.quote(result.output)}"
        print_line(console, look)
    for made in filter(None, (result, result.validation)):
        if made.rejects:
            print_line(console, f"rejected documents, with reasons: {made.output}/rejects")
        print_problems(console, [f"failed: {failure}" for failure in made.failures])
        print_problems(console, [f"verify: {problem}" for problem in made.problems])


def _rows(result: PatchCorpusResult) -> Iterator[tuple[str, str]]:
    statistics = result.statistics
    yield "documents", f"{statistics.documents:,}"
    yield "bytes", f"{statistics.bytes:,}"
    yield "patches", f"{statistics.patches:,}"
    size, target = statistics.mean_patch_bytes, result.target_patch_size
    asked = f" ({target} asked for: {size / target - 1:+.1%})" if target and size else ""
    yield "mean bytes per patch", f"{size:.3f}{asked}"
    lengths = [f"{statistics.patch_length_percentile(p)} ({p}%)" for p in (50, 90, 99)]
    yield "patch length percentiles", "  ".join(lengths)
    if result.threshold is not None:
        yield "threshold (nats)", repr(result.threshold)
    yield "rejected documents", f"{result.rejects:,}"
    if result.bytes_patched:
        rate = rate_text(result.bytes_patched / result.seconds)
        yield "speed", f"{rate} ({result.seconds:.1f} s)"
    yield "shards", f"{result.shards} in {result.output}/shards"
