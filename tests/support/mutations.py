"""Valid files of every format, and damage to them: the inputs of ``make fuzz``."""

import bz2
import gzip
import io
import json
import lzma
import random
import struct
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": partial(gzip.compress, mtime=0),
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
NUMBERS = (0, 1, -1, 2, 7, 127, 128, 255, 1 << 15, 1 << 16, (1 << 31) - 1, -(1 << 31), 1 << 30)
LONG_NUMBERS = (*NUMBERS, 1 << 33, 1 << 40, (1 << 63) - 1, -(1 << 63), 1 << 62)


def texts(count: int) -> list[str]:
    words = ("the", "quick", "brown", "fox", "é", "日本", "\n", "jumps", '"', ",")
    random_words = random.Random(count)
    return [
        " ".join(random_words.choices(words, k=random_words.randrange(30))) for _ in range(count)
    ]


def _tables() -> dict[str, pa.Table]:
    text = pa.array(texts(200))
    number = np.arange(200)
    ids: dict[str, pa.Array] = {
        "string": pa.array([f"id{i}" for i in number]),
        "list": pa.array([["a"] * (i % 4) for i in number]),
        "struct": pa.array([{"a": int(i), "b": ["x", None]} for i in number]),
        "map": pa.array([[("k", int(i))] for i in number], pa.map_(pa.string(), pa.int64())),
        "time": pa.array(number).cast(pa.timestamp("us", "UTC")),
        "decimal": pa.array(number).cast(pa.decimal128(20, 0)),
        "fixed": pa.array([b"abcd"] * 200, pa.binary(4)),
        "bool": pa.array(number % 2 == 0),
        "null": pa.nulls(200),
    }
    tables = {name: pa.table({"id": column, "text": text}) for name, column in ids.items()}
    for name, kind in {"dictionary": pa.string(), "large": pa.large_string()}.items():
        column = text.cast(kind)
        column = column.dictionary_encode() if name == "dictionary" else column
        tables[name] = pa.table({"text": column, "id": ids["string"]})
    return tables


def _only_arrow() -> dict[str, pa.Table]:
    text = pa.array(texts(200))
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([50, 200], pa.int32()), pa.array(["a", "b"]))
    places = pa.array(np.arange(200) % 50, pa.int32())
    sizes = pa.array(np.full(200, 3, np.int32))
    lists = pa.ListViewArray.from_arrays(places, sizes, pa.array(texts(60)))
    union = pa.UnionArray.from_sparse(
        pa.array(np.zeros(200, np.int8)),
        [pa.array(np.arange(200)), pa.array(np.arange(200) % 3)],
    )
    columns = {"runs": runs, "list view": lists, "union": union}
    tables = {name: pa.table({"text": text, "id": column}) for name, column in columns.items()}
    return tables | {"view": pa.table({"text": text.cast(pa.string_view()), "id": places})}


def _arrow(table: pa.Table, opened: Callable, compression: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    # Of slices of unions Arrow writes bytes that nobody set: the inputs would not be the same.
    has_union = any(pa.types.is_union(field.type) for field in table.schema)
    with opened(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=200 if has_union else 64)
    return sink.getvalue().to_pybytes()


def _parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"row_group_size": 90, "data_page_size": 500, **options})
    return sink.getvalue()


def valid_files() -> dict[str, list[tuple[str, bytes]]]:
    """By format, files with the ending of their names."""
    files: dict[str, list[tuple[str, bytes]]] = {}
    tables = _tables()
    files["Parquet"] = [(".parquet", _parquet(table)) for table in tables.values()]
    flat = tables["string"]
    for codec in ("none", "gzip", "zstd", "brotli", "lz4"):
        files["Parquet"].append((".parquet", _parquet(flat, compression=codec)))
    for encoding in ("PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"):
        options = {"use_dictionary": False, "column_encoding": {"text": encoding, "id": encoding}}
        data = _parquet(flat, **options, compression="none", data_page_version="2.0")
        files["Parquet"].append((".parquet", data))
    files["Parquet"].append((".parquet", _parquet(flat, write_page_checksum=True)))
    for name, opened in (("Arrow file", pa.ipc.new_file), ("Arrow stream", pa.ipc.new_stream)):
        every = [*tables.values(), *_only_arrow().values()]
        codecs = (None, "lz4", "zstd")
        files[name] = [
            (".arrow", _arrow(table, opened, codec)) for table in every for codec in codecs
        ]
    rows = [{"text": text, "id": i, "more": [{"a": 1.5}]} for i, text in enumerate(texts(60))]
    plain = {
        "JSONL": (".jsonl", "".join(f"{json.dumps(row)}\n" for row in rows)),
        "CSV": (".csv", "id,text\n" + "".join(_csv(row, ",") for row in rows)),
        "TSV": (".tsv", "id\ttext\n" + "".join(_csv(row, "\t") for row in rows)),
        "text": (".txt", "\n".join(texts(30))),
    }
    for name, (ending, text) in plain.items():
        files[name] = [(ending, text.encode())]
    for name, compress in COMPRESSED.items():
        ending, text = plain["JSONL"]
        files[f"JSONL {name}"] = [(ending + name, compress(text.encode()))]
    return files


def _csv(row: dict, delimiter: str) -> str:
    return f'{row["id"]}{delimiter}"{row["text"].replace(chr(34), chr(34) * 2)}"\n'


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _number(data: bytearray, chance: random.Random) -> None:
    form, numbers = chance.choice((("<b", (0, 1, -1, 127)), ("<i", NUMBERS), ("<q", LONG_NUMBERS)))
    size = struct.calcsize(form)
    if len(data) >= size:
        at = chance.randrange(len(data) - size + 1)
        at -= at % chance.choice((1, size)) if at >= size else 0
        struct.pack_into(form, data, at, chance.choice(numbers))


def _varint(data: bytearray, chance: random.Random) -> None:
    """A large number as Parquet's metadata has them."""
    value, number = bytearray(), abs(chance.choice(LONG_NUMBERS))
    while number > 0x7F:
        value.append(number & 0x7F | 0x80)
        number >>= 7
    at = chance.randrange(len(data))
    data[at : at + chance.choice((1, 2, 3))] = bytes([*value, number])


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 4, 8, 100))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    part = bytes(data[at : at + chance.choice((1, 8, 64, 1000))])
    data[at:at] = part * chance.choice((1, 2, 50))


def _insert(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.choice((1, 4, 33)))


def _exchange(data: bytearray, chance: random.Random) -> None:
    size = min(len(data) // 2, chance.choice((1, 4, 8, 16, 64)))
    one, other = (chance.randrange(len(data) - size + 1) for _ in range(2))
    data[one : one + size] = data[other : other + size]


MUTATIONS = (_flip, _flip, _number, _number, _varint, _cut, _remove, _repeat, _insert, _exchange)


def mutated(data: bytes, chance: random.Random, near: int | None = None) -> bytes:
    """The data with one to three damages, half of the time near its end, where metadata is."""
    if not data:
        return data
    start = 0
    if chance.random() < 0.4:
        start = max(0, len(data) - chance.choice((50, 500, 3000)))
    elif chance.random() < 0.3:
        near = chance.choice((64, 1000))
    stop = len(data) if near is None else min(len(data), near)
    part = bytearray(data[start:stop] or data)
    if not data[start:stop]:
        start, stop = 0, len(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if part:
            chance.choice(MUTATIONS)(part, chance)
    return data[:start] + bytes(part) + data[stop:]
