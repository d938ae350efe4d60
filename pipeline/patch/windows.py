"""Windows: short stretches of text from all over a corpus, which a threshold is calibrated on.

Places lie at equal distances over the bytes of a corpus, from a first one that the seed chooses, so
that each file gives its share, and a long document as much as a hundred short ones that are as long
together. At each place a window of WINDOW bytes of text begins, in the middle of a document as a
rule, and goes on into the documents behind; whatever comes to the end of a small file goes on at
its beginning. So each byte is in a window as likely as any other, and the patches per byte of the
windows are, on average, those of the corpus, whatever the documents are like.

A model has to read some text before a window (LEAD), where it does not begin a segment anyway
(:mod:`model.segments`), so that entropies are nearly those of the whole document; patches that
begin there are not counted. For example, with segments of 100 tokens and a LEAD of 10 the window of
the tokens 95 to 105 of a document is read as two pieces: the tokens 85 to 99, of which those from
95 on count, and 100 to 104, of which those from 102 on count: a piece's first two tokens always
begin patches.

Windows count by weight: a file gets its share of places by an estimate of its text, and counts for
the text that it turned out to hold.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, groupby, takewhile
from operator import itemgetter
from threading import Lock
from typing import NamedTuple

import numpy as np

from model.tokenizer import BOS_ID, BYTE_OFFSET, EOS_ID
from pipeline.corpus.documents import Document, Reject, read_split
from pipeline.corpus.formats import FORMATS
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.patch.shards_config import ShardsConfig

WINDOW = 512
"""Bytes of text in a window: many short ones tell more than a few long ones of the same cost."""
LEAD, SHORT_LEAD = 512, 64
"""Tokens that a model reads before a window, at most; the second is for models of short context."""
BACK_BYTES = 64 << 10
"""Bytes of a file that are read before a place at first, to find where its record begins."""
READ_PER_WINDOW, READ_BYTES, MOST_READ_BYTES = 256 << 10, 4 << 20, 64 << 20
"""Text of a split that is read to place windows in it where records are not found by their bytes:
for each window, at least, and at most."""
READERS = 8
"""Threads that read: object storage takes its time to answer."""


class Piece(NamedTuple):
    """Neighbouring tokens of a document."""

    tokens_T: np.ndarray
    """int32."""
    first: int
    """The first token that counts."""
    entropies_T: np.ndarray | None
    """float16, nats, if the document comes with them."""


class Window(NamedTuple):
    """A stretch of text."""

    place: float
    """Where it begins in the corpus, as a part of the whole."""
    pieces: list[Piece]
    weight: float
    """How much each of its bytes and patches counts."""


class Places:
    """Reads windows of a corpus."""

    def __init__(self, splits: Sequence[Split], config: ShardsConfig, context_length: int | None):
        """
        Args:
            context_length: of the model, in tokens; None if its context is short.
        """
        self._splits, self._config, self._context = splits, config, context_length
        self.lead = SHORT_LEAD if context_length is None else LEAD
        self._end_S = np.cumsum([0, *(max(split.size, 1) for split in splits)])
        self.text_bytes = int(self._end_S[-1])
        """Estimate for the corpus."""
        self.failures: list[str] = []
        """Why splits gave nothing."""
        self._left, self._lock = 0, Lock()

    def everything(self, most: int) -> list[Window] | None:
        """All documents; None if they have more than ``most`` bytes of text, which compressed files
        may hide."""
        self._left = most
        found = self._gather((i, []) for i in range(len(self._splits)))
        return found if self._left >= 0 else None

    def at(self, places: np.ndarray) -> list[Window]:
        """The windows at these places of the corpus, float64, each at least 0 and less than 1."""
        at_W = np.sort(places) * self.text_bytes
        split_W = np.searchsorted(self._end_S, at_W, side="right") - 1
        within_W = (at_W - self._end_S[split_W]) / np.diff(self._end_S)[split_W]
        pairs = zip(split_W.tolist(), within_W.tolist(), strict=True)
        of_splits = groupby(pairs, itemgetter(0))
        return self._gather((i, [within for _, within in group]) for i, group in of_splits)

    def _gather(self, wanted: Iterable[tuple[int, list[float]]]) -> list[Window]:
        """The windows of splits, given their numbers and the places within each, or none to read
        all of it."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(chain.from_iterable(pool.map(lambda one: self._read(*one), list(wanted))))

    def _read(self, number: int, places: list[float]) -> list[Window]:
        split = self._splits[number]
        try:
            if not places:
                documents = takewhile(self._has_room, self._documents(split))
                pieces = [p for d in documents for p in self._pieces(d, 0, None)]
                return [Window(number, pieces, 1.0)]
            is_large = split.stop is not None and split.file.size > READ_BYTES
            found: Iterable[Window | None] = (
                (self._at_byte(split, within) for within in places)
                if is_large and FORMATS[split.format].has_byte_ranges
                else self._in_text(split, places)
            )
            ends = self._end_S[number : number + 2] / self.text_bytes
            return [
                window._replace(place=float(ends[0] + window.place * (ends[1] - ends[0])))
                for window in found
                if window is not None
            ]
        except PipelineError as error:
            where = "" if isinstance(error, UnreachableFileError) else f"{split.file.url}: "
            self.failures.append(f"{where}{error}")
            return []

    def _has_room(self, document: Document) -> bool:
        """True as long as all documents together, of all threads, have no more text than asked
        for."""
        with self._lock:
            self._left -= len(document.text)
            return self._left >= 0

    def _records(self, split: Split) -> Iterator[Document | Reject]:
        return read_split(split, self._config.columns, self._config.max_document_bytes)

    def _documents(self, split: Split) -> Iterator[Document]:
        return (record for record in self._records(split) if isinstance(record, Document))

    def _at_byte(self, split: Split, within: float) -> Window | None:
        """The window at a byte of a file: in a record that is no document, at the same part of the
        next one, so that no more windows are at beginnings than there is text."""
        assert split.stop is not None
        byte = split.start + int(within * (split.stop - split.start))
        here, behind = self._record_at(split, byte)
        following = next(behind, None)
        begin = byte if here is None else int(here.position)
        end = split.file.size if following is None else int(following.position)
        span = max(end - begin, 1)
        records = chain([here, following], behind)
        documents = (record for record in records if isinstance(record, Document))
        first = next(documents, None)
        if first is None:
            return None
        offset = int((byte - begin) / span * len(first.text))
        ratio = len(first.text) / span if first is here else 1.0
        return self._window(within, chain([first], documents), offset, ratio)

    def _record_at(
        self, split: Split, byte: int
    ) -> tuple[Document | Reject | None, Iterator[Document | Reject]]:
        """The record that holds a byte of a file, if there is one, and those behind it."""
        back = BACK_BYTES
        while True:
            start = max(byte - back, 0)
            records = self._records(replace(split, start=start, stop=None))
            here, behind = None, None
            for record in records:
                if int(record.position) > byte:
                    behind = record
                    break
                here = record
            if here is not None or start == 0:
                return here, records if behind is None else chain([behind], records)
            back *= 8

    def _in_text(self, split: Split, places: Sequence[float]) -> Iterator[Window | None]:
        """The windows of a split that is read from its beginning."""
        most = min(max(READ_PER_WINDOW * len(places), READ_BYTES), MOST_READ_BYTES)
        documents: list[Document] = []
        size, is_whole = 0, True
        for document in self._documents(split):
            documents.append(document)
            size += len(document.text)
            if size >= most:
                is_whole = False
                break
        if not size:
            return
        ratio = size / max(split.size, 1) if is_whole else 1.0
        end_D = np.cumsum([len(document.text) for document in documents])
        for within in places:
            if size <= WINDOW:
                yield self._window(within, documents, 0, ratio, whole=True)
                continue
            byte = int(within * size)
            number = int(np.searchsorted(end_D, byte, side="right"))
            offset = byte - int(end_D[number]) + len(documents[number].text)
            around = chain(documents[number:], documents[: number + 1])
            yield self._window(within, around, offset, ratio)

    def _window(
        self,
        place: float,
        documents: Iterable[Document],
        offset: int,
        ratio: float,
        *,
        whole: bool = False,
    ) -> Window | None:
        """The window from a byte of the first document on; None if there is no text.

        Args:
            ratio: text of this part of the corpus, relative to the estimate.
            whole: take all of the documents.
        """
        pieces: list[Piece] = []
        left = WINDOW
        for document in documents:
            taken = len(document.text) - offset
            if not whole:
                taken = min(taken, left)
            pieces += self._pieces(document, offset, offset + taken)
            left, offset = left - taken, 0
            if left <= 0 and not whole:
                break
        counted = sum(int((p.tokens_T[p.first :] >= BYTE_OFFSET).sum()) for p in pieces)
        return Window(place, pieces, ratio / counted) if counted else None

    def _pieces(self, document: Document, start: int, stop: int | None) -> Iterator[Piece]:
        """The bytes from ``start`` to ``stop`` of a document, segment by segment; with the first
        one BOS, with the last one EOS."""
        tokens = len(document.text) + 2
        stop = len(document.text) if stop is None else stop
        low = start + 1 if start else 0
        high = tokens if stop == len(document.text) else stop + 1
        context = self._context or tokens
        for begins in range(low // context * context, high, context):
            first, last = max(low, begins), min(high, begins + context)
            read_from = max(begins, first - self.lead)
            h_T = document.entropies
            yield Piece(
                _tokens(document.text, read_from, last),
                first - read_from if read_from == 0 else max(first - read_from, 2),
                None if h_T is None else h_T[read_from:last],
            )


def _tokens(text: bytes, start: int, stop: int) -> np.ndarray:
    """The tokens of a document from ``start`` to ``stop``, int32."""
    part = np.frombuffer(text[max(start - 1, 0) : stop - 1], np.uint8).astype(np.int32)
    bos = [BOS_ID] if start == 0 else []
    eos = [EOS_ID] if stop == len(text) + 2 else []
    return np.concatenate([bos, part + BYTE_OFFSET, eos]).astype(np.int32)
