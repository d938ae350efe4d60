"""Training of byte-level BPE tokenizers on the text of shards."""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.shards.format import TEXT
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.tiktoken_ranks import LLAMA3_WORDS


def sample(sets: list[ShardSet], size: int) -> Iterator[str]:
    """Documents from the beginning of every shard, in all about ``size`` bytes: each shard gives as
    much of its text as all shards do of theirs.

    Raises:
        PipelineError: a shard cannot be read.
    """
    counts = [int(tokens) for shards in sets for tokens in shards.shards.tokens]
    share = min(size / max(sum(counts), 1), 1)
    for shards in sets:
        for number, tokens in enumerate(shards.shards.tokens.tolist()):
            yield from _beginning(shards, number, tokens * share)


def _beginning(shards: ShardSet, number: int, tokens: float) -> Iterator[str]:
    """The first documents of a shard, until they have so many tokens, which is more than none."""
    for batch in shards.shard_batches(number, [TEXT]):
        for text in batch[TEXT].to_pylist():
            yield text
            tokens -= len(text.encode()) + 2
            if tokens <= 0:
                return


def train(texts: list[str], vocab_size: int) -> bytes:
    """The ``tokenizer.json`` of a byte-level BPE tokenizer without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str(pretty=True).encode()
