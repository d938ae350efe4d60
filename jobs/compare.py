"""Compare models that cost the same: train the arms of an experiment, and show them on a page."""

import json
import math
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.cli.command import run_job
from pipeline.cli.commands import command_line
from pipeline.cli.flags import check_at_least, check_directory
from pipeline.cli.optional import OrNone
from pipeline.cli.results import print_line, print_problems, print_whole
from pipeline.errors import ConfigError
from pipeline.storage.checked_json import strict_json
from train.compare.experiment import CLEAN, Experiment, Form, read_experiment


@dataclass(frozen=True)
class CompareConfig:
    """Train the arms of an experiment with several seeds at equal training FLOPs, and write a page.

    The first arm of an experiment is trained as it is; the others get the width at which they cost
    as many FLOPs per byte, within 1 %. All are measured on the same held-out bytes. A command that
    was stopped continues; runs that another experiment with this --output did are used again.
    docs/claims.md describes the experiments that come along, and how to write one. Exit status: 0
    if all runs are done, 1 if one failed, 2 if a flag or the experiment's file is wrong.
    """

    experiment: str
    """The name of an experiment that comes along, or a TOML file."""
    output: str = "claims"
    """Directory for data, runs and pages."""
    form: str = "cpu"
    """The size of the experiment: cpu (two cores, hours) or gpu (one GPU, minutes)."""
    input: tuple[str, ...] = ()
    """Text to train on, as patch_corpus.py reads it; default: Python's documentation and
    library."""
    held_out: tuple[str, ...] = ()
    """Text that is held out, where --input is given."""
    arms: tuple[str, ...] = ()
    """Train these arms only, beside the first one; default: all."""
    seeds: tuple[int, ...] = ()
    """Train with these seeds; default: the experiment's."""
    budget_flops: OrNone[float] = None
    """Training FLOPs of a run, instead of the form's."""
    num_workers: int = 1
    """Runs at once, on Ray; 1: one after another in this process."""
    threads: OrNone[int] = None
    """CPU threads per run; default: as many as torch takes."""
    gpus_per_run: float = 0
    """GPUs of a run on Ray."""
    json: bool = False
    """Print the results as JSON."""


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(CompareConfig, run)


def run(config: CompareConfig, console: Console) -> int:
    """Prepare the data, train, and write the page; returns the exit status."""
    experiment, form = chosen(config)
    # torchtitan takes seconds to load: only when the flags are right.
    from train.compare.comparison import plan_comparison
    from train.compare.data import Data

    output = Path(config.output).absolute()
    comparison = plan_comparison(
        experiment,
        form,
        Data(output / "data", config.input, config.held_out),
        output / f"{experiment.name}-{config.form}",
        threads=config.threads,
        command=f"{command_line('compare')} {shlex.join(sys.argv[1:])}",
        console=console,
    )
    failures = comparison.train(
        config.num_workers, config.gpus_per_run, lambda line: print_line(console, line)
    )
    results = comparison.results()
    if config.json:
        print(json.dumps(strict_json(results), allow_nan=False))
    else:
        print_results(results, comparison.folder, Console())
    print_problems(console, [f"failed: {failure}" for failure in failures])
    return 1 if failures else 0


def chosen(config: CompareConfig) -> tuple[Experiment, Form]:
    """The experiment and its form, as the flags change them.

    Raises:
        ConfigError: a flag is wrong; names it.
    """
    check_at_least(config, num_workers=1, threads=1, gpus_per_run=0)
    if config.gpus_per_run and config.num_workers == 1:
        raise ConfigError(
            "--gpus-per-run: is for runs on Ray, of which --num-workers tells how many go on at "
            "once; without, each run takes what this machine has"
        )
    if "://" in config.output:
        raise ConfigError("--output: has to be a directory; runs are read while they are made")
    check_directory(Path(config.output))
    experiment = read_experiment(config.experiment)
    form = experiment.form(config.form)
    if config.budget_flops is not None:
        if not 0 < config.budget_flops < math.inf:
            raise ConfigError("--budget-flops: has to be positive")
        form = replace(form, budget_flops=config.budget_flops)
    names = [arm.name for arm in experiment.arms]
    if unknown := [name for name in config.arms if name not in names]:
        raise ConfigError(f"--arms: there is no {unknown[0]}; there are {', '.join(names)}")
    if config.arms:
        arms = tuple(a for i, a in enumerate(experiment.arms) if not i or a.name in config.arms)
        experiment = replace(experiment, arms=arms)
    if any(seed < 0 for seed in config.seeds):
        raise ConfigError(f"--seeds: must not be negative, got {min(config.seeds)}")
    if config.seeds:
        experiment = replace(experiment, seeds=tuple(dict.fromkeys(config.seeds)))
    return experiment, form


def print_results(results: dict[str, Any], folder: Path, console: Console) -> None:
    """Print the arms as a table, with the figures of the page and what they lack, and where the
    page is."""
    # matplotlib takes its time: only when there are results.
    from pipeline.drawing.page import printable
    from train.compare.figures import Results
    from train.compare.wording import MISSING, mean_words, patch_size, problems, range_words

    read = Results.from_json(results)
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = ("arm", "bits per byte", "range", "seeds", "bytes per patch", "FLOPs per byte")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left")
    for arm in read.arms:
        losses = arm.losses(CLEAN)
        table.add_row(
            Text(printable(arm.label)),  # which may look like markup
            mean_words(losses),
            range_words(losses) or MISSING,
            f"{len(arm.finished)} of {len(read.seeds)}",
            patch_size(arm),
            f"{arm.training_flops:,.0f}",
        )
    print_whole(console, table)
    print_problems(console, problems(read))
    print_line(console, f"page: {folder}/index.html")


if __name__ == "__main__":
    sys.exit(main())
