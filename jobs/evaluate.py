"""Evaluate a model: text, shards or harness tasks in, bits per byte or the tasks' metrics out."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.command import run_job
from pipeline.cli.results import print_line, print_problems, print_whole
from pipeline.errors import ConfigError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.storage.checked_json import strict_json

if TYPE_CHECKING:
    from pipeline.evaluate.job import BitsPerByte, Evaluation

SHOWN_REJECTS = 10


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(EvaluateConfig, run, interrupted="interrupted")


def run(config: EvaluateConfig, console: Console) -> int:
    """Evaluate, and print the result."""
    config.check()
    if config.harness_tasks:
        return run_harness(config)
    # torch takes a second to load: only when the flags are right.
    from pipeline.evaluate.job import evaluate

    result = evaluate(config, console)
    if config.json:
        print(json.dumps(as_json(result, config.confidence)))
    else:
        print_result(result, config.confidence, Console())
    return 0 if result.complete else 1


def run_harness(config: EvaluateConfig) -> int:
    """Run tasks of lm-evaluation-harness; returns the exit status."""
    try:
        from lm_eval.utils import make_table

        from pipeline.evaluate.harness import evaluate_tasks
    except ImportError as error:
        raise ConfigError(
            f"--harness-tasks: lm-eval cannot be imported ({error}); install it: "
            "pip install -c constraints.txt -e '.[harness]'"
        ) from error
    result = evaluate_tasks(config)
    if config.json:
        names = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
        values = strict_json({name: result[name] for name in names if name in result})
        print(json.dumps(values, allow_nan=False, default=str))
    else:
        print(make_table(result))
        if "groups" in result:
            print(make_table(result, "groups"))
    return 0


def as_json(result: "Evaluation", confidence: float) -> dict[str, object]:
    """The result as plain values."""
    total, problems = result.total, result.problems
    return {
        **_values(total),
        "confidence": confidence,
        "sources": {name: _values(of_source) for name, of_source in result.sources.items()},
        "seconds": result.seconds,
        "bytes_per_second": total.bytes / result.seconds if result.seconds else 0.0,
        "rejects": problems.rejects,
        "rejected": problems.listed,
        "failures": problems.failures,
        "complete": result.complete,
    }


def _values(of: "BitsPerByte") -> dict[str, object]:
    return {**vars(of), "mean_patch_bytes": of.mean_patch_bytes}


def print_result(result: "Evaluation", confidence: float, console: Console) -> None:
    """The result as a table, then what went wrong."""
    from pipeline.drawing.page import printable

    total, problems = result.total, result.problems
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("source")
    interval = f"{confidence:.4g} interval"
    for name in ("bits per byte", interval, "documents", "bytes", "bytes per patch"):
        table.add_column(name, justify="right")
    if len(result.sources) > 1:
        for name, of_source in result.sources.items():
            # A source may look like markup, or hold what no terminal can show.
            table.add_row(Text(printable(name)), *_cells(of_source))
        table.add_section()
    table.add_row("all", *_cells(total))
    print_whole(console, table)
    rate = total.bytes / result.seconds if result.seconds else 0.0
    print_line(console, f"{rate:,.0f} bytes/s ({result.seconds:.1f} s)")
    if problems.rejects:
        print_line(console, f"rejected documents: {problems.rejects:,}")
        for reject in problems.listed[:SHOWN_REJECTS]:
            place = f"{reject['file']}, position {reject['position']}"
            print_line(console, f"  {place}: {reject['reason']}")
        if problems.rejects > SHOWN_REJECTS:
            print_line(console, f"  and {problems.rejects - SHOWN_REJECTS:,} more")
    if total.bits_per_byte is None:
        print_problems(console, ["there was no text to score"])
    print_problems(console, [f"failed: {failure}" for failure in problems.failures])


def _cells(of: "BitsPerByte") -> list[str]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        number(of.bits_per_byte, 4),
        "-" if of.interval is None else " to ".join(number(end, 4) for end in of.interval),
        f"{of.documents:,}",
        f"{of.bytes:,}",
        number(of.mean_patch_bytes, 3),
    ]


if __name__ == "__main__":
    sys.exit(main())
