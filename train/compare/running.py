"""All runs of an experiment, one after another in this process, or several at once on Ray."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import PipelineError
from train.compare.runs import Run, is_finished, train_run

Done = Callable[[Run, str | None], None]
"""Is told of each run that ended: the run, and the error in a sentence if it failed."""


def train_all(runs: Sequence[Run], workers: int, gpus: float, done: Done) -> None:
    """Train the runs that are not finished.

    Args:
        workers: runs at once. 1: in this process, so that what one run compiled serves the next
            ones, and Ray is not needed.
        gpus: GPUs of a run, for Ray.
    """
    waiting = [run for run in runs if not is_finished(run)]
    if workers == 1:
        for run in waiting:
            done(run, _failure(run))
    elif waiting:
        _train_on_ray(waiting, workers, gpus, done)


def _failure(run: Run) -> str | None:
    """Train a run; the sentence to print if it failed."""
    try:
        with logged_to(Path(run.folder, "log.txt")):
            train_run(run)
    except PipelineError as error:
        return str(error)
    return None


def _train_on_ray(runs: Sequence[Run], workers: int, gpus: float, done: Done) -> None:
    # Ray takes seconds to load.
    from pipeline.cluster.connect import connect
    from pipeline.cluster.tasks import in_processes

    threads = max(run.threads or 1 for run in runs)
    connect(workers * threads, "train")
    outcomes = in_processes(_failure, runs, at_once=workers, num_cpus=threads, num_gpus=gpus)
    for run, failure in outcomes:
        done(run, str(failure) if isinstance(failure, PipelineError) else failure)


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Append what is logged to a file, and nothing to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    others, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = others
        root.setLevel(level)
        handler.close()


class Estimate:
    """The time that is left, from the seconds of the runs that ended."""

    def __init__(self, runs: int, workers: int):
        self.left, self.workers = runs, workers
        self.began, self.ended = time.monotonic(), 0

    def after_one(self) -> str:
        """The estimate after one more run, in words."""
        self.ended += 1
        self.left -= 1
        if not self.left:
            return "the last one"
        seconds = (time.monotonic() - self.began) / self.ended * self.left
        return f"{self.left} left, about {_duration(seconds)}"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"
