"""Train the entropy model that comes with this repository, from nothing to files to ship.

Gathers prose, translations and code that Python and two source packages carry, cuts them into
shards, trains ``entropy_1m`` with this repository's trainer, measures bits per byte on documents
that were held out, and writes weights and card. Each step is skipped if it was done before, and a
training that was stopped goes on. About an hour on two cores.
"""

import hashlib
import json
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.command import run_command
from pipeline.errors import PipelineError

PACKAGES = {
    "Django==5.2": "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89",
    "SQLAlchemy==2.0.43": "788bfcef6787a7764169cfe9859fe425bf44559619e1d9f56f5bddf2ebf6f417",
}
"""Source packages and their sha256: documentation, code, web pages, and translations into a hundred
languages, under the BSD and MIT licences."""
KINDS = {
    ".txt": 9_000_000,
    ".rst": 6_000_000,
    ".po": 6_000_000,
    ".py": 14_000_000,
    ".js": 1_000_000,
    ".html": 1_000_000,
    ".css": 200_000,
}
"""Most bytes of each kind of file."""
HELD_OUT = 64
"""One document in so many is kept for validation."""


@dataclass(frozen=True)
class TrainEntropyModelConfig:
    """Train the entropy model that comes with this repository, from nothing to files to ship."""

    work: Path = ROOT / "build" / "entropy-1m"
    """Directory for the corpus, shards and checkpoints."""
    output: Path = ROOT / "model" / "weights" / "entropy-1m"
    """Directory for the weights."""
    processes: int = 2
    """Training processes, one core each."""
    steps: int = 2000
    """Training steps of 16,384 tokens."""


def run(command: list[object], **options: object) -> None:
    """A command that has to succeed."""
    done = subprocess.run([str(part) for part in command], check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise PipelineError(f"exit status {done.returncode}: {' '.join(map(str, command))}")


def source_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Names and places of all files that may be used."""
    for package, sha256 in PACKAGES.items():
        archives = directory / "packages" / package
        if not archives.exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            run([*pip, "--no-binary", ":all:", "--dest", archives, package])
        (archive_path,) = archives.iterdir()
        if hashlib.sha256(archive_path.read_bytes()).hexdigest() != sha256:
            raise PipelineError(f"{archive_path}: not the file that the model was trained on")
        unpacked = directory / "unpacked" / package
        if not unpacked.exists():
            with tarfile.open(archive_path) as archive:
                archive.extractall(unpacked, filter="data")
        for path in sorted(unpacked.rglob("*")):
            if "tests" not in path.parts and "test" not in path.parts:
                yield str(path.relative_to(unpacked.parent)), path
    # Packages only: the modules beside them are what the demo patches.
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.glob("*/**/*.py")):
        parts = path.relative_to(library).parts
        if not {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(parts):
            yield str(Path(*parts)), path


def write_corpus(directory: Path) -> None:
    """Write ``train.jsonl`` and ``validation.jsonl``: what is chosen depends on names alone."""
    files = [(name, path) for name, path in source_files(directory) if path.suffix in KINDS]
    files.sort(key=lambda file: hashlib.sha256(file[0].encode()).digest())
    left, parts = dict(KINDS), {"train": [], "validation": []}  # type: ignore[var-annotated]
    for number, (name, path) in enumerate(files):
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        left[path.suffix] -= len(text.encode())
        if left[path.suffix] > 0 and text:
            part = "train" if number % HELD_OUT else "validation"
            parts[part].append(json.dumps({"id": name, "text": text, "kind": path.suffix}) + "\n")
    for part, lines in parts.items():
        (directory / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


def train_entropy_model(config: TrainEntropyModelConfig) -> dict[str, object]:
    """All steps; what the card says."""
    work = config.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "validation.jsonl").exists():
        write_corpus(work)
    python, jobs = sys.executable, ROOT / "jobs"
    for part in ("train", "validation"):
        columns = ["--id-column", "id", "--keep-columns", "kind"]
        patch = [python, jobs / "patch_corpus.py", "--input", work / f"{part}.jsonl", *columns]
        # Cut by a rule that needs no model: an entropy model reads the text alone.
        run([*patch, "--output", work / part, "--rule", "space", "--shard-bytes", 8_000_000])
    torchrun = [python, "-m", "torch.distributed.run", "--nproc-per-node", config.processes]
    flags = ["--training.steps", config.steps, "--dump-folder", work / "run"]
    run(
        [
            *[*torchrun, "--local-ranks-filter", "0", "-m", "train", "--config", "entropy_1m"],
            *["--training.local-batch-size", 8 // config.processes, *flags],
            *["--dataloader.shards", work / "train", "--validator.enable"],
            *["--validator.dataloader.shards", work / "validation"],
        ],
        cwd=ROOT,
    )
    return {}


def main() -> int:
    config = tyro.cli(TrainEntropyModelConfig, description=__doc__)
    return run_command(lambda: train_entropy_model(config))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
