"""The n-gram model and the threshold, which a run takes from a seeded sample before it begins."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from model.segments import cut_segments
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document, read_split
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError, UnreachableFileError
from pipeline.patch.scoring import Scorer
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patches import recut

PLACES = 64
"""Places of the corpus that a sample is read from."""
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
            f"see --text-column and --input-format, or name a model{_listed(failures)}"
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


def _listed(failures: Sequence[str]) -> str:
    return "".join(f"\n  {failure}" for failure in failures[:3])


def calibrate(
    scorer: Scorer,
    documents: Sequence[bytes],
    target_patch_size: float,
    failures: Sequence[str] = (),
) -> Patcher:
    """The scorer's rule with the threshold that brings the sample closest to the target.

    Args:
        target_patch_size: bytes of text per patch.
        failures: why files gave nothing to the sample, for the error.

    Raises:
        PipelineError: the sample is empty.
    """
    _check_text(sum(map(len, documents)), failures)
    tokens_T, lengths_D = encode_documents(documents)
    h_T = scorer.entropies(tokens_T, lengths_D)
    return with_patch_size(scorer.patcher, h_T, lengths_D, target_patch_size)


def calibrate_stored(
    patcher: Patcher,
    documents: Sequence[Document],
    target_patch_size: float,
    failures: Sequence[str] = (),
) -> Patcher:
    """As :func:`calibrate`, with the entropies that the documents come with."""
    _check_text(sum(len(document.text) for document in documents), failures)
    entropies = [document.entropies for document in documents if document.entropies is not None]
    lengths_D = np.array([len(h_T) for h_T in entropies], np.int64)
    return with_patch_size(patcher, np.concatenate(entropies), lengths_D, target_patch_size)


def _check_text(text_bytes: int, failures: Sequence[str]) -> None:
    """
    Raises:
        PipelineError: there is no text.
    """
    if not text_bytes:
        raise PipelineError(
            "--target-patch-size: no text to calibrate on: no document of the sample can be used; "
            f"see --text-column and --input-format, or give a --threshold{_listed(failures)}"
        )


def with_patch_size(
    patcher: Patcher, h_T: np.ndarray, lengths_D: np.ndarray, target_patch_size: float
) -> Patcher:
    """The rule with the threshold that brings documents closest to a mean patch size.

    Args:
        h_T: stored entropies: float16, nats, one per token.
        lengths_D: int64, tokens of each document.
        target_patch_size: bytes of text per patch.
    """
    text_bytes = int((lengths_D - 2).sum())

    def patch_size(threshold: float) -> float:
        rule = replace(patcher, threshold=threshold)
        return text_bytes / len(recut(rule, h_T, lengths_D).patch_lengths_P)

    # A rule compares with what is stored: no other thresholds make a difference.
    signal_T = h_T.astype(np.float32)
    if patcher.compares == "rise":
        signal_T = np.diff(signal_T)
    candidates = np.unique(signal_T)
    # Patches get longer with the threshold: find the first that reaches the target, and look at
    # the one before.
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if patch_size(float(candidates[middle])) < target_patch_size:
            low = middle + 1
        else:
            high = middle
    near = candidates[max(low - 1, 0) : low + 1]
    best = min(near, key=lambda value: abs(patch_size(float(value)) - target_patch_size))
    return replace(patcher, threshold=float(best))
