"""Pretrain a BLT or an entropy model from shards, on a Ray cluster or on this machine."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console
from rich.text import Text

from pipeline.cli.command import run_job_that_passes_on
from pipeline.cli.flags import check_at_least
from pipeline.cli.optional import OrNone
from pipeline.errors import ConfigError
from pipeline.storage.checked_json import strict_json
from train.flags.configurations import check_configuration

if TYPE_CHECKING:
    from train.cluster.checks import RunPlan


@dataclass(frozen=True)
class PretrainConfig:
    """Pretrain a BLT or an entropy model from shards.

    Ray Train spreads the workers over the cluster of RAY_ADDRESS (or over a local Ray), and
    restarts them from the last checkpoint when one of them, or a node, dies. A run that was stopped
    resumes when the same command is given again, also with another number of workers.

    All flags but those below are torchtitan's, such as --dataloader.shards DIR[,DIR...],
    --validator.enable, --dump-folder DIR (checkpoints and metrics; outputs by default),
    --shape.dim-global 1024, --training.steps 1000 and --checkpoint.interval 500. Each DIR may be a
    URL. All nodes have to reach these places, with the credentials of their own environment.
    python -m train --config blt_debug --help shows all flags.

    Exit status: 0 when all steps were done, 1 when training failed, 2 when a flag is wrong.
    """

    config: Annotated[str, tyro.conf.arg(metavar="NAME")]
    """The configuration: blt_debug, blt_1b, entropy_100m, ..."""
    num_workers: OrNone[int] = None
    """Processes; by default as many as there are GPUs, or 1."""
    gpus_per_worker: OrNone[int] = None
    """0 trains on CPUs; by default 1 where there are GPUs."""
    cpus_per_worker: int = 1
    """Threads per worker."""
    max_failures: int = 3
    """How often workers are restarted; -1: without limit."""
    json: bool = False
    """Print the result as JSON."""

    def check(self) -> None:
        """Check the values.

        Raises:
            ConfigError: one is wrong; names the flag.
        """
        check_configuration(self.config)
        check_at_least(self, num_workers=1, cpus_per_worker=1, max_failures=-1)
        if self.gpus_per_worker not in (None, 0, 1):
            raise ConfigError(f"--gpus-per-worker: must be 0 or 1, got {self.gpus_per_worker}")


@dataclass
class RunResult:
    """The result of a run, as ``--json`` prints it."""

    steps: int
    checkpoint: str | None
    """The last step's directory or URL; None if there is none."""
    loss: float | None
    """Nats per label, of the last step that was logged; None if this run did no step."""
    bits_per_byte: float | None
    validation_bits_per_byte: float | None
    workers: int
    seconds: float

    @property
    def line(self) -> str:
        """A line of JSON, with null for what is no number, such as the loss of weights that
        overflow in a validation."""
        return json.dumps(strict_json(asdict(self)), allow_nan=False)


def main() -> int:
    """Run the job; returns the exit status."""
    interrupted = "interrupted; the same command continues from the last checkpoint"
    return run_job_that_passes_on(PretrainConfig, run, interrupted=interrupted)


def run(flags: PretrainConfig, arguments: list[str], console: Console) -> int:
    """Train, and print where the result is."""
    flags.check()
    # torch and Ray take seconds to load: only when the flags are right.
    import ray
    import torch

    from pipeline.cluster.connect import connect, in_ray
    from pipeline.cluster.known_lines import without_known_lines
    from train.cluster.checks import absolute_paths, check_run

    # Before the user's flags, which may end in a subcommand (activation-checkpoint:none).
    colours = f"--metrics.{'no-' if console.is_terminal else ''}disable-color-printing"
    arguments = ["--config", flags.config, colours, *absolute_paths(arguments)]
    local = not os.environ.get("RAY_ADDRESS")
    if flags.gpus_per_worker == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if local:
        plan = check_run(arguments)
    connect((flags.num_workers or 1) * flags.cpus_per_worker, "train")
    # Ray Train takes seconds to load: only when the flags are right.
    from train.cluster.launch import choose_workers, train_on_ray

    workers = choose_workers(flags.num_workers, flags.cpus_per_worker, flags.gpus_per_worker)
    if local:
        workers.check_capacity()
    else:
        # A configuration may be valid on GPUs only, and the driver may have none.
        needs_gpu_node = workers.gpus and not torch.cuda.is_available()
        plan = (
            in_ray(ray.remote(check_run), 1, arguments) if needs_gpu_node else check_run(arguments)
        )
    console.print(f"training on {workers}; checkpoints go to {plan.checkpoints}")
    start = time.monotonic()
    with without_known_lines():  # it has the last word where Ray ends this process
        metrics = train_on_ray(
            arguments,
            workers,
            max_failures=flags.max_failures,
            print_line=lambda line: console.print(Text.from_ansi(line), soft_wrap=True),
        )
    ray.shutdown()
    result = summarize(plan, metrics, workers.number, round(time.monotonic() - start, 1))
    if flags.json:
        print(result.line)
    else:
        print_result(result)
    return 0


def summarize(
    plan: "RunPlan", metrics: dict[str, float], workers: int, seconds: float
) -> RunResult:
    """The result of a run.

    Args:
        metrics: what rank 0 logged last, by name; empty if all steps were done before.
    """
    from train.checkpoints.model_json import checkpoint_filesystem
    from train.checkpoints.steps import complete_steps

    checkpoint_filesystem(plan.checkpoints)[0].invalidate_cache()  # It lists steps as of the start.
    last = next(complete_steps(plan.checkpoints), None) if plan.saves else None
    return RunResult(
        steps=int(last.rpartition("-")[2]) if last else int(metrics.get("step", 0)),
        checkpoint=last,
        loss=metrics.get("loss"),
        bits_per_byte=metrics.get("bits_per_byte"),
        validation_bits_per_byte=metrics.get("validation_bits_per_byte"),
        workers=workers,
        seconds=seconds,
    )


def print_result(result: RunResult) -> None:
    """Print the result for people."""
    parts = [f"{result.steps:,} steps done"]
    if result.bits_per_byte is not None:
        parts.append(f"{result.bits_per_byte:.4f} bits per byte")
    if result.validation_bits_per_byte is not None:
        parts.append(f"{result.validation_bits_per_byte:.4f} bits per byte in validation")
    print(", ".join(parts))
    if result.checkpoint:
        print(f"checkpoint: {result.checkpoint}")


def leave(status: int) -> NoReturn:
    """End the process, with what Ray started."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # sys.exit would let Ray abort the process if a thread still waits for it. The processes that
    # Ray started end with this one.
    os._exit(status)


if __name__ == "__main__":
    leave(main())
