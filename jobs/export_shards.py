"""Export a shard set: to Parquet, datasets, the hub, or the layout of the published loader."""

import json
import sys
from pathlib import Path

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.command import run_command
from pipeline.export.config import ExportShardsConfig
from pipeline.export.job import ExportShardsResult, export_shards
from pipeline.export.layouts import LAYOUTS


def main() -> int:
    """Run the job; returns the exit status."""
    config = tyro.cli(ExportShardsConfig, config=(tyro.conf.FlagCreatePairsOff,))
    # Standard output belongs to the result; progress and errors go beside it.
    console = Console(stderr=True)
    again = "interrupted; run the same command again to go on"
    return run_command(lambda: run(config, console), console, interrupted=again)


def run(config: ExportShardsConfig, console: Console) -> int:
    """Export, and print the result."""
    result = export_shards(config, console)
    if config.json:
        print(json.dumps(vars(result)))
    else:
        print_result(result, config, Console())
    return 0 if result.complete else 1


def print_result(result: ExportShardsResult, config: ExportShardsConfig, console: Console) -> None:
    """The result as a table, then what went wrong."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("files", f"{result.files:,} ({result.exported:,} written now)")
    table.add_row("documents", f"{result.rows:,}")
    table.add_row("size", f"{result.bytes / 1e6:,.1f} MB")
    if result.pushed:
        table.add_row("pushed now", f"{result.pushed:,} files")
    table.add_row("time", f"{result.seconds:.1f} s")
    table.add_row("where", Text(result.output))
    console.print(table)
    problems = [f"not exported: {failure}" for failure in result.failures]
    problems += [f"verify: {problem}" for problem in result.problems]
    if problems and LAYOUTS[config.format].pushes:
        problems.append("nothing was pushed: run the same command again when that is mended")
    elif result.failures:
        problems.append("no manifest was written: run the same command again when that is mended")
    for problem in problems:
        console.print(problem, style="red", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
