"""Pretrain a BLT or an entropy model from shards, on a Ray cluster or on this machine."""

import argparse
import json
import sys
import time
from pathlib import Path

# A submitted job, or a checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

import train as train_package
from pipeline.cluster import connect, refuse_lost_output
from pipeline.command import run_command
from pipeline.errors import ConfigError, PipelineError
from train.shim import prepare

DESCRIPTION = """\
Pretrain a BLT or an entropy model from shards.

Ray Train spreads the workers over the cluster of RAY_ADDRESS (or over a local Ray), and starts
them again from the last checkpoint when a node dies. A run that was stopped goes on when the same
command is given again. Flags other than those below are torchtitan's:

    --config blt_debug, blt_400m, blt_1b, blt_2b, blt_4b, blt_8b, entropy_debug, entropy_1m,
             entropy_100m, blt_1b_float8, blt_8b_float8
    --dataloader.shards DIR_OR_URL[,DIR_OR_URL...]
    --validator.enable --validator.dataloader.shards DIR_OR_URL
    --dump-folder DIR_OR_URL  checkpoints and metrics; all nodes have to reach it
    --training.steps 1000 ...

python -m train --config blt_debug --help shows them all."""


def main() -> int:
    """Run the job; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="name of the configuration")
    parser.add_argument(
        "--num-workers", type=int, help="processes; as many as there are GPUs, or 1, by default"
    )
    parser.add_argument(
        "--max-failures",
        type=int,
        default=3,
        help="how often workers are started again (default: 3; -1: without end)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    flags, arguments = parser.parse_known_args()
    console = Console(stderr=True)
    again = "interrupted; run the same command again to go on from the last checkpoint"
    return run_command(lambda: run(flags, arguments, console), console, interrupted=again)


def run(flags: argparse.Namespace, arguments: list[str], console: Console) -> int:
    """Train, and print where the result is."""
    if flags.num_workers is not None and flags.num_workers < 1:
        raise ConfigError(f"--num-workers: must be at least 1, got {flags.num_workers}")
    arguments = ["--config", flags.config, *arguments]
    folder, checkpoints, steps = check(arguments)
    connect(flags.num_workers, train_package, dashboard=True)
    from train.launch import gpus_of_cluster, train_on_ray

    gpus = gpus_of_cluster()
    workers = flags.num_workers or max(gpus, 1)
    console.print(f"training on {workers} {'GPU' if gpus else 'CPU'} worker(s)")
    start = time.monotonic()
    try:
        train_on_ray(
            [*arguments, "--dump-folder", folder],
            num_workers=workers,
            gpus=bool(gpus),
            max_failures=flags.max_failures,
            storage=f"{folder}/ray",
        )
    except Exception as error:
        if type(error).__module__.startswith("ray."):
            raise PipelineError(
                f"training failed: {error}. The same command goes on from the last checkpoint"
            ) from error
        raise
    result = {
        "checkpoints": checkpoints,
        "steps": steps,
        "workers": workers,
        "seconds": time.monotonic() - start,
    }
    if flags.json:
        print(json.dumps(result))
    else:
        print(f"{steps} steps done; checkpoints in {checkpoints}")
    return 0


def check(arguments: list[str]) -> tuple[str, str, int]:
    """The folder of the run as an absolute path or URL, that of its checkpoints, and the steps.

    Raises:
        ConfigError: the arguments make no configuration; names the flag.
    """
    prepare()
    from torchtitan.config import ConfigManager
    from torchtitan.tools import filesystem

    try:
        config = ConfigManager().parse_args(["--module", "train", *arguments])
    except (ValueError, ImportError) as error:
        raise ConfigError(str(error)) from error
    refuse_lost_output(config.dump_folder)
    folder = config.dump_folder
    if not filesystem.is_remote(folder):
        folder = str(Path(folder).resolve())
    return folder, filesystem.join(folder, config.checkpoint.folder), config.training.steps


if __name__ == "__main__":
    sys.exit(main())
