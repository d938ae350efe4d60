"""Rows to arrays and back, however Arrow happens to lay the rows out."""

import numpy as np
import pyarrow as pa
import pytest

from model import Patcher
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document
from pipeline.patches import PatchedTokens, patch_stored
from pipeline.shards.format import (
    read_documents,
    read_entropies,
    read_patch_lengths,
    read_patches,
    read_text,
    read_texts,
    record_batch,
    shard_schema,
    with_patches,
)

TEXTS = ["one two", "", "é ü", "a longer document", "z"]


def patched(texts: list[str], threshold: float = 1.0) -> PatchedTokens:
    tokens_T, lengths_D = encode_documents([text.encode() for text in texts])
    # The same entropies for a document, whatever stands beside it.
    h_T = (tokens_T % 7 / 3).astype(np.float16)
    return patch_stored(Patcher(threshold), h_T, lengths_D)


def rows(texts: list[str], *, entropies: bool = True) -> pa.RecordBatch:
    documents = [Document(str(i), f"d{i}", text.encode(), ("m",)) for i, text in enumerate(texts)]
    return record_batch(documents, patched(texts), shard_schema(["meta"], entropies=entropies))


def sliced(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch as the middle of a longer one."""
    others = rows(["before", "more before"]), rows(["after"])
    whole = pa.Table.from_batches([others[0], batch, others[1]]).combine_chunks().to_batches()[0]
    return whole.slice(2, batch.num_rows)


def values_before(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Lists whose first value is not the first of their column, without being a slice."""
    columns = []
    for column in batch.columns:
        if pa.types.is_list(column.type):
            more = pa.concat_arrays([column.values[:3], column.values, column.values[:2]])
            offsets = pa.array(column.offsets.to_numpy() + 3)
            column = pa.ListArray.from_arrays(offsets, more)
        columns.append(column)
    return pa.record_batch(columns, batch.schema.names)


def large(batch: pa.RecordBatch) -> pa.RecordBatch:
    """As programs write that count with 64 bits."""
    types = {pa.string(): pa.large_string()}
    columns = [
        column.cast(
            pa.large_list(column.type.value_type)
            if pa.types.is_list(column.type)
            else types[column.type]
        )
        for column in batch.columns
    ]
    return pa.record_batch(columns, batch.schema.names)


def reread(batch: pa.RecordBatch) -> pa.RecordBatch:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return pa.ipc.open_file(sink.getvalue()).get_batch(0)


LAYOUTS = {
    "plain": lambda batch: batch,
    "slice": sliced,
    "values before": values_before,
    "large": large,
    "slice of large": lambda batch: large(sliced(batch)),
    "large, then sliced": lambda batch: large(rows([*TEXTS[:2], *TEXTS])).slice(2),
    "reread": reread,
    "reread slice": lambda batch: reread(sliced(batch)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_arrays(layout):
    expected, batch = patched(TEXTS), LAYOUTS[layout](rows(TEXTS))
    found = read_patches(batch)
    for name, values in expected._asdict().items():
        np.testing.assert_array_equal(getattr(found, name), values, strict=True)
    lengths_P, patches_D = read_patch_lengths(batch)
    assert (lengths_P.dtype, patches_D.dtype) == (np.int32, np.int64)
    np.testing.assert_array_equal(patches_D, expected.patches_D)
    np.testing.assert_array_equal(read_entropies(batch)[1], expected.lengths_D)
    assert read_texts(batch) == [text.encode() for text in TEXTS]
    text, lengths_D = read_text(batch)
    assert text.tobytes() == "".join(TEXTS).encode()
    np.testing.assert_array_equal(lengths_D, expected.lengths_D, strict=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("entropies", [True, False])
def test_documents_are_the_rows_one_by_one(layout, entropies):
    batch = LAYOUTS[layout](rows(TEXTS))
    if not entropies:
        batch = batch.drop_columns(["entropies"])
    documents = list(read_documents(batch))
    assert [document.text for document in documents] == TEXTS
    for document in documents:
        alone = patched([document.text])
        assert document.patch_lengths.dtype == np.int32
        assert document.patch_lengths.tolist() == alone.patch_lengths_P.tolist()
        assert b"".join(document.patches()) == document.text.encode()
        if entropies:
            np.testing.assert_array_equal(document.entropies, alone.entropies_T, strict=True)
        else:
            assert document.entropies is None
    if not entropies:
        assert len(read_patches(batch).entropies_T) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_are_replaced_and_nothing_else(layout):
    batch = LAYOUTS[layout](rows(TEXTS))
    other = patched(TEXTS, 0.4)
    changed = with_patches(batch, other)
    assert changed.schema == batch.schema
    np.testing.assert_array_equal(read_patches(changed).patch_lengths_P, other.patch_lengths_P)
    rest = ["sample_id", "text", "entropies"]
    assert changed.select(rest).equals(batch.select(rest))


def test_no_rows():
    none = rows(TEXTS).slice(5)
    for batch in (none, reread(none), large(none)):
        assert [len(values) for values in read_patches(batch)] == [0, 0, 0, 0]
        assert list(read_documents(batch)) == [] and len(read_text(batch)[1]) == 0


@pytest.mark.parametrize(
    "broken", [[0, 2, 1, 3, 4, 5], [0, 1, 2, 3, 4, 99_999], [-4, 0, 1, 2, 3, 4]]
)
@pytest.mark.parametrize("name", ["text", "entropies", "patch_lengths"])
def test_offsets_that_leave_their_column_are_refused(name, broken):
    """As in a damaged file: Arrow itself does not look at them."""
    batch = rows(TEXTS)
    offsets = batch[name].buffers()[1].to_pybytes()[:24]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    assert data.count(offsets) == 1
    damaged = pa.ipc.open_file(data.replace(offsets, np.array(broken, np.int32).tobytes()))
    read = read_text if name == "text" else read_patches
    with pytest.raises(ValueError, match=f"{name}.* do not lie within the column"):
        read(damaged.get_batch(0))


def test_rows_without_lists_are_refused():
    batch = rows(TEXTS)
    place = batch.schema.get_field_index("patch_lengths")
    column = batch.column(place)
    missing = pa.array([None, *column.to_pylist()[1:]], column.type)
    with pytest.raises(ValueError, match="patch_lengths: a row has no list"):
        read_patches(batch.set_column(place, "patch_lengths", missing))
