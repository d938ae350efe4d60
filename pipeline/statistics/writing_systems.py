"""The script that a document is written in, by Unicode's script property of its letters."""

from functools import cache

import numpy as np
from fontTools.unicodedata import Scripts, script_name

HEAD_BYTES = 512
"""Bytes at the beginning of a document that decide about its script."""
NONE = "(no letters)"
JAPANESE = "Japanese"
_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")
"""Common (spaces, digits, emoji), inherited (combining marks), unassigned."""

_STARTS = np.array(Scripts.RANGES)
_CODES, _CODE_OF_RANGE = np.unique(Scripts.VALUES, return_inverse=True)
_COUNTED = ~np.isin(_CODES, _NO_SCRIPT)
_KANA = np.isin(_CODES, ("Hira", "Kana"))
_HAN = int(np.flatnonzero(_CODES == "Hani")[0])


def script_of(text: bytes) -> str:
    """Name of the script that most letters at the beginning of a text belong to.

    Han counts as Japanese where there is kana, a twentieth of it or more.

    Args:
        text: UTF-8.
    """
    head = text[:HEAD_BYTES]
    if head.isascii():
        return "Latin" if head.upper() != head.lower() else NONE
    characters = head.decode(errors="ignore").encode("utf-32-le")
    ranges = np.searchsorted(_STARTS, np.frombuffer(characters, "<u4"), side="right") - 1
    letters = np.bincount(_CODE_OF_RANGE[ranges], minlength=len(_CODES)) * _COUNTED
    kana = int(letters[_KANA].sum())
    if kana and kana * 20 >= letters[_HAN]:
        letters[_HAN] += kana
        letters[_KANA] = 0
        if letters.argmax() == _HAN:
            return JAPANESE
    return _name(str(_CODES[letters.argmax()])) if letters.any() else NONE


@cache
def _name(code: str) -> str:
    return str(script_name(code)).replace("_", " ")
