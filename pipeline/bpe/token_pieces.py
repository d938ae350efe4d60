"""Tokenizers whose tokens are the bytes of a text, one after another, and those bytes.

Two alphabets are known. In that of byte-level tokenizers (GPT-2, Llama 3) each character of a token
stands for a byte. In that of SentencePiece (Llama 2, Gemma) ``▁`` stands for a blank, ``<0x0A>``
for a byte, and a blank may be put before the text.
"""

import functools
import json
import re
from typing import Any

from tokenizers import Tokenizer

from pipeline.errors import ConfigError, translated
from pipeline.storage.tiktoken_ranks import byte_letters
from pipeline.storage.tokenizer_files import read_tokenizer

_PROBE = "The quick brown fox; 12 times"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def open_tokenizer(name: str, content: bytes, flag: str) -> Tokenizer:
    """A tokenizer that takes whole texts, in which special tokens are text. It cuts a text in one
    way alone: a tokenizer that was trained with dropout would leave out merges at random.

    Args:
        name: what the user called it.
        content: that of its ``tokenizer.json``.
        flag: the flag that names it, for errors.

    Raises:
        ConfigError: it cannot be read.
    """
    with translated(f"{flag} {name}", ConfigError):
        tokenizer = Tokenizer.from_buffer(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


class TokenPieces:
    """A tokenizer as a way to cut text. Its special tokens have no meaning in a text."""

    def __init__(self, name: str, content: bytes, flag: str):
        """
        Args:
            name: what the user called it.
            content: that of its ``tokenizer.json``.
            flag: the flag that names it, for errors.

        Raises:
            ConfigError: it cannot be read, or does not give text back.
        """
        self.name = name
        self._tokenizer = open_tokenizer(name, content, flag)
        self._bytes_V = bytes_of_tokens(self._tokenizer)
        try:
            self.cut(_PROBE)
        except ConfigError as error:
            raise ConfigError(f"{flag} {name}: {error}") from error

    def cut(self, text: str) -> tuple[list[int], list[bytes]]:
        """The ids of a text's tokens and the bytes of each, which together are the text.

        Raises:
            ConfigError: the tokenizer changes this text.
        """
        data = text.encode()
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        pieces = [self._bytes_V[token] for token in ids]
        found = b"".join(pieces)
        if found == b" " + data:  # SentencePiece's blank
            pieces[0] = pieces[0][1:]
        elif found != data:
            pairs = zip(found, data, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(data)))
            place = data[max(same - 12, 0) : same + 12].decode(errors="ignore")
            raise ConfigError(f"the tokens of {self.name} do not give text back, near {place!r}")
        return ids, pieces


def load_token_pieces(name: str, flag: str) -> TokenPieces:
    """The tokenizer in a file, in a directory, or on the hub, as :func:`read_tokenizer` finds it.

    Raises:
        ConfigError: there is none, it cannot be read, or it does not give text back.
    """
    return TokenPieces(name, read_tokenizer(name, flag), flag)


def bytes_of_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each id; none where an id stands for no bytes."""
    byte_level = _uses(json.loads(tokenizer.to_str()), "ByteLevel")
    bytes_of = _byte_level if byte_level else _sentencepiece
    by_id = {
        number: bytes_of(token)
        for token, number in tokenizer.get_vocab(with_added_tokens=False).items()
    }
    for number, added in tokenizer.get_added_tokens_decoder().items():
        by_id[number] = b"" if added.special else added.content.encode()
    return [by_id.get(number, b"") for number in range(max(by_id, default=-1) + 1)]


def _uses(value: Any, kind: str) -> bool:
    """True if a part of a ``tokenizer.json`` is of this type."""
    if isinstance(value, dict):
        # The vocabulary holds no parts, and is long.
        inner = [part for name, part in value.items() if name != "model"]
        return value.get("type") == kind or any(_uses(part, kind) for part in inner)
    return isinstance(value, list) and any(_uses(part, kind) for part in value)


def _byte_level(token: str) -> bytes:
    bytes_of = _byte_of_letter()
    known = all(letter in bytes_of for letter in token)
    return bytes(bytes_of[letter] for letter in token) if known else b""


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(byte_letters())}


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
