"""Lists of numbers beside a text: entropies and patches that another program has made of it.

What a record holds is checked against its text, and brought to the one form that shards have. A
list that does not fit is the record's fault: the record is rejected with the reason.
"""

from math import log
from typing import Any

import numpy as np

IDS = 260
"""Ids of a model of bytes, ``model.tokenizer.VOCAB_SIZE``, whose import loads torch."""
MOST_NATS = log(IDS) + 0.05
"""The entropy of all ids being equally likely, and how far bfloat16 may round above it."""

MOST_BITS = int(np.float16(MOST_NATS).view(np.uint16))
"""The bits of the float16 nearest to that."""


def entropies_of(value: Any, text: bytes) -> np.ndarray:
    """The entropies of a text, as shards store them: float16, nats, ``len(text) + 2`` values.

    Args:
        value: what a record holds: an array or a list of numbers, one per token (BOS, bytes, EOS).

    Raises:
        ValueError: they do not fit the text; says how.
    """
    given = _numbers(value)
    if len(given) != len(text) + 2:
        raise ValueError(
            f"has {len(given)} values, and the text has {len(text) + 2} tokens (BOS, bytes, EOS)"
        )
    with np.errstate(over="ignore"):  # infinity is too large, too
        h_T = given.astype(np.float16)
    # Read as integers, the bits of floats from 0 on rise as the floats do, up to infinity and NaN;
    # those of negative ones are above them. Integers are compared ten times as fast.
    if h_T.view(np.uint16).max() > MOST_BITS:
        _check_entropies(h_T)
    return h_T


def _check_entropies(h_T: np.ndarray) -> None:
    """
    Raises:
        ValueError: one of the numbers is no entropy. Minus zero is one.
    """
    least, most = h_T.min(), h_T.max()  # NaN if there is one
    if not least >= 0:
        raise ValueError(f"holds {least}, which is no entropy" if least < 0 else "holds NaN")
    if most > MOST_NATS:
        raise ValueError(
            f"holds {most}, and the entropy of {IDS} ids is at most {log(IDS):.2f} "
            "nats (are these bits?)"
        )


def patch_lengths_of(value: Any, text: bytes) -> np.ndarray:
    """The patch lengths of a document, in tokens (int32): BOS alone comes first, EOS ends the last.

    Args:
        value: the lengths of all tokens, BOS alone first, or those of the text's bytes alone. The
            text ``hello`` has five bytes and seven tokens: ``[1, 3, 3]`` and ``[3, 2]`` are both
            BOS, ``hel`` and ``lo`` with EOS.

    Raises:
        ValueError: they do not fit the text; says how.
    """
    lengths_P = _whole_numbers(value)
    if (lengths_P < 1).any():
        raise ValueError(f"holds a length of {lengths_P.min()}; patches have 1 token or more")
    total = sum(lengths_P.tolist())
    if total == len(text):
        if not len(lengths_P):
            return np.ones(2, np.int32)
        lengths_P = np.append(1, lengths_P)
        lengths_P[-1] += 1
    elif total != len(text) + 2:
        raise ValueError(
            f"sums to {total}, and the text has {len(text)} bytes ({len(text) + 2} tokens)"
        )
    elif lengths_P[0] != 1:
        raise ValueError(f"begins with {lengths_P[0]}: the first patch has to be BOS alone")
    return lengths_P.astype(np.int32)


def patch_lengths_at(value: Any, text: bytes) -> np.ndarray:
    """The patch lengths of a document as :func:`patch_lengths_of` gives them, from offsets.

    Args:
        value: the bytes of the text at which patches start, rising; 0, and the text's length at the
            end, may be there or not. ``[3]``, ``[0, 3]`` and ``[0, 3, 5]`` cut ``hello`` alike.

    Raises:
        ValueError: they do not fit the text; says how.
    """
    offsets_P = _whole_numbers(value)
    if (np.diff(offsets_P) <= 0).any():
        raise ValueError("holds offsets that do not rise")
    if len(offsets_P) and (offsets_P[0] < 0 or offsets_P[-1] > len(text)):
        outside = offsets_P[0] if offsets_P[0] < 0 else offsets_P[-1]
        raise ValueError(f"holds the offset {outside}, and the text has {len(text)} bytes")
    inner_P = offsets_P[(offsets_P > 0) & (offsets_P < len(text))]
    lengths_P = np.diff(inner_P, prepend=0, append=len(text))
    return patch_lengths_of(lengths_P[lengths_P > 0], text)


def _numbers(value: Any) -> np.ndarray:
    """
    Raises:
        ValueError: the value is no list of numbers.
    """
    if value is None:
        raise ValueError("is null")
    if isinstance(value, list) and not value:
        return np.zeros(0, np.int64)
    if isinstance(value, list) and bool in set(map(type, value)):  # numpy takes true for 1
        raise ValueError("holds true or false, which are no numbers")
    try:
        numbers = np.asarray(value) if isinstance(value, list | np.ndarray) else None
    except (ValueError, OverflowError):  # lists of different lengths
        numbers = None
    if numbers is None or numbers.ndim != 1 or numbers.dtype.kind not in "fiu":
        raise ValueError("is no list of numbers")
    return numbers


def _whole_numbers(value: Any) -> np.ndarray:
    """
    Raises:
        ValueError: the value is no list of whole numbers, of which a document can have such.
    """
    numbers = _numbers(value)
    if numbers.dtype.kind == "f" and not (numbers == np.floor(numbers)).all():
        raise ValueError("holds numbers that are not whole")
    if len(numbers) and not (np.abs(numbers.astype(np.float64)) < 1 << 31).all():
        raise ValueError("holds numbers that are too large")
    return numbers.astype(np.int64)
