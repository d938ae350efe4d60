"""Kinds of bytes: what a patch may begin with, so that patchers can be compared kind by kind."""

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np

KINDS = (
    "letter, first of a word",
    "letter, within a word",
    "digit",
    "space",
    "newline",
    "punctuation or symbol",
    "other character",
    "continuation byte",
    "end of text",
)
"""Names of the kinds; a kind is its place here. A letter is first where no letter precedes it.
Marks count as letters. A continuation byte is any but the first byte of a character."""
FIRST, WITHIN, DIGIT, SPACE, NEWLINE, PUNCTUATION, OTHER, CONTINUATION, END = range(len(KINDS))
_NEWLINES = "\n\r\v\f\x85\u2028\u2029"
_BY_CATEGORY = {
    "L": WITHIN,
    "M": WITHIN,
    "N": DIGIT,
    "Z": SPACE,
    "P": PUNCTUATION,
    "S": PUNCTUATION,
}


def kinds_of_bytes(texts: Sequence[bytes]) -> np.ndarray:
    """The kind of each byte of texts laid end to end: uint8.

    The first letter of a text counts as first of a word.

    Args:
        texts: UTF-8.
    """
    data = b"".join(texts)
    bytes_B = np.frombuffer(data, np.uint8)
    kinds_B = np.full(len(bytes_B), CONTINUATION, np.uint8)
    lead_B = (bytes_B & 0xC0) != 0x80
    points = np.frombuffer(data.decode().encode("utf-32-le"), "<u4")
    kind_C = _kinds_of_characters()[points]
    starts = np.cumsum([0, *map(len, texts)])[:-1]
    # A character's number is how many characters begin before its first byte.
    number_B = np.cumsum(lead_B) - 1
    first_C = np.ones(len(kind_C), bool)
    first_C[1:] = kind_C[:-1] != WITHIN
    first_C[number_B[starts[starts < len(bytes_B)]]] = True
    kind_C[first_C & (kind_C == WITHIN)] = FIRST
    kinds_B[lead_B] = kind_C
    return kinds_B


def kinds_of_tokens(texts: Sequence[bytes], lengths_D: np.ndarray) -> np.ndarray:
    """The kind of each token of documents laid end to end: uint8. BOS and EOS are END.

    Args:
        texts: UTF-8 text of each document.
        lengths_D: int64, tokens of each document.
    """
    ends_D = lengths_D.cumsum()
    kinds_T = np.full(int(lengths_D.sum()), END, np.uint8)
    is_byte_T = np.ones(len(kinds_T), bool)
    is_byte_T[ends_D - lengths_D] = is_byte_T[ends_D - 1] = False
    kinds_T[is_byte_T] = kinds_of_bytes(texts)
    return kinds_T


@cache
def _kinds_of_characters() -> np.ndarray:
    """The kind of each code point, by Unicode's general category; all letters are WITHIN."""
    categories = (unicodedata.category(chr(point))[0] for point in range(0x110000))
    kinds = np.fromiter((_BY_CATEGORY.get(c, OTHER) for c in categories), np.uint8, 0x110000)
    kinds[ord("\t")] = SPACE
    kinds[list(map(ord, _NEWLINES))] = NEWLINE
    return kinds
