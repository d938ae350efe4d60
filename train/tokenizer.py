"""The byte tokenizer with the interface that torchtitan requires."""

from dataclasses import dataclass
from typing import Any

from torchtitan.components.tokenizer import BaseTokenizer

import model
from model.tokenizer import EOS_ID


class TitanByteTokenizer(BaseTokenizer, model.ByteTokenizer):
    """:class:`model.ByteTokenizer` as one of torchtitan's tokenizers; it reads no files."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **kwargs: Any):
        super().__init__()
        self.eos_id = EOS_ID

    encode = model.ByteTokenizer.encode
    decode = model.ByteTokenizer.decode

    def get_vocab_size(self) -> int:
        return self.vocab_size
