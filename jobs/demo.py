"""Patch the documentation and sources that ship with Python, and write a report.

The demo needs no network: the entropy model comes with this repository. It writes
``demo/corpus.jsonl``, ``demo/shards`` (an output directory of ``jobs/patch_corpus.py``),
``demo/report`` (one of ``jobs/patch_report.py``) and ``demo/patches.png``, a sentence with its
entropies and patches. A second run reuses the shards.
"""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rich.console import Console

from pipeline.cli.command import run_job

DEMO = ROOT / "demo"
SOURCE_BYTES = 2_000_000
"""Approximate size of the standard library's sources that the corpus holds."""
EXAMPLE = ("truth", "objects", "strings")
"""Topics of the documentation, one of which is drawn."""


@dataclass(frozen=True)
class DemoConfig:
    """Patch the documentation and sources that ship with Python, and write a report, below demo/.

    The demo needs no network: the entropy model comes with this repository. A second run reuses the
    shards. Exit status: 0, or that of the first job that failed.
    """


def documents() -> Iterator[tuple[str, str, str]]:
    """Yield ``(id, text, kind)`` of Python's documentation, then of the standard library."""
    import pydoc_data.topics

    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield name, text, "documentation"
    remaining = SOURCE_BYTES
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        remaining -= len(text)
        if remaining < 0:
            return
        yield path.name, text, "source code"


def write_corpus(path: Path) -> None:
    """Write the corpus, unless the file holds it: jobs do not resume when a file changes."""
    keys = ("id", "text", "kind")
    rows = (dict(zip(keys, document, strict=True)) for document in documents())
    data = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data)


def run_script(name: str, *flags: object) -> int:
    """Run a job; returns its exit status."""
    job = [sys.executable, str(ROOT / "jobs" / name), *map(str, flags)]
    return subprocess.run(job, check=False).returncode


def main() -> int:
    """Run the job; returns the exit status."""
    return run_job(DemoConfig, run)


def run(config: DemoConfig, console: Console) -> int:
    """Run the demo; returns the exit status of the first job that failed, or 0."""
    corpus, output = DEMO / "corpus.jsonl", DEMO / "shards"
    write_corpus(corpus)
    columns = ("--id-column", "id", "--keep-columns", "kind")
    target = ("--target-patch-size", 4.5, "--calibration-bytes", 1_000_000)
    split = ("--shard-bytes", 500_000)  # several shards, so that all cores are busy
    flags = ("--input", corpus, "--output", output, *columns, *target, *split)
    if status := run_script("patch_corpus.py", *flags):
        return status
    from pipeline import open_shards
    from pipeline.drawing.entropy_png import write_entropy_png

    shards = open_shards(str(output))
    example = next(document for document in shards if document.sample_id in EXAMPLE)
    assert example.entropies is not None  # patch_corpus.py stores them by default
    write_entropy_png(
        DEMO / "patches.png",
        example.sample_id,
        example.text.encode(),
        example.entropies,
        example.patch_lengths,
        shards.patcher.threshold,
    )
    print(f"picture: {DEMO / 'patches.png'}", flush=True)
    return run_script("patch_report.py", "--shards", output, "--output", DEMO / "report")


if __name__ == "__main__":
    sys.exit(main())
