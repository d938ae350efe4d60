"""The rows of a shard: their columns, and how those hold documents, entropies and patches.

A shard is an Arrow IPC file with one row per document, in record batches of about a megabyte of
text. Its columns are:

* ``sample_id: string``
* ``text: string``
* ``entropies: list<float16>``: nats, one per token (BOS, bytes, EOS); may be left out
* ``patch_lengths: list<int32>``: tokens of each patch; they sum to ``bytes + 2``
* columns of metadata, as strings

Elsewhere documents lie end to end in plain arrays (:class:`pipeline.patches.PatchedTokens`); this
module alone knows how Arrow lays the same numbers out. A list column is one array of ``values`` and
one of ``offsets``: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``. In a batch that is a slice
of another, the offsets begin in the middle of values that belong to other rows, too: the patch
lengths ``[[1, 2], [1, 4], [1]]`` have the values ``1 2 1 4 1`` and the offsets ``0 2 4 5``; of the
last two rows the offsets are ``2 4 5`` and the values still ``1 2 1 4 1``.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.corpus.documents import Document
from pipeline.patches import PatchedTokens
from pipeline.shards.names import ENTROPIES as ENTROPIES
from pipeline.shards.names import OWN_COLUMNS as OWN_COLUMNS
from pipeline.shards.names import PATCH_LENGTHS as PATCH_LENGTHS
from pipeline.shards.names import SAMPLE_ID as SAMPLE_ID
from pipeline.shards.names import TEXT as TEXT

COMPRESSION = "zstd"


class PatchedDocument(NamedTuple):
    """One row of a shard."""

    sample_id: str
    text: str
    entropies: np.ndarray | None
    """float16, nats, one for each token (BOS, bytes, EOS); None if they were left out."""
    patch_lengths: np.ndarray
    """int32, tokens; sums to ``bytes + 2``."""

    def patches(self) -> list[bytes]:
        """The text cut at the boundaries; BOS and EOS are left out of the first and last."""
        data = self.text.encode()
        cuts = np.clip(np.concatenate([[0], self.patch_lengths.cumsum()]) - 1, 0, len(data))
        return [data[a:b] for a, b in pairwise(cuts)]


def shard_schema(metadata: Sequence[str] = (), *, entropies: bool = True) -> pa.Schema:
    """Schema of a shard with these metadata columns."""
    columns = [pa.field(SAMPLE_ID, pa.string()), pa.field(TEXT, pa.string())]
    if entropies:
        columns.append(pa.field(ENTROPIES, pa.list_(pa.float16())))
    columns.append(pa.field(PATCH_LENGTHS, pa.list_(pa.int32())))
    return pa.schema([*columns, *(pa.field(name, pa.string()) for name in metadata)])


def ipc_options() -> pa.ipc.IpcWriteOptions:
    """How shards are compressed; in one thread, because each worker has one core."""
    return pa.ipc.IpcWriteOptions(compression=COMPRESSION, use_threads=False)


def record_batch(
    documents: Sequence[Document], patched: PatchedTokens, schema: pa.Schema
) -> pa.RecordBatch:
    """Rows of a shard from documents with their entropies and patches."""
    entropies = pa.array(patched.entropies_T)
    columns = {
        SAMPLE_ID: pa.array([document.sample_id for document in documents], pa.string()),
        TEXT: pa.array([document.text for document in documents], pa.string()),
        ENTROPIES: _list_array(entropies, patched.lengths_D),
        PATCH_LENGTHS: _patch_lengths_array(patched),
    }
    first_metadata = len(schema) - len(documents[0].metadata)
    for i, name in enumerate(schema.names[first_metadata:]):
        columns[name] = pa.array([document.metadata[i] for document in documents], pa.string())
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)


def with_patches(batch: pa.RecordBatch, patched: PatchedTokens) -> pa.RecordBatch:
    """A batch's rows with other patches."""
    place = batch.schema.get_field_index(PATCH_LENGTHS)
    field = batch.schema.field(place)
    return batch.set_column(place, field, _patch_lengths_array(patched).cast(field.type))


