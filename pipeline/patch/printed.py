"""The result of a job that makes patch shards, for people and for programs."""

import json
import shlex
from collections.abc import Iterator

from rich.console import Console

from pipeline.cli.commands import command_line
from pipeline.cli.progress_bar import rate_text
from pipeline.cli.results import print_line, print_problems, print_table
from pipeline.patch.result import PatchCorpusResult


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
