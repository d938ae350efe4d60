"""Pretrain a BLT or an entropy model from shards, on a Ray cluster or on this machine."""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.text import Text

from pipeline.cli.command import run_command
from train.flags.configurations import check_configuration

if TYPE_CHECKING:
    from train.cluster.checks import RunPlan

DESCRIPTION = """\
Pretrain a BLT or an entropy model from shards.

Ray Train spreads the workers over the cluster of RAY_ADDRESS (or over a local Ray), and restarts
them from the last checkpoint when one of them, or a node, dies. A run that was stopped resumes when
the same command is given again, also with another number of workers. All flags but those below are
torchtitan's:

    --dataloader.shards DIR_OR_URL[,DIR_OR_URL...]
    --validator.enable --validator.dataloader.shards DIR_OR_URL
    --dump-folder DIR_OR_URL  checkpoints and metrics (default: ./outputs)
    --shape.dim-global 1024 --shape.file model.json ...  another shape of the model
    --training.steps 1000 --training.local-batch-size 8 --checkpoint.interval 500 ...

All nodes have to reach these places, with the credentials of their own environment;
python -m train --config blt_debug --help shows all flags. Exit status: 0 when all steps were
done, 1 when training failed, 2 when a flag is wrong."""


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


def main() -> int:
    """Run the job; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="NAME", help="blt_debug, blt_1b, entropy_100m, ...")
    add("--num-workers", type=int, help="processes (default: as many as GPUs, or 1)")
    add(
        "--gpus-per-worker",
        type=int,
        choices=(0, 1),
        help="0 to train on CPUs (default: 1 where there are GPUs)",
    )
    add("--cpus-per-worker", type=int, default=1, help="threads per worker (default: 1)")
    add(
        "--max-failures",
        type=int,
        default=3,
        help="how often workers are restarted (default: 3; -1: without limit)",
    )
    add("--json", action="store_true", help="print the result as JSON")
    flags, arguments = parser.parse_known_args()
    console = Console(stderr=True)
    interrupted = "interrupted; the same command continues from the last checkpoint"
    return run_command(lambda: run(flags, arguments, console), console, interrupted=interrupted)


def run(flags: argparse.Namespace, arguments: list[str], console: Console) -> int:
    """Train, and print where the result is."""
    check_configuration(flags.config)
    # torch and Ray take seconds to load: only when the flags are right.
    import ray
    import torch

    from pipeline.cluster.connect import connect, in_ray
    from train.cluster.checks import absolute_paths, check_flags, check_run

    check_flags(flags)
    # Before the user's flags, which may end in a subcommand (activation-checkpoint:none).
    plain = [] if console.is_terminal else ["--metrics.disable-color-printing"]
    arguments = ["--config", flags.config, *plain, *absolute_paths(arguments)]
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
    metrics = train_on_ray(
        arguments,
        workers,
        max_failures=flags.max_failures,
        print_line=lambda line: console.print(Text.from_ansi(line), soft_wrap=True),
    )
    ray.shutdown()
    result = summarize(plan, metrics, workers.number, round(time.monotonic() - start, 1))
    if flags.json:
        print(json.dumps(asdict(result)))
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
    from train.checkpoints.model_json import checkpoint_filesystem, steps_in

    checkpoint_filesystem(plan.checkpoints)[0].invalidate_cache()  # It lists steps as of the start.
    steps = steps_in(plan.checkpoints) if plan.saves else []
    return RunResult(
        steps=int(steps[0].rsplit("-", 1)[1]) if steps else int(metrics.get("step", 0)),
        checkpoint=steps[0] if steps else None,
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


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # sys.exit would let Ray abort the process if a thread still waits for it. The processes that
    # Ray started end with this one.
    os._exit(status)
