"""An experiment from its data to its page: prepared, planned, trained, drawn."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from train.compare.arms import PlannedArm, plan_arms
from train.compare.data import Data, held_out_names, prepare
from train.compare.experiment import CLEAN, Experiment, Form
from train.compare.page import write_page
from train.compare.results import gather
from train.compare.running import Estimate, train_all
from train.compare.runs import Run, is_finished

DRAWN_S = 60
"""Seconds between two drawings of the page while runs go on."""


@dataclass(frozen=True)
class Comparison:
    """An experiment whose data is there and whose arms are planned."""

    experiment: Experiment
    form: Form
    data: Data
    folder: Path
    """The directory of the page and ``results.json``."""
    planned: Sequence[PlannedArm]
    runs: Mapping[str, Sequence[Run]]
    """By the name of the arm, a run per seed."""
    command: str
    """The command that makes the page."""

    def train(
        self, workers: int, gpus_per_run: float, print_line: Callable[[str], None]
    ) -> list[str]:
        """Train what is not trained, draw the page from time to time, and at the end.

        Args:
            workers, gpus_per_run: see :func:`train.compare.running.train_all`.

        Returns:
            a sentence for each run that failed.
        """
        # The first seed of all arms, then the second one, so that what is there can be compared.
        in_order = [run for of_seed in zip(*self.runs.values(), strict=True) for run in of_seed]
        estimate = Estimate(sum(not is_finished(run) for run in in_order), workers)
        failures: list[str] = []
        drawn = time.monotonic()

        def done(run: Run, failure: str | None) -> None:
            nonlocal drawn
            name, left = f"{run.arm}, seed {run.seed}", estimate.after_one()
            if failure is not None:
                failures.append(f"{name}: {failure}")
                return
            results = self.results()
            print_line(f"{name}: {_end(results, run):.4f} bits per byte; {left}")
            if time.monotonic() - drawn > DRAWN_S:
                write_page(results, self.folder)
                drawn = time.monotonic()

        train_all(in_order, workers, gpus_per_run, done)
        write_page(self.results(), self.folder)
        return failures

    def results(self) -> dict[str, Any]:
        """The results so far; see :func:`train.compare.results.gather`."""
        return gather(self.experiment, self.form, self.data, self.planned, self.runs, self.command)


def _end(results: dict[str, Any], run: Run) -> float:
    """Bits per byte at the end of a run that is finished."""
    (arm,) = (arm for arm in results["arms"] if arm["name"] == run.arm)
    (found,) = (each for each in arm["runs"] if each["seed"] == run.seed)
    bits: float = found["points"][-1]["bits_per_byte"][CLEAN]
    return bits


def plan_comparison(
    experiment: Experiment,
    form: Form,
    data: Data,
    folder: Path,
    *,
    threads: int | None,
    command: str,
    console: Console,
) -> Comparison:
    """Make the data of an experiment, as far as it is not there, and plan its arms.

    Args:
        folder: the directory of the page; runs go to ``runs`` beside it.
        threads: CPU threads per run; None: as many as torch takes.

    Raises:
        ConfigError: the experiment's file asks for what cannot be.
        PipelineError: the data cannot be made.
    """
    data.check()
    prepare(data, experiment, form, console)
    console.print("fitting the arms to equal costs", highlight=False)
    planned = plan_arms(experiment, form, data)
    runs = {}
    for each in planned:
        held_out = tuple(
            (name, str(data.shards(each.arm.entropy_model, name)))
            for name in held_out_names(experiment)
        )
        of_arm = [each.run(seed, folder.parent / "runs", held_out) for seed in experiment.seeds]
        runs[each.arm.name] = [replace(run, threads=threads) for run in of_arm]
    return Comparison(experiment, form, data, folder, planned, runs, command)
