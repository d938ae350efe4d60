"""Tokenizers, trained in a moment."""

import base64
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def byte_level(texts: Sequence[bytes], size: int = 500, **changes: Any) -> bytes:
    """The content of a ``tokenizer.json``.

    Args:
        changes: ``normalizer``; ``prefix``: a space before the text; ``alphabet``: False for the
            bytes of the texts alone; ``special``: special tokens, which get the first ids.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=changes.get("prefix", False))
    bpe.decoder = decoders.ByteLevel()
    if "normalizer" in changes:
        bpe.normalizer = changes["normalizer"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if changes.get("alphabet", True) else []
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=changes.get("special", []),
        show_progress=False,
    )
    bpe.train_from_iterator([text.decode() for text in texts], trainer)
    return bpe.to_str().encode()


def ranks_file(tokens: Sequence[bytes]) -> bytes:
    """tiktoken's file of tokens in the order of their ranks."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
    return "".join(lines).encode()
