"""Export a shard set: to Parquet, datasets, the hub, or the layout of the published loader."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import leave, run_job
from pipeline.cli.progress_bar import amount_text
from pipeline.cli.results import print_problems, print_table
from pipeline.export.config import ExportShardsConfig
from pipeline.export.layouts import LAYOUTS

if TYPE_CHECKING:
    from pipeline.export.job import ExportShardsResult


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(ExportShardsConfig, run)


def run(config: ExportShardsConfig, console: Console) -> int:
    """Export, and print the result."""
    config.check()
    # torch and Ray take seconds to load: only when the flags are right.
    from pipeline.export.job import export_shards

    result = export_shards(config, console)
    if config.json:
        print(json.dumps(vars(result)))
    else:
        print_result(result, config, Console())
    return 0 if result.complete else 1


def print_result(
    result: "ExportShardsResult", config: ExportShardsConfig, console: Console
) -> None:
    """The result as a table, then what went wrong."""
    print_table(console, _rows(result))
    problems = [f"not exported: {failure}" for failure in result.failures]
    problems += [f"verify: {problem}" for problem in result.problems]
    if problems and LAYOUTS[config.format].pushes:
        problems.append("nothing was pushed: run the same command again when that is mended")
    elif result.failures:
        problems.append("no manifest was written: run the same command again when that is mended")
    print_problems(console, problems)


def _rows(result: "ExportShardsResult") -> Iterator[tuple[str, str]]:
    yield "files", f"{result.files:,} ({result.exported:,} written now)"
    yield "documents", f"{result.rows:,}"
    yield "size", amount_text(result.bytes)
    if result.pushed:
        yield "pushed now", f"{result.pushed:,} files"
    yield "time", f"{result.seconds:.1f} s"
    yield "where", result.output


if __name__ == "__main__":
    leave(main())
