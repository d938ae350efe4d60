"""Patch a corpus: text files in, Arrow shards with entropies and patch boundaries out."""

import json
import sys
from pathlib import Path

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table

from pipeline.cli.command import run_command
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.job import PatchCorpusResult, patch_corpus


def main() -> int:
    """Run the job; returns the exit status."""
    config = tyro.cli(PatchCorpusConfig, config=(tyro.conf.FlagCreatePairsOff,))
    # Standard output belongs to the result; progress and errors go beside it.
    console = Console(stderr=True)
    again = "interrupted; run the same command again to go on"
    return run_command(lambda: run(config, console), console, interrupted=again)


def run(config: PatchCorpusConfig, console: Console) -> int:
    """Patch, and print the result."""
    result = patch_corpus(config, console)
    if config.json:
        print(json.dumps(as_json(result)))
    else:
        print_result(result, Console())
    return 0 if result.complete and not result.problems else 1


def as_json(result: PatchCorpusResult) -> dict[str, object]:
    """The result as plain values."""
    statistics = result.statistics
    return {
        **{k: v for k, v in vars(result).items() if k != "statistics"},
        **statistics.to_json(),
        "mean_patch_bytes": statistics.mean_patch_bytes,
        "bytes_per_second": result.bytes_patched / result.seconds if result.seconds else 0.0,
    }


def print_result(result: PatchCorpusResult, console: Console) -> None:
    """The result as a table, then what went wrong."""
    statistics = result.statistics
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("documents", f"{statistics.documents:,}")
    table.add_row("bytes", f"{statistics.bytes:,}")
    table.add_row("patches", f"{statistics.patches:,}")
    table.add_row("mean bytes a patch", f"{statistics.mean_patch_bytes:.3f}")
    lengths = [f"{statistics.patch_length_percentile(p)} ({p}%)" for p in (50, 90, 99)]
    table.add_row("patch length percentiles", "  ".join(lengths))
    if result.threshold is not None:
        table.add_row("threshold (nats)", repr(result.threshold))
    table.add_row("rejected documents", f"{result.rejects:,}")
    if result.bytes_patched:
        rate = result.bytes_patched / result.seconds / 1e6
        table.add_row("speed", f"{rate:.2f} MB/s ({result.seconds:.1f} s)")
    table.add_row("shards", f"{result.shards} in {result.output}/shards")
    console.print(table)
    if result.complete:
        look = f"look at them: python jobs/patch_report.py --shards {result.output}"
        console.print(look, highlight=False, markup=False, soft_wrap=True)
    if result.rejects:
        console.print(f"rejected documents, with reasons: {result.output}/rejects")
    problems = [f"failed: {failure}" for failure in result.failures]
    for problem in [*problems, *(f"verify: {problem}" for problem in result.problems)]:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
