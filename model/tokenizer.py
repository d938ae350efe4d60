"""Bytes to token ids and back.

A token id is the byte value plus 4; the four ids below 4 mark structure. There is nothing to train
and nothing to download. A document is ``BOS + UTF-8 bytes + EOS``.
"""

from collections.abc import Iterable, Sequence

import numpy as np

BOE_ID = 0
BOS_ID = 1
EOS_ID = 2
BPE_ID = 3
PAD_ID = -1
"""Marks positions of a batch that hold no token; models never read it."""
BYTE_OFFSET = 4
VOCAB_SIZE = 256 + BYTE_OFFSET
NEXT_IDS = (EOS_ID, *range(BYTE_OFFSET, VOCAB_SIZE))
"""The ids that may follow a token in text: BOE, BOS and the BPE delimiter never do."""


class ByteTokenizer:
    """The BLT byte tokenizer (arXiv 2412.09871; vocabulary of 260 ids)."""

    vocab_size = VOCAB_SIZE

    def encode(self, text: str | bytes, *, bos: bool = True, eos: bool = True) -> list[int]:
        """Token ids of one document, with BOS and EOS unless they are turned off.

        Raises:
            UnicodeEncodeError: ``text`` holds a lone surrogate, which has no UTF-8 form.
        """
        data = text.encode("utf-8") if isinstance(text, str) else text
        ids = [byte + BYTE_OFFSET for byte in data]
        return [BOS_ID] * bos + ids + [EOS_ID] * eos

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ``tokens``; special ids are left out, broken UTF-8 becomes U+FFFD.

        Raises:
            ValueError: an id is not in the vocabulary (padding, -1, is left out).
        """
        ids = list(tokens)
        outside = next((token for token in ids if not PAD_ID <= token < VOCAB_SIZE), None)
        if outside is not None:
            raise ValueError(f"token id {outside} is outside the vocabulary of {VOCAB_SIZE}")
        data = bytes(token - BYTE_OFFSET for token in ids if token >= BYTE_OFFSET)
        return data.decode("utf-8", errors="replace")


def encode_documents(documents: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of many documents, laid end to end.

    Returns:
        ``tokens_T`` (int32), each document as BOS + bytes + EOS, and ``lengths_D`` (int64), the
        number of tokens of each document.
    """
    lengths_D = np.fromiter((len(data) + 2 for data in documents), np.int64, len(documents))
    # The zero bytes between documents hold the places of EOS and BOS, which are written below.
    joined = b"\0" + b"\0\0".join(documents) + b"\0" if documents else b""
    tokens_T = np.frombuffer(joined, np.uint8).astype(np.int32)
    tokens_T += BYTE_OFFSET
    ends_D = np.cumsum(lengths_D)
    tokens_T[ends_D - lengths_D] = BOS_ID
    tokens_T[ends_D - 1] = EOS_ID
    return tokens_T, lengths_D
