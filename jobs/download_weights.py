"""Download published weights from the hub; files that exist already are not downloaded again."""

import sys
from dataclasses import dataclass
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from model.checkpoints.names import PUBLISHED, PUBLISHED_ENTROPY_MODEL
from pipeline.cli.command import run_job
from pipeline.cli.flags import refuse_url
from pipeline.cli.optional import OrNone
from pipeline.cli.results import print_problems
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class DownloadWeightsConfig:
    """Download checkpoints from the hub; an interrupted download continues where it stopped.

    The published checkpoints are gated: accept their licence on the hub, then set HF_TOKEN. Exit
    status: 0 if everything is downloaded, 1 if something cannot be.
    """

    model: tuple[str, ...] = (PUBLISHED[0], PUBLISHED_ENTROPY_MODEL)
    """Hub ids."""
    output: OrNone[str] = None
    """Directory that gets a directory per checkpoint; the hub's cache by default."""


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(DownloadWeightsConfig, run)


def run(config: DownloadWeightsConfig, console: Console) -> int:
    """Download what can be downloaded, and print where it is."""
    if not config.model:
        raise ConfigError("--model: name at least one hub id")
    repositories = list(dict.fromkeys(name.removeprefix("hf://") for name in config.model))
    folders = [name.split("/")[-1] for name in repositories]
    if config.output:
        refuse_url(config.output)
    if config.output and (same := {name for name in folders if folders.count(name) > 1}):
        raise ConfigError(
            f"--output: two of the models would go to {config.output}/{min(same)}; download one "
            "of them to another directory"
        )
    # torch takes a second to load: only when the flags are right.
    from model.checkpoints.files import CheckpointError
    from model.checkpoints.places import download, holds_weights

    status = 0
    for repository in repositories:
        target = Path(config.output, repository.split("/")[-1]) if config.output else None
        try:
            directory = download(repository, target)
            if not holds_weights(directory):
                raise CheckpointError(
                    f"{repository}: has no weights in .safetensors or .pth files, which alone are "
                    f"downloaded and read; what else is wanted of it is in {directory}"
                )
            print(directory)
        except CheckpointError as error:
            print_problems(console, [f"error: {error}"])
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
