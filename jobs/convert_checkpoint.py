"""Convert a step of the trainer, a mean of steps, or other weights, into another layout."""

import sys
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from pipeline.cli.command import run_job
from train.convert.config import ConvertCheckpointConfig


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(ConvertCheckpointConfig, run, interrupted="interrupted: nothing was written")


def run(config: ConvertCheckpointConfig, console: Console) -> int:
    """Convert the checkpoint and print the files; returns the exit status."""
    config.check()
    # torch takes a second to load: only when the flags are right.
    from train.convert.job import convert_checkpoint

    return convert_checkpoint(config, console)


if __name__ == "__main__":
    sys.exit(main())
