"""Report on patches: shard sets in, an HTML page with plots, PNG files and JSON out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.command import leave, run_job
from pipeline.cli.results import print_line, print_problems
from pipeline.report.config import PatchReportConfig

if TYPE_CHECKING:
    from pipeline.report.page import Report


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(PatchReportConfig, run, interrupted="interrupted")


def run(config: PatchReportConfig, console: Console) -> int:
    """Make the report, and print it in brief; returns the exit status."""
    config.check()
    # torch takes a second to load: only when the flags are right.
    from pipeline.report.job import patch_report

    report, page = patch_report(config, console)
    if config.json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report, page, Console())
    return 1 if report.problems else 0


def print_report(report: "Report", page: str, console: Console) -> None:
    """Print the sets side by side, then where the page is, then what is damaged."""
    from pipeline.drawing.page import printable
    from pipeline.report.agreement_wording import brief
    from pipeline.report.wording import overview

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("")
    for figures in report.sets:
        table.add_column(Text(figures.name), justify="right", overflow="fold")
    for label, cells in overview(report.sets):
        table.add_row(label, *map(Text, cells))  # names may look like markup
    console.print(table)
    for agreement in report.agreement:
        print_line(console, f"agreement of {printable(brief(agreement))}")
    print_line(console, f"page: {page}")
    print_problems(console, report.problems)


if __name__ == "__main__":
    leave(main())
