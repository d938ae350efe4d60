"""Patch the documentation and sources that ship with Python, and report on what came out.

Needs no network: the entropy model comes with this repository. Writes ``demo/corpus.jsonl``,
``demo/shards`` (an output directory of ``jobs/patch_corpus.py``), ``demo/report`` (one of
``jobs/patch_report.py``) and ``demo/patches.png``, a sentence with its entropies and patches. A
second run finds its shards committed and only looks at them.
"""

import json
import pydoc_data.topics
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import open_shards
from pipeline.drawing.entropy_png import write_entropy_png

DEMO = ROOT / "demo"
SOURCE_BYTES = 2_000_000
"""Sources of the standard library beside the documentation, about."""
EXAMPLE = ("truth", "objects", "strings")
"""Topics to look for an example sentence in."""


def documents() -> Iterator[tuple[str, str, str]]:
    """``(id, text, kind)``: Python's own documentation, then modules of the standard library."""
    for name, text in sorted(pydoc_data.topics.topics.items()):
        yield name, text, "documentation"
    left = SOURCE_BYTES
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        left -= len(text)
        if left < 0:
            return
        yield path.name, text, "source code"


def write_corpus(path: Path) -> None:
    """Write the corpus unless it is there: a changed file would make the job refuse to go on."""
    keys = ("id", "text", "kind")
    rows = (dict(zip(keys, document, strict=True)) for document in documents())
    data = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data)


def run_job(name: str, *flags: object) -> int:
    """The exit status of a job."""
    job = [sys.executable, str(ROOT / "jobs" / name), *map(str, flags)]
    return subprocess.run(job, check=False).returncode


def main() -> int:
    """Returns the exit status of the first job that failed, or 0."""
    corpus, output = DEMO / "corpus.jsonl", DEMO / "shards"
    write_corpus(corpus)
    columns = ("--id-column", "id", "--keep-columns", "kind")
    target = ("--target-patch-size", 4.5, "--calibration-bytes", 600_000)
    split = ("--shard-bytes", 500_000)  # several shards, so that all cores have work
    flags = ("--input", corpus, "--output", output, *columns, *target, *split)
    if status := run_job("patch_corpus.py", *flags):
        return status
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
    return run_job("patch_report.py", "--shards", output, "--output", DEMO / "report")


if __name__ == "__main__":
    sys.exit(main())
