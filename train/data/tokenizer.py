"""Tokenizers with the interface that torchtitan requires, which say what bytes ids stand for."""

from dataclasses import dataclass
from typing import Any

from torchtitan.components.tokenizer import BaseTokenizer

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID, ByteTokenizer
from pipeline.bpe.byte_level import BPE, load_bpe
from pipeline.bpe.token_bytes import BYTES, TokenBytes
from pipeline.errors import ConfigError

FLAG = "--tokenizer.source"


class TitanTokenizer(BaseTokenizer):
    """One of torchtitan's tokenizers that says which bytes its ids stand for."""

    bpe: BPE | None = None
    """The tokenizer that cuts text; None for bytes."""
    token_bytes: TokenBytes

    def __init__(self) -> None:
        super().__init__()
        self.eos_id = EOS_ID


class TitanByteTokenizer(TitanTokenizer, ByteTokenizer):
    """The byte tokenizer as one of torchtitan's tokenizers; it reads no files."""

    token_bytes = BYTES

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any):
        super().__init__()

    encode = ByteTokenizer.encode
    decode = ByteTokenizer.decode

    def get_vocab_size(self) -> int:
        return self.vocab_size


class TitanBPETokenizer(TitanTokenizer):
    """A byte-level BPE tokenizer, of which the dataloader makes rows of ids."""

    bpe: BPE

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        source: str = ""
        """A tokenizer.json, a directory that holds one, or a hub id (owner/name, llama3, gpt2).
        Every process reads it, so give a file where there are many."""

    def __init__(self, config: Config, **kwargs: Any):
        """
        Raises:
            ConfigError: no tokenizer is given, or it cannot be used.
        """
        super().__init__()
        if not config.source:
            raise ConfigError(
                f"{FLAG}: name the tokenizer: a tokenizer.json (jobs/train_tokenizer.py makes one "
                "of shards), a directory that holds one, or a hub id"
            )
        self.bpe = load_bpe(config.source, FLAG)
        self.token_bytes = self.bpe.token_bytes

    def encode(self, text: str, *, bos: bool = True, eos: bool = True) -> list[int]:
        """A model's ids of one document, with BOS and EOS unless they are turned off."""
        ids = (self.bpe.encode([text])[0].astype(int) + BYTE_OFFSET).tolist()
        return [BOS_ID] * bos + ids + [EOS_ID] * eos

    def decode(self, tokens: Any) -> str:
        """The text of a model's ids: :meth:`pipeline.bpe.byte_level.BPE.decode`."""
        return self.bpe.decode(list(tokens))

    def get_vocab_size(self) -> int:
        """Ids that text may have: the tokenizer's, and 4 that mark structure."""
        return self.bpe.tokens + BYTE_OFFSET
