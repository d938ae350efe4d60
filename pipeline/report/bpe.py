"""A BPE tokenizer to compare patches with: how many bytes its tokens hold on the same text."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from tokenizers import Tokenizer

from pipeline.bpe.token_pieces import open_tokenizer
from pipeline.errors import PipelineError, translated
from pipeline.report.figures import TokenizerFigures
from pipeline.shards.entries import Shard
from pipeline.shards.format import TEXT
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.tokenizer_files import read_tokenizer

T = TypeVar("T")
SAMPLE_CHARACTERS = 4 << 20
SAMPLED_SHARDS = 16
"""Shards that the sample is taken from, evenly spaced."""


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer, which cuts texts as :func:`pipeline.bpe.token_pieces.open_tokenizer` says:
    it gives all tokens of a text and no others.

    Args:
        name: a tokenizer.json, a directory that holds one (itself or in ``tokenizer/``), or a hub
            id.

    Raises:
        ConfigError: there is no such tokenizer, or it cannot be read.
    """
    return open_tokenizer(name, read_tokenizer(name), "--tokenizer")


def tokenizer_figures(
    name: str, tokenizer: Tokenizer, sets: Sequence[ShardSet]
) -> tuple[TokenizerFigures | None, list[str]]:
    """Run a tokenizer on a sample of the text of one or more shard sets.

    Returns:
        the figures, or None if there is no text; and a message for each shard that cannot be read.
    """
    problems: list[str] = []
    texts = list(_sample(sets, problems))
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    tokens = sum(len(encoding.ids) for encoding in encoded)
    if not tokens:
        return None, problems
    size = sum(len(text.encode()) for text in texts)
    return TokenizerFigures(name, tokenizer.get_vocab_size(), size / tokens, size), problems


def _sample(sets: Sequence[ShardSet], problems: list[str]) -> Iterator[str]:
    """Documents from the beginnings of shards all over the sets; messages go to ``problems``."""
    filled = [(s, entry) for s in sets for entry in s.entries if entry.sha256 is not None]
    chosen = evenly_spaced(filled, SAMPLED_SHARDS)
    for shards, entry in chosen:
        where = shards.output.locate(entry.path)
        try:
            with translated(where, what="cannot be read for --tokenizer"):
                yield from _beginning(shards, entry, SAMPLE_CHARACTERS // len(chosen))
        except PipelineError as error:
            problems.append(str(error))


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of the items, the first among them, evenly spaced."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _beginning(shards: ShardSet, entry: Shard, size: int) -> Iterator[str]:
    """The first texts of a shard, at most ``size`` characters in all; the last one may be cut."""
    for batch in shards.shard_batches(entry, [TEXT]):
        for text in batch[TEXT].to_pylist():
            if size <= 0:
                return
            yield text[:size]
            size -= len(text)
