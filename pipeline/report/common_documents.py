"""The documents that two shard sets have in common, side by side, in bounded memory.

Documents are the same if their texts are: ids need not be unique, and patches of different texts
cannot be compared. So the order of a set, its shards and its ids do not matter. Which documents are
looked at depends on the hashes of their texts, too: those below a limit are chosen in every set.
Samples of two sets then hold the same documents, and tell how much the sets overlap. What is chosen
lies in a temporary file until it is compared.

If a text occurs several times in both sets, the first occurrences are a pair, then the second ones.
Occurrences that one set has beyond those of the other count as documents that it has alone.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.errors import DamagedShardError, translated
from pipeline.patches import PatchedTokens
from pipeline.shards.format import SAMPLE_ID, read_patches, read_text
from pipeline.shards.record_batches import WAY_ON
from pipeline.shards.shard_set import ShardSet
from pipeline.statistics.excerpts import LONGEST_ID

SEED = 2412
"""The seed of the hashes, so that they have nothing to do with those that a corpus was split by."""
BLOCK_BYTES = 1 << 20
"""Bytes of text that are compared at a time, about."""


class Place(NamedTuple):
    """A document in the temporary file of a :class:`Sample`."""

    sample_id: str
    offset: int
    tokens: int
    patches: int


class Pair(NamedTuple):
    """A document of two sets."""

    text: int
    """Its text's number: that of documents with the same text is the same."""
    reference: Place
    other: Place


class Block(NamedTuple):
    """Documents of two sets laid end to end."""

    texts: list[bytes]
    text_D: np.ndarray
    """int64: the number of each document's text."""
    reference: PatchedTokens
    other: PatchedTokens


class Sample:
    """Documents of a set, chosen by the hashes of their texts."""

    def __init__(
        self,
        shards: ShardSet,
        share: float,
        path: Path,
        report: Callable[[int], None],
        only: "Sample | None" = None,
    ):
        """Reads the whole set.

        Args:
            share: the documents that are chosen, as a share of all texts that there may be.
            path: a new file, which takes about four bytes per byte of chosen text.
            report: called with the bytes of text that were read.
            only: the documents to keep are those of this sample; others are counted.

        Raises:
            PipelineError: the temporary file cannot be written.
        """
        self.has_entropies = shards.has_entropies
        self.documents = 0
        """Documents that are chosen, whether or not they are kept."""
        self.places: dict[bytes, list[Place]] = {}
        """Those that are kept, by the XXH3-128 of their text."""
        self.other_ids: set[str] = set()
        """If all documents are chosen: ids of those that are not kept."""
        self.problems: list[str] = []
        """One message for each shard that cannot be read to its end."""
        self._limit = None if share >= 1 else int(share * (1 << 64)).to_bytes(8)
        self._only = None if only is None else only.places
        self._size = 0
        advice = "set TMPDIR to a directory with more room, or compare fewer --documents"
        with translated(str(path.parent), what="cannot hold the documents", advice=advice):
            self._file = path.open("w+b")
            for shard in shards.entries:
                if shard.sha256 is None:
                    continue
                try:
                    for batch in shards.checked_batches(shard):
                        report(self._choose(batch, shards.output.locate(shard.path)))
                except DamagedShardError as error:
                    self.problems.append(f"{error} (its rest is not compared)")

    def _choose(self, batch: pa.RecordBatch, where: str) -> int:
        """Keep what is to be kept of a batch; returns its bytes of text."""
        with translated(where, DamagedShardError, advice=WAY_ON):
            text_B, lengths_D = read_text(batch)
            patched = read_patches(batch)
            fits = np.array_equal(lengths_D, patched.lengths_D)
            if not fits or (self.has_entropies and len(patched.entropies_T) != lengths_D.sum()):
                raise ValueError("its patches or entropies are not those of its texts")
        h_T, lengths_P = patched.entropies_T, patched.patch_lengths_P.astype(np.int32)
        edges_T, edges_P = _edges(lengths_D), _edges(patched.patches_D)
        text, ids = memoryview(text_B.data), batch[SAMPLE_ID]
        for row, (a, b) in enumerate(pairwise(_edges(lengths_D - 2))):
            digest = xxhash.xxh3_128_digest(text[a:b], SEED)
            if self._limit is not None and digest[:8] >= self._limit:
                continue
            self.documents += 1
            sample_id = ids[row].as_py()[:LONGEST_ID]
            if self._only is None or digest in self._only:
                of_T, of_P = slice(*edges_T[row : row + 2]), slice(*edges_P[row : row + 2])
                place = self._keep(sample_id, text[a:b], h_T[of_T], lengths_P[of_P])
                self.places.setdefault(digest, []).append(place)
            elif self._limit is None:
                self.other_ids.add(sample_id)
        return len(text_B)

    def _keep(
        self, sample_id: str, text: memoryview, h_T: np.ndarray, lengths_P: np.ndarray
    ) -> Place:
        place = Place(sample_id, self._size, len(text) + 2, len(lengths_P))
        for data in (text, h_T.tobytes(), lengths_P.tobytes()):
            self._size += self._file.write(data)
        return place

    def read(self, places: Sequence[Place]) -> tuple[list[bytes], PatchedTokens]:
        """The texts of some documents, and the documents laid end to end."""
        texts, entropies, lengths = [], [np.zeros(0, np.float16)], [np.zeros(0, np.int32)]
        for place in places:
            self._file.seek(place.offset)
            texts.append(self._file.read(place.tokens - 2))
            if self.has_entropies:
                entropies.append(np.frombuffer(self._file.read(2 * place.tokens), np.float16))
            lengths.append(np.frombuffer(self._file.read(4 * place.patches), np.int32))
        return texts, PatchedTokens(
            np.array([place.tokens for place in places], np.int64),
            np.concatenate(entropies),
            np.concatenate(lengths).astype(np.int64),
            np.array([place.patches for place in places], np.int64),
        )

    def close(self) -> None:
        """Close the temporary file."""
        self._file.close()


