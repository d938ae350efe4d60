"""The n-gram model that a run fits on a seeded sample of its corpus before it begins."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise, repeat

import numpy as np
import torch

from model.ngram import NGramEntropyModel
from model.segments import cut_segments
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document, read_split
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError, UnreachableFileError, listed
from pipeline.patch.shards_config import ShardsConfig

PLACES = 64
"""Places of the corpus that a sample is read from, if they have enough text."""
MOST_TIMES, LEAST_MOST = 4, 1 << 20
"""Times its estimated bytes of text that are read of a split, at most, and never less than so many:
a compressed file may hold more than it seems to."""
READERS, AT_A_TIME = 8, 16
"""Threads that read, as object storage takes its time to answer, and splits that they share: the
text of so many is held before what is too much of it is left out."""
FIT_BYTES = 8 << 20
"""Bytes of text that are counted at a time when an n-gram model is fitted."""


def sample_documents(
    splits: Sequence[Split],
    config: ShardsConfig,
    sample_bytes: int,
    failures: list[str] | None = None,
) -> list[bytes]:
    """The texts of :func:`sample`."""
    return [document.text for document in sample(splits, config, sample_bytes, failures)]


def sample(
    splits: Sequence[Split],
    config: ShardsConfig,
    sample_bytes: int,
    failures: list[str] | None = None,
) -> list[Document]:
    """Documents of about ``sample_bytes`` bytes of text, all of a corpus that is not larger.

    The places are drawn with ``config.seed``, in proportion to the sizes of the splits; each gives
    whole documents, but not more than a few times its share of a long one. No record is read twice:
    a place ends where the next one begins, and places that are the same give their shares together.
    A gzip file, for example, can be read from its beginning alone: all places in it are the same.

    Where that is not enough, because files are small, others follow in an order that is drawn
    likewise: a corpus of a million files of 2 kB gives 64 places 128 kB, and the rest comes from
    files behind these. A file that cannot be read gives nothing; the run itself will name it.

    Args:
        failures: gets why files gave nothing.
    """
    sizes = np.array([max(split.size, 1) for split in splits], np.float64)
    read = _Reading(config, [] if failures is None else failures)
    if sizes.sum() <= sample_bytes:  # an estimate, which compressed files may exceed
        read.all_of(splits, MOST_TIMES * sample_bytes, sample_bytes)
        return read.documents
    random = np.random.default_rng(config.seed)
    chosen = sorted(random.choice(len(splits), PLACES, p=sizes / sizes.sum()).tolist())
    begins = sorted((i, _somewhere_in(splits[i], random)) for i in chosen)
    longest = 4 * max(sample_bytes // PLACES, 1 << 16)
    for number, ((i, start), (behind, stop)) in enumerate(pairwise([*begins, (-1, 0)]), 1):
        if (i, start) == (behind, stop):
            continue
        # Later places make good what early ones lack because they were short.
        wanted = sample_bytes * number // PLACES
        place = replace(splits[i], start=start, stop=stop if i == behind else splits[i].stop)
        read.add(read.from_place(place, wanted - read.bytes, longest), wanted)
    if read.bytes < sample_bytes:
        # Drawn one after the other without return, each in proportion to its size.
        order = np.argsort(random.exponential(size=len(splits)) / sizes).tolist()
        done = set(chosen)
        read.all_of([splits[i] for i in order if i not in done], sample_bytes, longest)
    return read.documents


class _Reading:
    """Documents that are read, up to a number of bytes of text."""

    def __init__(self, config: ShardsConfig, failures: list[str]):
        self._config, self._failures = config, failures
        self.documents: list[Document] = []
        self.bytes = 0

    def from_place(
        self, place: Split, wanted: int, longest: int
    ) -> tuple[list[Document], str | None]:
        """Documents of a place, until they have ``wanted`` bytes, and why there are no more."""
        documents: list[Document] = []
        try:
            for record in read_split(place, self._config.columns, self._config.max_document_bytes):
                if wanted <= 0:
                    break
                if isinstance(record, Document):
                    documents.append(beginning(record, longest))
                    wanted -= len(documents[-1].text)
        except PipelineError as error:
            where = "" if isinstance(error, UnreachableFileError) else f"{place.file.url}: "
            return documents, f"{where}{error}"
        return documents, None

    def add(self, found: tuple[list[Document], str | None], most: int) -> None:
        """Take documents until there are ``most`` bytes of all places."""
        documents, failure = found
        for document in documents:
            if self.bytes < most:
                self.documents.append(document)
                self.bytes += len(document.text)
        if failure is not None:
            self._failures.append(failure)

    def all_of(self, splits: Sequence[Split], most: int, longest: int) -> None:
        """Read splits until there are ``most`` bytes: several at a time, with the same result as
        one after the other."""
        with ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(splits), AT_A_TIME):
                if (left := most - self.bytes) <= 0:
                    break
                some = splits[first : first + AT_A_TIME]
                wanted = [min(left, max(MOST_TIMES * s.size, LEAST_MOST)) for s in some]
                for found in pool.map(self.from_place, some, wanted, repeat(longest)):
                    self.add(found, most)


def beginning(document: Document, longest: int) -> Document:
    """A document whose text ends after so many bytes, with the entropies of these: the last one is
    that of a byte, where the document's is that of EOS."""
    h_T = document.entropies
    kept = min(len(document.text), longest)
    return document._replace(
        text=document.text[:kept], entropies=None if h_T is None else h_T[: kept + 2]
    )


def _somewhere_in(split: Split, random: np.random.Generator) -> int:
    """A random row group, record batch or byte of a split; its first, where it has no such."""
    if split.stop is None:
        return split.start
    return int(random.integers(split.start, max(split.stop, 1)))


def fit_ngram(
    documents: Sequence[bytes], config: ShardsConfig, failures: Sequence[str] = ()
) -> NGramEntropyModel:
    """An n-gram model of the sample.

    Args:
        failures: why files gave nothing to the sample, for the error.

    Raises:
        PipelineError: the sample is empty.
    """
    if not any(documents):
        raise PipelineError(
            "--entropy-model ngram: no text to fit it on: no document of the sample can be used; "
            f"see --text-column and --input-format, or name a model{listed(failures)}"
        )
    return NGramEntropyModel.fit(_token_batches(documents, config.reset_at_newline))


def _token_batches(
    documents: Sequence[bytes], reset_at_newline: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and segment lengths of a few megabytes of documents at a time."""
    start = size = 0
    for stop, document in enumerate(documents, 1):
        size += len(document)
        if size >= FIT_BYTES or stop == len(documents):
            tokens_T, lengths_D = encode_documents(documents[start:stop])
            lengths_S = cut_segments(
                torch.from_numpy(tokens_T),
                torch.from_numpy(lengths_D),
                context_length=None,
                reset_at_newline=reset_at_newline,
            )
            yield tokens_T, lengths_S.numpy()
            start, size = stop, 0
