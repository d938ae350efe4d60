"""Score a built-in text, and tell whether another device gives the same entropies."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from rich.console import Console

from model.checkpoints.names import BUILT_IN
from pipeline.cli.command import run_job
from pipeline.cli.optional import OrNone
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.patch.agreement import Measured


@dataclass(frozen=True)
class CheckDeviceConfig:
    """Score a built-in text on this machine's GPU, or its CPU, and compare with other machines.

    Run it with --output on one machine, and with --compare and that file on the other. Exit status:
    0 if all agree up to the tolerance, 1 if not, or if the device does not repeat itself.
    """

    entropy_model: str = BUILT_IN
    """Directory, URL or hub id of an entropy model; "entropy-1m" comes with blt-titan."""
    output: OrNone[Path] = None
    """File that gets the entropies of this machine."""
    compare: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="[FILE ...]")] = ()
    """Outputs of other machines, or of other processes here."""
    json: bool = False
    """Print the result as JSON."""


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(CheckDeviceConfig, run, interrupted="interrupted")


def run(config: CheckDeviceConfig, console: Console) -> int:
    """Score, save and compare; print what was found."""
    if config.output is not None and (config.output.is_dir() or not config.output.parent.is_dir()):
        raise ConfigError(f"--output {config.output}: has to be a file in a directory that exists")
    # torch takes a second to load: only when the flags are right.
    import torch

    from model.checkpoints.entropy_model import load_entropy_model
    from model.checkpoints.files import CheckpointError
    from model.patcher import Patcher
    from pipeline.patch.agreement import Agreement, Measured
    from pipeline.patch.scoring import Scorer

    others = {path: _read(path) for path in config.compare}
    try:
        model = load_entropy_model(config.entropy_model, device="cpu", dtype=torch.float32)
    except CheckpointError as error:
        raise ConfigError(f"--entropy-model: {error}") from error
    scorer = Scorer(model, Patcher(rule="byte")).on_device(torch.cuda.is_available())
    ours = Measured.by(scorer)
    if config.output is not None:
        try:
            config.output.write_text(ours.to_json())
        except OSError as error:
            raise ConfigError(f"--output {config.output}: {error.strerror}") from error
    found = {
        path: Agreement.between(ours, other, f"--compare {path}") for path, other in others.items()
    }
    if config.json:
        of_others = {str(path): each.to_json() for path, each in found.items()}
        head = {"computed_in": ours.computed_in, "software": ours.software, "hash": ours.hash()}
        print(json.dumps(head | {"compared": of_others}))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in ours.software.items())
        print(f"{ours.computed_in}, {versions}: {ours.hash()}")
        for path, agreement in found.items():
            print(f"{path} ({others[path].computed_in}): {agreement}")
    return 0 if all(each.tolerable for each in found.values()) else 1


def _read(path: Path) -> "Measured":
    from pipeline.patch.agreement import Measured

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--compare {path}: {error.strerror}") from error
    return Measured.from_json(data, f"--compare {path}")


if __name__ == "__main__":
    sys.exit(main())