def _edges(counts_D: np.ndarray) -> list[int]:
    edges: list[int] = np.concatenate([[0], counts_D.cumsum()]).tolist()
    return edges


def pair_up(reference: Sample, other: Sample) -> list[Pair]:
    """The documents that both samples have, in the order of the reference."""
    common = (digest for digest in reference.places if digest in other.places)
    pairs = [
        Pair(text, a, b)
        for text, digest in enumerate(common)
        for a, b in zip(reference.places[digest], other.places[digest], strict=False)
    ]
    return sorted(pairs, key=lambda pair: pair.reference.offset)


def same_id_other_text(reference: Sample, other: Sample) -> int:
    """Ids of the reference whose documents are not in the other set, while another text has the id
    there. Known only if all documents were chosen: otherwise 0."""
    alone = (places for digest, places in reference.places.items() if digest not in other.places)
    return len({place.sample_id for places in alone for place in places} & other.other_ids)


def read_pairs(reference: Sample, other: Sample, pairs: Sequence[Pair]) -> Iterator[Block]:
    """Pairs in blocks of about BLOCK_BYTES of text, in their order."""
    block: list[Pair] = []
    size = 0
    for pair in pairs:
        if block and size + pair.reference.tokens > BLOCK_BYTES:
            yield _read(reference, other, block)
            block, size = [], 0
        block.append(pair)
        size += pair.reference.tokens
    if block:
        yield _read(reference, other, block)


def _read(reference: Sample, other: Sample, pairs: Sequence[Pair]) -> Block:
    texts, of_reference = reference.read([pair.reference for pair in pairs])
    _, of_other = other.read([pair.other for pair in pairs])
    return Block(texts, np.array([pair.text for pair in pairs]), of_reference, of_other)
