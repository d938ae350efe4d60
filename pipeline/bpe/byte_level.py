"""Text → tokens of a byte-level BPE tokenizer: ids, for the rows of token transformers, or the
bytes with which tokens end, for the ``bpe`` rule. No torch.

Bits per byte of tokens are bits per byte of text only if the tokens' bytes are the text's. So a
tokenizer has to be byte-level, as those of GPT-2 and Llama 3 are: a token stands for certain bytes,
perhaps a part of a character, and the tokens of a text are its bytes, one after another. Tokenizers
that normalise text or put a space before it are refused when they are loaded, and the number of
bytes is checked for every document that is read.

Special tokens of the tokenizer have no meaning here: where a text holds ``<|endoftext|>``, it is
thirteen characters like others. Documents begin and end with ids of ours (:mod:`model.tokenizer`).
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from model.tokenizer import BYTE_OFFSET
from pipeline.bpe.token_bytes import TokenBytes
from pipeline.bpe.token_pieces import bytes_of_tokens, open_tokenizer
from pipeline.errors import ConfigError, PipelineError
from pipeline.storage.tokenizer_files import read_tokenizer

BATCH_CHARACTERS = 1 << 20
"""Text that is tokenized at a time: the library keeps about 150 bytes per token meanwhile."""
PROBES = (
    "Two  spaces, a tab\t, lines\n\n\r\n and a space at the end ",
    " É e\u0301 \u212b ﬁ ① İSTANBUL ẞ don't 1234567890 \u00a0\u3000\u200b 中文 कि 👩‍👩‍👧",
    "<|endoftext|> <s>[MASK]</s> <unk> <pad>",
    "".join(map(chr, range(0x800))),
    # Every byte that UTF-8 text may hold is in one of these.
    "".join(chr(c) for c in range(0x800, 0xFFFF, 0x7FF) if not 0xD800 <= c < 0xE000),
    "".join(map(chr, range(0x10000, 0x110000, 0x10000))),
)
"""Texts that tokens have to give back."""


class BPE:
    """A byte-level tokenizer."""

    def __init__(self, name: str, content: bytes, flag: str = "--tokenizer"):
        """
        Args:
            name: what the user called it.
            content: that of its ``tokenizer.json``.
            flag: the flag that names it, for errors.

        Raises:
            ConfigError: it cannot be read, or does not give text back.
        """
        self.name, self.content, self.flag = name, content, flag
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.tokenizer = open_tokenizer(name, content, flag)
        self.bytes_V = bytes_of_tokens(self.tokenizer)
        self.dtype = np.dtype(np.uint16 if self.tokens <= 2**16 else np.int32)
        structure = [b""] * BYTE_OFFSET
        self.token_bytes = TokenBytes([*structure, *self.bytes_V])
        """The bytes of each id of a model."""
        self._check()

    def __reduce__(self) -> tuple[type["BPE"], tuple[str, bytes, str]]:
        # Made anew by another process: how special tokens are encoded is not pickled.
        return BPE, (self.name, self.content, self.flag)

    @property
    def tokens(self) -> int:
        """One more than the largest id of the tokenizer."""
        return len(self.bytes_V)

    def _check(self) -> None:
        for text in PROBES:
            tokens = self.tokenizer.encode(text, add_special_tokens=False).ids
            found = b"".join(self.bytes_V[token] for token in tokens)
            if found != text.encode():
                place = next(
                    (i for i in range(len(text)) if not found.startswith(text[: i + 1].encode())),
                    len(text),
                )
                raise ConfigError(
                    f"{self.flag} {self.name}: its tokens do not give text back: after "
                    f"{text[max(place - 8, 0) : place]!a}, {text[place : place + 8]!a} is not what "
                    "they stand for; take a byte-level tokenizer that changes no text, such as "
                    "GPT-2's or Llama 3's, or train one: jobs/train_tokenizer.py"
                )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokenizer's ids of many documents, end to end, and how many each has (int64).

        All cores are used while a batch is tokenized, and no other thread of Python is held up.

        Raises:
            PipelineError: the tokens of a document have not as many bytes as its text.
        """
        ids, counts = [np.zeros(0, self.dtype)], []
        for batch in _batches(texts):
            encoded = self.tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encoded, strict=True):
                of_text = np.array(encoding.ids, self.dtype)
                self._check_bytes(text, of_text)
                ids.append(of_text)
                counts.append(len(of_text))
        return np.concatenate(ids), np.array(counts, np.int64)

    def ends(self, texts: Sequence[str]) -> np.ndarray:
        """The byte tokens with which patches of the ``bpe`` rule end, which are the text's tokens.

        ``hi there`` as the tokens ``hi`` and `` there`` has ten byte tokens, BOS and EOS among
        them. The first token's last byte is byte token 2, and ends a patch; the last token's is
        none, because EOS belongs to the last patch. A token may end within a character.

        Returns:
            bool, of all documents end to end, two more than its bytes for each.

        Raises:
            PipelineError: the tokens of a document have not as many bytes as its text.
        """
        ids, counts_D = self.encode(texts)
        sizes_K = self.token_bytes.count_V[BYTE_OFFSET:][ids]
        # Byte token 0 of a document is BOS: its first byte is byte token 1.
        end_K = sizes_K.cumsum() + 2 * np.repeat(np.arange(len(counts_D)), counts_D)
        stop_D = counts_D.cumsum()
        ends_T = np.zeros(int(sizes_K.sum()) + 2 * len(counts_D), bool)
        ends_T[end_K] = True
        ends_T[end_K[stop_D[counts_D > 0] - 1]] = False
        return ends_T

    def _check_bytes(self, text: str, ids: np.ndarray) -> None:
        size, found = len(text.encode()), int(self.token_bytes.count_V[BYTE_OFFSET:][ids].sum())
        if size != found:
            raise PipelineError(
                f"{self.flag} {self.name}: the document that begins with {text[:60]!r} has {size} "
                f"bytes, and its tokens have {found}, so that bits per byte would be wrong; take a "
                "tokenizer that changes no text"
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a model's ids; those that mark structure are left out, broken UTF-8 becomes
        U+FFFD."""
        of_ids = (self.token_bytes.bytes_V[i] for i in ids if i >= BYTE_OFFSET)
        return b"".join(of_ids).decode("utf-8", errors="replace")


@functools.cache  # a configuration is built more than once
def load_bpe(source: str, flag: str = "--tokenizer") -> BPE:
    """The tokenizer in a ``tokenizer.json``, in a directory that holds one, or on the hub.

    Args:
        flag: the flag that names it, for errors.

    Raises:
        ConfigError: there is none, it cannot be read, or it does not give text back.
    """
    return BPE(source, read_tokenizer(source, flag), flag)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
