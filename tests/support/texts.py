"""Text for tests: real documents, and files of them."""

import json
import pydoc_data.topics
import random
from pathlib import Path


def topics() -> list[tuple[str, str]]:
    """Real text that every Python has: ``(id, text)`` of its documentation's topics, 0.7 MB."""
    return sorted(pydoc_data.topics.topics.items())


def write_jsonl(path: Path, documents: list[tuple[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": name, "text": text}) for name, text in documents]
    path.write_text("\n".join(lines) + "\n")
    return path


def noise(documents: int) -> list[tuple[str, str]]:
    """Documents of 1 MB that hardly compress: files of them are larger than what Ray writes."""
    draw = random.Random(0)
    return [(str(i), draw.randbytes(500_000).hex()) for i in range(documents)]
