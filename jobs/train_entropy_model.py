"""Train the entropy model that comes with this repository, from nothing to files to ship.

It gathers prose, translations and code from Python and two source packages, cuts them into shards,
trains ``entropy_1m`` with this repository's trainer, measures bits per byte on documents that were
held out, and writes weights and model card. A step that was done before is skipped, and a training
that was stopped continues. All of it takes about an hour on two cores.
"""

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.cli.command import run_job
from pipeline.errors import PipelineError
from train.config_registry import entropy_1m

PACKAGES = {
    "Django==5.2": "1a47f7a7a3d43ce64570d350e008d2949abe8c7e21737b351b6a1611277c6d89",
    "SQLAlchemy==2.0.43": "788bfcef6787a7764169cfe9859fe425bf44559619e1d9f56f5bddf2ebf6f417",
}
"""Source packages and their sha256. They hold documentation, code, web pages, and translations into
a hundred languages, under the BSD and MIT licences."""
KINDS = {
    ".txt": 9_000_000,
    ".rst": 6_000_000,
    ".po": 6_000_000,
    ".py": 14_000_000,
    ".js": 1_000_000,
    ".html": 1_000_000,
    ".css": 200_000,
}
"""The most bytes to take of each kind of file."""
HELD_OUT = 64
"""One document in so many is held out for validation."""

CARD = """\
# entropy-1m

A byte-level entropy model of 1.1 million parameters: 4 layers, 128 wide, window 256. It is the
default of `jobs/patch_corpus.py`: small enough for a CPU, good enough to try everything out. For
patches that agree with published BLT weights use `facebook/blt-entropy`.

Trained with this repository's trainer on {seen:.1f} MB of a corpus of {corpus:.1f} MB, no text
twice: prose, code, web pages and translations into a hundred languages, from the documentation and
sources of Django 5.2 (BSD) and SQLAlchemy 2.0.43 (MIT), and the packages of Python's standard
library (PSF). The modules beside these packages and the documentation topics, which `make demo`
patches, were left out.

    make entropy-model   # {steps} steps of {step_tokens:,} tokens, about an hour on two cores

**{bits:.3f} bits per byte** on {held_out:.2f} MB that were held out (xz -9: {xz:.3f}), by kind of
file:

| kind | bits per byte |
|---|---|
{by_kind}
"""


@dataclass(frozen=True)
class TrainEntropyModelConfig:
    """Train the entropy model that comes with this repository, from nothing to files to ship.

    Gather prose, translations and code from Python and two source packages, cut them into shards,
    train ``entropy_1m`` with this repository's trainer, measure bits per byte on documents that
    were held out, and write weights and card. A step that was done before is skipped, and a
    training that was stopped continues. It takes about an hour on two cores.
    """

    work: Path = ROOT / "build" / "entropy-1m"
    """Directory for the corpus, shards and checkpoints."""
    output: Path = ROOT / "model" / "weights" / "entropy-1m"
    """Directory for the weights."""
    processes: int = 2
    """Training processes, one core each."""
    steps: int | None = None
    """Training steps; by default those of the configuration, three quarters of the corpus."""


def run(command: list[object], **options: object) -> None:
    """Run a command.

    Raises:
        PipelineError: it fails.
    """
    done = subprocess.run([str(part) for part in command], check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise PipelineError(f"exit status {done.returncode}: {' '.join(map(str, command))}")


def source_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """The names and paths of all files that may be used."""
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
    """Write ``train.jsonl`` and ``validation.jsonl``: names alone decide what is in them."""
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


def train(config: TrainEntropyModelConfig, steps: int, rows: int) -> None:
    """Make corpus and shards and train, skipping what was done before.

    Args:
        rows: of a step, which the processes share.
    """
    work, python = config.work, sys.executable
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "validation.jsonl").exists():
        write_corpus(work)
    for part in ("train", "validation"):
        columns = ["--id-column", "id", "--keep-columns", "kind"]
        job = [python, ROOT / "jobs" / "patch_corpus.py", "--input", work / f"{part}.jsonl"]
        # A rule that needs no model will do: the training of an entropy model ignores patches.
        cut = ["--rule", "space", "--shard-bytes", 8_000_000]
        run([*job, *columns, "--output", work / part, *cut])
    torchrun = [python, "-m", "torch.distributed.run", "--nproc-per-node", config.processes]
    run(
        [
            *[*torchrun, "--local-ranks-filter", "0", "-m", "train", "--config", "entropy_1m"],
            *["--training.local-batch-size", rows // config.processes],
            *["--training.steps", steps, "--dump-folder", work / "run"],
            *["--dataloader.shards", work / "train", "--validator.enable"],
            *["--validator.dataloader.shards", work / "validation"],
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def export(config: TrainEntropyModelConfig, console: Console) -> int:
    """Train, measure, and write weights and model card; returns the exit status."""
    recipe = entropy_1m().training
    steps, rows = config.steps or recipe.steps, recipe.global_batch_size
    train(config, steps, rows)
    work, python = config.work, sys.executable
    fresh = work / "weights"
    shutil.rmtree(fresh, ignore_errors=True)
    step = work / "run" / "checkpoint" / f"step-{steps}"
    run([python, ROOT / "jobs" / "convert_checkpoint.py", "--checkpoint", step, "--output", fresh])
    evaluation = work / "evaluation.json"
    job = [python, ROOT / "jobs" / "evaluate.py", "--model", fresh, "--by", "kind", "--json"]
    with evaluation.open("w") as file:
        run([*job, "--input", work / "validation.jsonl"], stdout=file)
    held_out = (work / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    text = "".join(json.loads(line)["text"] for line in held_out).encode()
    result = json.loads(evaluation.read_text())
    card = CARD.format(
        steps=steps,
        step_tokens=rows * recipe.seq_len,
        seen=steps * rows * recipe.seq_len / 1e6,
        corpus=megabytes(work / "train.jsonl"),
        bits=result["bits_per_byte"],
        xz=8 * len(lzma.compress(text, preset=9)) / len(text),
        held_out=len(text) / 1e6,
        by_kind="\n".join(
            f"| `{kind}` | {of_kind['bits_per_byte']:.3f} |"
            for kind, of_kind in result["sources"].items()
        ),
    )
    config.output.mkdir(parents=True, exist_ok=True)
    for path in fresh.iterdir():
        shutil.copy(path, config.output)
    (config.output / "README.md").write_text(card, encoding="utf-8")
    console.print(f"{result['bits_per_byte']:.4f} bits per byte; weights in {config.output}")
    return 0


def megabytes(path: Path) -> float:
    """Megabytes of text in a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(TrainEntropyModelConfig, export)


if __name__ == "__main__":
    sys.exit(main())
