"""Contexts with continuations → few documents with questions about them.

A model reads a context and a continuation but for the last byte, and its predictions say how likely
each byte of the continuation is. What two requests read in common from their beginnings on is read
once where all that one reads is also read by the other: predictions depend on earlier bytes alone.
So four answers of one letter cost one context, and a request that is asked twice costs nothing::

    ("Question? Answer:", " A")          is read as   "Question? Answer: "
    ("Question? Answer:", " B")                       (the same)
    ("Question? Answer:", " Both of")                 "Question? Answer: Both o", which holds it

Documents that only begin alike share their context in :mod:`pipeline.evaluate.trees`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.tokenizer import BYTE_OFFSET
from pipeline.evaluate.answers import Questions


class Continuations(NamedTuple):
    """The documents of some requests, and the questions of each request."""

    documents: list[bytes]
    """Each is read as BOS, these bytes, EOS. They are in alphabetical order."""
    questions: Questions
    """One for each byte of each continuation, in the requests' order."""
    stop_R: np.ndarray
    """int64: the number of questions up to the end of each request."""


def lay_out(pairs: Sequence[tuple[bytes, bytes]]) -> Continuations:
    """The documents and questions of ``(context, continuation)`` pairs."""
    read = [(before + after)[:-1] for before, after in pairs]
    # In alphabetical order a text stands right before the first one that begins with it.
    longer = b""
    held_in: dict[bytes, bytes] = {}
    asked = {text for text, (_, after) in zip(read, pairs, strict=True) if after}
    for text in sorted(asked, reverse=True):
        if not longer.startswith(text):
            longer = text
        held_in[text] = longer
    documents = sorted(set(held_in.values()))
    first_D = np.cumsum([0, *(len(document) + 2 for document in documents)])
    number = {document: i for i, document in enumerate(documents)}
    at, token = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for text, (before, after) in zip(read, pairs, strict=True):
        if after:
            # Token i + 1 of a document is its byte i; the last token before a byte is its index.
            first = first_D[number[held_in[text]]] + len(before)
            at.append(np.arange(first, first + len(after)))
            token.append(np.frombuffer(after, np.uint8).astype(np.int64) + BYTE_OFFSET)
    stop_R = np.cumsum([len(after) for _, after in pairs], dtype=np.int64)
    return Continuations(documents, Questions(np.concatenate(at), np.concatenate(token)), stop_R)
