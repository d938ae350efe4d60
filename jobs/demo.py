"""Patch the documentation and sources that ship with Python, and draw what came out.

Needs no network: the entropy model comes with this repository. Writes
``demo/corpus.jsonl``, ``demo/shards`` (an output directory of ``jobs/patch_corpus.py``) and
``demo/report.png``. A second run finds its shards committed and only draws.
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
from pipeline.plots import draw_patches

DEMO = ROOT / "demo"
SOURCE_BYTES = 2_000_000
"""Sources of the standard library beside the documentation, about."""
EXAMPLE = ("truth", "objects", "strings")
"""Topics to look for an example sentence in."""


def documents() -> Iterator[tuple[str, str]]:
    """Python's own documentation, then modules of the standard library."""
    yield from sorted(pydoc_data.topics.topics.items())
    left = SOURCE_BYTES
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        left -= len(text)
        if left < 0:
            return
        yield path.name, text


def write_corpus(path: Path) -> None:
    """Write the corpus unless it is there: a changed file would make the job refuse to go on."""
    lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in documents()]
    data = "".join(lines)
    if not path.exists() or path.read_text() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data)


def main() -> int:
    """Returns the exit status of the job."""
    corpus, output, report = DEMO / "corpus.jsonl", DEMO / "shards", DEMO / "report.png"
    write_corpus(corpus)
    job = [sys.executable, str(ROOT / "jobs" / "patch_corpus.py")]
    flags = ["--target-patch-size", "4.5", "--calibration-bytes", "600000", "--id-column", "id"]
    split = ["--shard-bytes", "500000"]  # several shards, so that all cores have work
    done = subprocess.run(
        [*job, "--input", corpus, "--output", output, *flags, *split], check=False
    )
    if done.returncode:
        return done.returncode
    shards = open_shards(str(output))
    example = next(document for document in shards if document.sample_id in EXAMPLE)
    draw_patches(shards, example, report)
    print(f"picture: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