def without_entropies(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch's rows without their entropies, if they have any."""
    return batch.drop_columns([ENTROPIES]) if ENTROPIES in batch.schema.names else batch


def _patch_lengths_array(patched: PatchedTokens) -> pa.ListArray:
    return _list_array(pa.array(patched.patch_lengths_P, pa.int32()), patched.patches_D)


def _list_array(values: pa.Array, counts_D: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], counts_D.cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values)


def read_documents(batch: pa.RecordBatch) -> Iterator[PatchedDocument]:
    """The rows one by one; their arrays are views of the batch.

    Raises:
        ValueError: a list column is damaged.
    """
    ids, texts = batch[SAMPLE_ID].to_pylist(), batch[TEXT].to_pylist()
    patch_lengths = _rows(*read_patch_lengths(batch))
    entropies: Iterator[np.ndarray | None] = iter([None] * len(ids))
    if ENTROPIES in batch.schema.names:
        entropies = _rows(*read_entropies(batch))
    yield from map(PatchedDocument, ids, texts, entropies, patch_lengths)


def _rows(values: np.ndarray, counts_D: np.ndarray) -> Iterator[np.ndarray]:
    edges = [0, *counts_D.cumsum().tolist()]
    return (values[a:b] for a, b in pairwise(edges))


def read_patches(batch: pa.RecordBatch) -> PatchedTokens:
    """The rows end to end, as far as the list columns tell; without entropies if they have none.

    A document's length is the sum of its patches: whether its text has that length is not checked.

    Raises:
        ValueError: a list column is damaged.
    """
    patch_lengths_P, patches_D = read_patch_lengths(batch)
    patch_lengths_P = patch_lengths_P.astype(np.int64)
    total_P = np.concatenate([[0], patch_lengths_P.cumsum()])
    ends_D = patches_D.cumsum()
    lengths_D = total_P[ends_D] - total_P[ends_D - patches_D]
    entropies_T = np.zeros(0, np.float16)
    if ENTROPIES in batch.schema.names:
        entropies_T, _ = read_entropies(batch)
    return PatchedTokens(lengths_D, entropies_T, patch_lengths_P, patches_D)


def read_entropies(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Entropies of the rows end to end (float16, nats), and how many each row has (int64).

    Raises:
        ValueError: the column is damaged.
    """
    return _read_lists(batch, ENTROPIES)


def read_patch_lengths(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """Patch lengths of the rows end to end (int32, tokens), and how many each row has (int64).

    Raises:
        ValueError: the column is damaged.
    """
    return _read_lists(batch, PATCH_LENGTHS)


def _read_lists(batch: pa.RecordBatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    column = batch[name]
    if column.null_count:
        raise ValueError(f"{name}: a row has no list")
    offsets_D = column.offsets.to_numpy().astype(np.int64)
    counts_D = np.diff(offsets_D)
    # Arrow believes what a file says: a damaged one must not make it read elsewhere.
    if offsets_D[0] < 0 or counts_D.min(initial=0) < 0 or offsets_D[-1] > len(column.values):
        raise ValueError(f"{name}: lists do not lie within the column")
    return column.values.to_numpy()[offsets_D[0] : offsets_D[-1]], counts_D


def read_texts(batch: pa.RecordBatch) -> list[bytes]:
    """UTF-8 text of each row."""
    texts: list[bytes] = batch[TEXT].cast(pa.binary()).to_pylist()
    return texts


def read_text(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 text of the rows end to end (uint8), and the tokens of each row (int64), which are two
    more than its bytes.

    Raises:
        ValueError: the column is damaged.
    """
    column = batch[TEXT]
    dtype = np.dtype(np.int64 if pa.types.is_large_string(column.type) else np.int32)
    _, offsets, data = column.buffers()
    offsets_D = np.zeros(1, dtype)
    if len(column):
        offsets_D = np.frombuffer(offsets, dtype, len(column) + 1, column.offset * dtype.itemsize)
    text = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
    lengths_D = np.diff(offsets_D).astype(np.int64) + 2
    if offsets_D[0] < 0 or offsets_D[-1] > len(text) or (lengths_D < 2).any():
        raise ValueError("texts do not lie within the column")
    return text[offsets_D[0] : offsets_D[-1]], lengths_D
