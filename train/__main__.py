"""``python -m train --config blt_debug --dataloader.shards DIR``: torchtitan's command with this
project's configurations. It runs as one process without a launcher, or under ``torchrun -m train``.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console

from pipeline.cli.command import at_home, run_command
from pipeline.cli.loading import loading
from pipeline.errors import PipelineError
from train import MODULE
from train.flags.configurations import check_configuration, configurations

USAGE = """\
python -m train --config NAME --dataloader.shards DIR_OR_URL[,DIR_OR_URL...] [FLAGS]

Pretrains a BLT, an entropy model or a baseline (transformers of bytes or of a tokenizer's tokens)
from shards that jobs/patch_corpus.py wrote. A run that was stopped resumes when the same command is
given again. On several processes:
torchrun --nproc-per-node 8 -m train --config NAME ...

Configurations:
{configurations}

Frequent flags:
  --dump-folder DIR_OR_URL      checkpoints and metrics (default: outputs)
  --training.steps 1000         length of the run
  --shape.dim-global 1024       the model's shape, value by value, or --shape.file model.json
  --validator.enable --validator.dataloader.shards DIR_OR_URL
                                bits per byte of held-out text
  --tokenizer.source FILE       the tokenizer.json of bpe_...; jobs/train_tokenizer.py makes one
  --metrics.enable-tensorboard, --metrics.enable-wandb

All flags, with their values: python -m train --config NAME --help"""


def main() -> None:
    """Run torchtitan with the command line's arguments.

    Raises:
        ConfigError: an argument is wrong.
        PipelineError: shards cannot be used.
        CheckpointError: a checkpoint cannot be used.
        SystemExit: torchtitan's parser found a wrong argument and printed an error.
    """
    with loading():
        from train.shim import prepare

        prepare()
        from torchtitan.train import main as train  # only after prepare(): see train.shim

        from train import config_registry  # noqa: F401  (torchtitan imports it in any case)

    if "RANK" not in os.environ:
        set_single_process_environment()
    sys.argv[1:1] = ["--module", MODULE]
    train()


def command() -> int:
    """Run ``python -m train``; returns the exit status."""
    arguments = sys.argv[1:]
    console = Console(stderr=True)
    name = _config_name(arguments)
    if name is None and (not arguments or {"-h", "--help"} & set(arguments)):
        texts = configurations()
        width = max(map(len, texts)) + 1
        listed = "\n".join(f"  {name:{width}}{text}" for name, text in texts.items())
        print(USAGE.format(configurations=listed))
        return 0
    # torchtitan's parser prints this name.
    sys.argv = ["train", *map(_at_home, arguments)]
    interrupted = "interrupted; run the same command again to continue from the last checkpoint"
    return run_command(lambda: _train(name), console, interrupted=interrupted)


def _at_home(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    return f"{flag}={at_home(value)}" if equals else argument  # which the shell has seen to


def _train(name: str | None) -> int:
    """
    Raises:
        ConfigError: an argument is wrong.
        PipelineError: shards or a checkpoint cannot be used.
    """
    check_configuration(name)
    # torch takes seconds to load: only when an interruption is told in a sentence.
    from train.checkpoints.collective import is_lost_connection

    try:
        with checkpoint_errors_told():
            main()
    except RuntimeError as error:
        if os.environ.get("WORLD_SIZE", "1") == "1" or not is_lost_connection(error):
            raise
        # The cause is elsewhere, and pages of hundreds of ranks would bury it.
        text = str(error).splitlines()[0]
        raise PipelineError(
            f"rank {os.environ['RANK']} lost another rank, which ended, or gave no sign for too "
            f"long; look for the error of the one that ended first ({text})"
        ) from error
    return 0


@contextlib.contextmanager
def checkpoint_errors_told() -> Iterator[None]:
    """Raise errors of checkpoints as errors that commands tell in a sentence.

    Raises:
        PipelineError: a checkpoint cannot be read or written.
    """
    from model.checkpoints.files import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise PipelineError(str(error)) from error


def _config_name(arguments: list[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config" and i + 1 < len(arguments):
            return arguments[i + 1]
    return None


def set_single_process_environment() -> None:
    """Set the variables that a launcher sets for a run of one process. No other process meets it,
    so that any free port will do: 0."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


if __name__ == "__main__":
    sys.exit(command())
