"""Tokenizers as tiktoken stores them: a file of ranks becomes the ``tokenizer.json`` that gives the
same tokens.

A line of such a file is a token's bytes in base64 and its rank, which is its id. tiktoken joins, as
long as it can, the two neighbours whose bytes together have the lowest rank. A ``tokenizer.json``
lists pairs to join, first ones first, so it has to list each way to make each token of two others,
in the order of the tokens' ranks. Example: with ``a b c ab bc abc`` as ranks 0 to 5 the list is
``a+b, b+c, a+bc, ab+c``, and the text ``abc`` becomes ``ab+c``, then ``abc``.

The ranks do not say where words end, beyond which nothing is joined. That is known by the names of
the files, as they are published.
"""

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from pipeline.errors import ConfigError

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TEXT = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = f"{_TEXT}|{_BLANKS}"
"""Llama 3's words: a word with the character before it, up to three digits, signs, or blanks."""
_GPT4 = rf"{_TEXT}|\s+\z|{_BLANKS}"  # which leaves blanks at the end of a text together
_GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)
WORDS = {
    "r50k_base": _GPT2,
    "p50k_base": _GPT2,
    "cl100k_base": _GPT4,
    "o200k_base": _GPT4O,
    "tokenizer": LLAMA3_WORDS,
}
"""Words by the name of the file, without its ending; ``tokenizer.model`` is Llama 3's."""
_LINE = re.compile(rb"(?P<token>[A-Za-z0-9+/]+={0,2}) (?P<rank>\d+)\r?\n?")


def is_ranks(content: bytes) -> bool:
    """True if a file holds ranks: so says its first line."""
    return _LINE.fullmatch(content[: content.find(b"\n") + 1] or content[:200]) is not None


def tokenizer_json(content: bytes, name: str, flag: str) -> bytes:
    """The ``tokenizer.json`` of a file of ranks; it has no special tokens.

    Args:
        content: of the file of ranks.
        name: of the file; it decides where words end.
        flag: the flag that names it, for errors.

    Raises:
        ConfigError: the file is damaged, or nobody knows by its name where words end.
    """
    words = WORDS.get(Path(name).stem)
    if words is None:
        raise ConfigError(
            f"{flag} {name}: a file of ranks does not say where words end, so it has to keep the "
            f"name under which it was published: {', '.join(WORDS)}"
        )
    ranks = _read(content, f"{flag} {name}")
    letters = byte_letters()

    def written(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = [
        [written(token[:i]), written(token[i:])]
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    model: dict[str, Any] = {
        "type": "BPE",
        "vocab": {written(token): rank for token, rank in ranks.items()},
        "merges": merges,
        "ignore_merges": True,  # a word that is a token is that token
    }
    split = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    parts = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": model,
    }
    return json.dumps(parts).encode()


def byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level ``tokenizer.json``: visible ones of
    Latin-1 stand for themselves, and those from U+0100 on for the others, in rising order."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    hidden = [byte for byte in range(256) if chr(byte) not in alphabet]
    return [chr(256 + hidden.index(byte)) if byte in hidden else chr(byte) for byte in range(256)]


def _read(content: bytes, where: str) -> dict[bytes, int]:
    """Ranks by token."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        match = _LINE.fullmatch(line)
        try:
            token = base64.b64decode(match["token"], validate=True) if match else b""
        except binascii.Error:
            token = b""
        if match is None or not token or token in ranks:
            raise ConfigError(f"{where}: line {number} is no new token with its rank")
        ranks[token] = int(match["rank"])
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(set(ranks.values())) < len(ranks):
        fault = f"the byte {missing[0]:#04x} has no rank" if missing else "a rank occurs twice"
        raise ConfigError(f"{where}: {fault}, so the file is not whole")
    return ranks
