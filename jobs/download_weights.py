"""Download published weights from the hub; files that exist already are not downloaded again."""

import sys
from dataclasses import dataclass
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro

from model.checkpoints.blt import PUBLISHED, PUBLISHED_ENTROPY_MODEL
from model.checkpoints.files import CheckpointError, download


@dataclass(frozen=True)
class DownloadWeightsConfig:
    """Download checkpoints from the hub; an interrupted download continues where it stopped.

    The published checkpoints are gated: accept their licence on the hub, then set HF_TOKEN. Exit
    status: 0 if everything is downloaded, 1 if something cannot be.
    """

    model: tuple[str, ...] = (PUBLISHED[0], PUBLISHED_ENTROPY_MODEL)
    """Hub ids."""
    output: str | None = None
    """Directory that gets a directory per checkpoint; the hub's cache by default."""


def main() -> int:
    """Run the job; returns the exit status."""
    config = tyro.cli(DownloadWeightsConfig)
    if not config.model:
        print("error: --model: name at least one hub id", file=sys.stderr)
        return 2
    status = 0
    for repository in (name.removeprefix("hf://") for name in config.model):
        target = Path(config.output, repository.split("/")[-1]) if config.output else None
        try:
            print(download(repository, target))
        except CheckpointError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
