"""The n-gram model that a run fits on a seeded sample of its corpus before it begins."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from model.ngram import NGramEntropyModel
from model.segments import cut_segments
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document, read_split
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.patch.shards_config import ShardsConfig

PLACES = 64
"""Places of the corpus that a sample is read from."""
FIT_BYTES = 8 << 20
"""Bytes of text that are counted at a time when an n-gram model is fitted."""
SHOWN_FAILURES = 3


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
    whole documents, but not more than a few times its share of a long one. A file that cannot be
    read gives nothing; the run itself will name it.

    Args:
        failures: gets why files gave nothing.
    """
    sizes = np.array([max(split.size, 1) for split in splits], np.float64)
    if sizes.sum() <= sample_bytes:
        places = list(splits)
    else:
        random = np.random.default_rng(config.seed)
        chosen = random.choice(len(splits), PLACES, p=sizes / sizes.sum())
        places = [_somewhere_in(splits[i], random) for i in sorted(chosen.tolist())]
    documents: list[Document] = []
    longest = 4 * max(sample_bytes // len(places), 1 << 16)
    taken = 0
    for number, place in enumerate(places, 1):
        # Later places make good what early ones lack because they were short.
        wanted = sample_bytes * number // len(places)
        try:
            for record in read_split(place, config.columns, config.max_document_bytes):
                if taken >= wanted:
                    break
                if isinstance(record, Document):
                    documents.append(beginning(record, longest))
                    taken += len(documents[-1].text)
        except PipelineError as error:
            where = "" if isinstance(error, UnreachableFileError) else f"{place.file.url}: "
            if failures is not None:
                failures.append(f"{where}{error}")
    return documents


def beginning(document: Document, longest: int) -> Document:
    """A document whose text ends after so many bytes, with the entropies of these: the last one is
    that of a byte, where the document's is that of EOS."""
    h_T = document.entropies
    kept = min(len(document.text), longest)
    return document._replace(
        text=document.text[:kept], entropies=None if h_T is None else h_T[: kept + 2]
    )


def _somewhere_in(split: Split, random: np.random.Generator) -> Split:
    """The rest of a split from a random row group, record batch or byte on, where it has such."""
    if split.stop is None:
        return split
    return replace(split, start=int(random.integers(split.start, max(split.stop, 1))))


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
            f"see --text-column and --input-format, or name a model{listed_failures(failures)}"
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


def listed_failures(failures: Sequence[str]) -> str:
    """Some of the reasons why files gave nothing, as further lines of an error."""
    return "".join(f"\n  {failure}" for failure in failures[:SHOWN_FAILURES])
