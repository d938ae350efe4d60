"""A BPE tokenizer beside the patches: how many bytes its tokens hold on the same text."""

import tempfile
from pathlib import Path

import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.download import fetch, find_tokenizer
from pipeline.errors import ConfigError, PipelineError
from pipeline.report_data import TokenizerFigures
from pipeline.shards import ShardSet

FILE = "tokenizer.json"
SAMPLE_BYTES = 4 << 20
PLACES = 16
"""Shards that the sample is taken from, evenly spaced."""


def tokenizer_figures(name: str, shards: ShardSet) -> TokenizerFigures:
    """Run a tokenizer on a sample of a shard set's text.

    Args:
        name: a tokenizer.json, a directory that holds one (or ``tokenizer/`` that does), or a
            tokenizer of the hub.

    Raises:
        ConfigError: there is no such tokenizer, or it cannot be read.
        PipelineError: a shard cannot be read.
    """
    tokenizer = _load(name)
    texts = _sample(shards)
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encoded)
    size = sum(len(text.encode()) for text in texts)
    if not tokens:
        raise ConfigError(f"--tokenizer {name}: no text to run it on in {shards.output.url}")
    return TokenizerFigures(name, tokenizer.get_vocab_size(), size / tokens, size)


def _load(name: str) -> Tokenizer:
    path = Path(name).expanduser()
    places = [path, path / FILE, path / "tokenizer" / FILE]
    local = next((place for place in places if place.is_file()), None)
    if local is not None:
        return _read(name, local)
    if path.exists():
        raise ConfigError(f"--tokenizer {name}: holds no {FILE}")
    files = {file.name: file for file in find_tokenizer(name)}
    if FILE not in files:
        raise ConfigError(f"--tokenizer {name}: has no {FILE} on the hub, only {', '.join(files)}")
    with tempfile.TemporaryDirectory() as directory:
        return _read(name, fetch(files[FILE], Path(directory), report=lambda count: None))


def _read(name: str, path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more definite
        raise ConfigError(f"--tokenizer {name}: {path} cannot be read: {error}") from error


def _sample(shards: ShardSet) -> list[str]:
    """Documents from the beginnings of shards all over the set."""
    filled = [entry for entry in shards.entries if entry.sha256 is not None]
    chosen = filled[:: max(len(filled) // PLACES, 1)][:PLACES]
    texts: list[str] = []
    size = 0
    for number, entry in enumerate(chosen, 1):
        try:
            for batch in shards.shard_batches(entry, ["text"]):
                for text in batch["text"].to_pylist():
                    # Of a long document its share is enough.
                    texts.append(text[: SAMPLE_BYTES // len(chosen)])
                    size += len(texts[-1])
                    if size * len(chosen) >= SAMPLE_BYTES * number:
                        break
                if size * len(chosen) >= SAMPLE_BYTES * number:
                    break
        except (OSError, pa.ArrowInvalid) as error:
            where = shards.output.locate(entry.path)
            raise PipelineError(f"{where}: cannot be read: {error}") from error
    return texts
