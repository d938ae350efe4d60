"""Bytes, as torchtitan asks for a tokenizer."""

from dataclasses import dataclass
from typing import Any

from torchtitan.components.tokenizer import BaseTokenizer

import model
from model.tokenizer import EOS_ID


class ByteTokenizer(BaseTokenizer, model.ByteTokenizer):
    """:class:`model.ByteTokenizer` in torchtitan's hands; there are no files to read."""

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
