"""Small files that stand for gigabytes: one of each kind that a reader has to survive.

They are written without taking the memory that they ask for: zstd frames and Parquet pages are put
together from their parts, and what is larger is compressed a megabyte at a time.
"""

import bz2
import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MB = 1 << 20
GB = 1 << 30


def zstd_runs(*runs: tuple[bytes, int], window_log: int = 17) -> bytes:
    """A zstd frame of runs of bytes: 128 KB of one byte take four.

    Args:
        runs: text, repeated if it is one byte, and how often.
        window_log: the window that the frame asks for.
    """
    blocks = []
    for text, times in runs:
        if len(text) > 1:
            blocks += [(0, len(text), text * times)]
            continue
        sizes = [1 << 17] * (times >> 17) + [times & ((1 << 17) - 1)]
        blocks += [(1, size, text) for size in sizes if size]
    frame = b"\x28\xb5\x2f\xfd\0" + bytes([(window_log - 10) << 3])
    for i, (kind, size, data) in enumerate(blocks):
        is_last = i == len(blocks) - 1
        frame += (is_last | kind << 1 | size << 3).to_bytes(3, "little") + data
    return frame


def zstd_repeated(text: bytes, times: int) -> bytes:
    """A text, repeated, compressed a megabyte at a time."""
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    many = max(1, MB // len(text))
    parts = [compressor.compress(text * many) for _ in range(times // many)]
    return b"".join([*parts, compressor.compress(text * (times % many)), compressor.flush()])


# Thrift's compact protocol, as far as Parquet's metadata needs it: a struct is a dict by number of
# the field; an int is an i32, or an i64 within Long.


class Long(int):
    pass


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def zigzag(value: int) -> bytes:
    return varint(value << 1 if value >= 0 else (-value << 1) - 1)


def thrift(fields: dict) -> bytes:
    data, before = b"", 0
    for number, value in sorted(fields.items()):
        kind, content = encoded(value)
        data += bytes([(number - before) << 4 | kind]) + content
        before = number
    return data + b"\0"


def encoded(value) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return (1 if value else 2), b""
    if isinstance(value, int):
        return (6 if isinstance(value, Long) else 5), zigzag(value)
    if isinstance(value, bytes):
        return 8, varint(len(value)) + value
    if isinstance(value, dict):
        return 12, thrift(value)
    kind = encoded(value[0])[0]
    head = bytes([len(value) << 4 | kind]) if len(value) < 15 else bytes([0xF0 | kind])
    size = varint(len(value)) if len(value) >= 15 else b""
    return 9, head + size + b"".join(encoded(each)[1] for each in value)


PLAIN, RLE, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 0, 3, 7, 8
ENCODINGS, LYING_ENCODINGS = (PLAIN, RLE, RLE_DICTIONARY), (DELTA_BYTE_ARRAY, RLE, RLE_DICTIONARY)
"""Encodings that pyarrow names for a column with a dictionary, and the ones that say that Arrow can
make none."""
ZSTD = 6
TEXT = {1: 6, 3: 0, 4: b"text", 6: 0}  # required, UTF-8


def page(content: bytes, size: int, values: int, encoding: int = PLAIN) -> bytes:
    """A data page that states ``size`` bytes and ``values`` values."""
    about = {1: values, 2: encoding, 3: RLE, 4: RLE}
    return thrift({1: 0, 2: size, 3: len(content), 5: about}) + content


def dictionary_page(content: bytes, size: int, values: int) -> bytes:
    return thrift({1: 2, 2: size, 3: len(content), 7: {1: values, 2: PLAIN}}) + content


def parquet(
    columns: list[tuple[dict, list[bytes]]],
    rows: int,
    *,
    meta_too: dict | None = None,
    chunk_too: dict | None = None,
) -> bytes:
    """A Parquet file of one row group, of these columns, each with its pages.

    Args:
        meta_too: further fields of each column's metadata.
        chunk_too: fields of each column chunk, in place of its metadata.
    """
    data, chunks = b"PAR1", []
    for element, pages in columns:
        start, total = len(data), sum(map(len, pages))
        data += b"".join(pages)
        meta = {1: element[1], 2: [PLAIN, RLE, DELTA_BYTE_ARRAY, RLE_DICTIONARY], 3: [element[4]]}
        meta |= {4: ZSTD, 5: Long(rows), 6: Long(total), 7: Long(total), 9: Long(start)}
        meta |= meta_too or {}
        chunks.append({2: Long(start), **(chunk_too or {3: meta})})
    schema = [{4: b"schema", 5: len(columns)}, *(element for element, _ in columns)]
    groups = [{1: chunks, 2: Long(len(data)), 3: Long(rows)}]
    footer = thrift({1: 1, 2: schema, 3: Long(rows), 4: groups})
    return data + footer + struct.pack("<I", len(footer)) + b"PAR1"


def delta_packed(first: int, second: int, count: int) -> bytes:
    """DELTA_BINARY_PACKED: a number, and another that follows it ``count`` - 1 times."""
    data = varint(128) + varint(4) + varint(count) + zigzag(first)
    step = second - first
    deltas = [step, *([0] * (count - 2))]
    for start in range(0, count - 1, 128):
        least = min(0, step) if start == 0 else 0
        width = abs(step).bit_length() if start == 0 else 0
        data += zigzag(least) + bytes([width, width, width, width])
        block = [delta - least for delta in deltas[start : start + 128]]
        bits = sum(delta << (width * i) for i, delta in enumerate(block))
        data += bits.to_bytes(128 * width // 8, "little")
    return data


def delta_strings(length: int, count: int) -> bytes:
    """A page of one string, ``count`` times, each of which says: as the one before."""
    content = delta_packed(0, length, count) + delta_packed(length, 0, count) + b"a" * length
    return page(zstandard.compress(content), len(content), count, DELTA_BYTE_ARRAY)


def repeated_dictionary(length: int, rows: int, *, is_list: bool = False) -> pa.Array:
    """One string of a dictionary, in all rows."""
    dictionary = pa.array(["a" * length])
    indices = pa.array(np.zeros(rows, np.int32))
    values = pa.DictionaryArray.from_arrays(indices, dictionary)
    return pa.ListArray.from_arrays(pa.array([0, rows], pa.int32()), values) if is_list else values


def write_parquet(path: Path, **columns: pa.Array) -> None:
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)


def arrow_stream(
    batch: pa.RecordBatch, replaced: dict[int, bytes], rows: int | None = None
) -> bytes:
    """An IPC stream of a batch, some of whose buffers are replaced by compressed ones.

    Args:
        replaced: by number of the buffer: its bytes, with the size before them.
        rows: that the batch states instead.
    """
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    data = sink.getvalue().to_pybytes()
    start = 0
    while True:  # the schema, dictionaries, the batch
        (length,) = struct.unpack_from("<i", data, start + 4)
        message = pa.ipc.read_message(pa.py_buffer(data[start:]))
        if message.type == "record batch":
            break
        start += 8 + length + (len(message.body) if message.body is not None else 0)
    metadata = bytearray(data[start : start + 8 + length])
    body = data[start + 8 + length : -8]
    # Buffers are a vector of (offset, length); the vector is found by the first buffers in it.
    places = _buffers(bytes(metadata), len(message.body))
    new_body = b""
    for number, (at, offset, size) in enumerate(places):
        content = replaced.get(number, body[offset : offset + size])
        struct.pack_into("<qq", metadata, at, len(new_body), len(content))
        new_body += content + b"\0" * (-len(content) % 8)
    at = bytes(metadata).index(struct.pack("<q", len(message.body)))
    struct.pack_into("<q", metadata, at, len(new_body))
    if rows is not None:
        old = struct.pack("<q", batch.num_rows)
        changed = bytes(metadata).replace(old, struct.pack("<q", rows))
        metadata = bytearray(changed)
    return data[:start] + bytes(metadata) + new_body + data[-8:]


def _buffers(metadata: bytes, body: int) -> list[tuple[int, int, int]]:
    """Place, offset and length of each buffer that a message's metadata lists."""
    for start in range(8, len(metadata) - 20, 4):
        (count,) = struct.unpack_from("<I", metadata, start)
        if not 0 < count < 100 or start + 4 + 16 * count > len(metadata):
            continue
        pairs = [struct.unpack_from("<qq", metadata, start + 4 + 16 * i) for i in range(count)]
        ends = [offset + size for offset, size in pairs]
        follow = all(o % 8 == 0 and o >= e for (o, _), e in zip(pairs[1:], ends, strict=False))
        if pairs[0][0] == 0 and follow and body - 8 < ends[-1] <= body and min(ends) >= 0:
            return [(start + 4 + 16 * i, *pair) for i, pair in enumerate(pairs)]
    raise AssertionError("no buffers found")


def compressed_buffer(size: int, frame: bytes) -> bytes:
    return struct.pack("<q", size) + frame


def xz_with_dictionary(text: bytes, bits: int) -> bytes:
    """An .xz file that asks for the dictionary whose size is coded as ``bits``."""
    data = bytearray(lzma.compress(text))
    size = (data[12] + 1) * 4  # of the block's header, which ends in its CRC
    at = data.index(b"\x21\x01", 12) + 2
    data[at] = bits
    struct.pack_into("<I", data, 12 + size - 4, zlib.crc32(data[12 : 12 + size - 4]))
    return bytes(data)


def view_batch(rows: int, length: int) -> pa.RecordBatch:
    """Rows that all are the same long part of one buffer."""
    view = struct.pack("<i4sii", length, b"aaaa", 0, 0)
    buffers = [None, pa.py_buffer(view * rows), pa.py_buffer(b"a" * length)]
    column = pa.Array.from_buffers(pa.string_view(), rows, buffers)
    return pa.RecordBatch.from_arrays([column], ["text"])


def write_arrow(path: Path, batch: pa.RecordBatch, *, is_file: bool = True) -> None:
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    opened = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with opened(path, batch.schema, options=options) as writer:
        writer.write_batch(batch)


def _json_bombs() -> Iterable[tuple[str, bytes]]:
    line = b'{"text": "a"}\n'
    yield "newlines.jsonl.zst", zstd_runs((b"\n", 128 * MB), (line, 1))
    yield "blank.jsonl.zst", zstd_repeated(b" \t\r\n", 16 * MB) + zstandard.compress(line)
    yield "endless.jsonl.zst", zstd_runs((b'{"text": "', 1), (b"a", 400 * MB))
    yield "long.jsonl.zst", zstd_runs((b'{"text": "', 1), (b"a", 150 * MB), (b'"}\n', 1))
    yield "newlines.jsonl.bz2", bz2.compress(b"\n" * (32 * MB)) * 2
    yield "newlines.jsonl.xz", lzma.compress(b"\n" * (64 * MB), preset=0)
    yield "endless.jsonl.gz", gzip.compress(b"a" * (32 * MB)) * 7
    yield "members.jsonl.gz", gzip.compress(b"") * 20_000 + gzip.compress(line)
    yield "frames.jsonl.zst", zstandard.compress(b"") * 100_000 + zstandard.compress(line)
    yield "empty.jsonl.zst", zstd_repeated(b'{"text": ""}\n', 100_000)
    yield "ids.jsonl.zst", zstd_repeated(b'{"text": "", "id": "' + b"x" * MB + b'"}\n', 500)
    start, end = b'{"text": "a", "id": ', b"}\n"
    lists = zstd_repeated(b"[],", 10 * MB)
    yield "lists.jsonl.zst", zstandard.compress(start + b"[") + lists + zstandard.compress(b"0]}\n")
    yield "deep.jsonl.zst", zstd_runs((start, 1), (b"[", 64 * MB), (end, 1))
    yield "integer.jsonl.zst", zstd_runs((start, 1), (b"7", 64 * MB), (end, 1))
    yield "fraction.jsonl.zst", zstd_runs((start + b"0.", 1), (b"7", 64 * MB), (end, 1))
    names = (b'"%c%d":0,' % (65 + i // 100_000, i) for i in range(800_000))
    lines = b"".join(
        b"{" + b"".join(next(names) for _ in range(200_000)) + b'"":0}\n' for _ in "1234"
    )
    yield "names.jsonl.zst", zstandard.compress(lines)
    yield "window.jsonl.zst", zstd_runs((line, 1), window_log=31)
    yield "dictionary.jsonl.xz", xz_with_dictionary(line, 40)


def _table_bombs() -> Iterable[tuple[str, bytes]]:
    yield "quote.csv.zst", zstd_runs((b'text\n"', 1), (b"a", 400 * MB))
    yield "fields.csv.zst", zstd_runs((b"text\na,", 1), (b",", 256 * MB))
    yield "header.csv.zst", zstd_runs((b"text,", 1), (b",", 256 * MB))
    yield "newlines.csv.zst", zstd_runs((b"text\na\n", 1), (b"\n", 256 * MB))
    yield "quotes.csv.zst", zstandard.compress(b"text\n") + zstd_repeated(b'"a\n",', 64 * MB)
    yield "endless.txt.zst", zstd_runs((b"a", 4 * GB))


def _parquet_bombs() -> Iterable[tuple[str, bytes]]:
    zeros = zstd_runs((b"\0", GB + 512 * MB))
    yield "plain_page.parquet", parquet([(TEXT, [page(zeros, GB + 512 * MB, 1000)])], 1000)
    half = zstd_runs((b"\0", 500 * MB))
    yield "accepted_page.parquet", parquet([(TEXT, [page(half, 500 * MB, 1000)])], 1000)
    size = 150 * MB
    long = zstd_runs((struct.pack("<I", size - 4), 1), (b"a", size - 4))
    yield "long_value.parquet", parquet([(TEXT, [page(long, size, 1)])], 1)
    both = [dictionary_page(long, size, 1), page(zstandard.compress(b"\1\4\0"), 3, 2, 8)]
    yield "long_repeated.parquet", parquet([(TEXT, both)], 2)
    pages = [dictionary_page(zeros, GB + 512 * MB, 10), page(b"", 0, 1000, RLE_DICTIONARY)]
    yield "dictionary_page.parquet", parquet([(TEXT, pages)], 1000)
    yield "delta.parquet", parquet([(TEXT, [delta_strings(MB, 20_000)])], 20_000)
    yield "rows.parquet", parquet([(TEXT, [page(half, 500 * MB, 2**31 - 1)])], 2**31 - 1)
    wide = {1: 7, 2: GB // 2, 3: 1, 4: b"id"}
    nulls = page(zstandard.compress(b"\3\0\0\0\xd0\x0f\0"), 7, 1000)
    short = page(zstandard.compress(b"\1\0\0\0a" * 1000), 5000, 1000)
    yield "wide.parquet", parquet([(TEXT, [short]), (wide, [nulls])], 1000)
    deep = [{4: b"schema", 5: 1}, *[{3: 0, 4: b"g", 5: 1}] * 50_000, TEXT]
    footer = thrift({1: 1, 2: deep, 3: Long(0), 4: [{1: [{2: Long(0)}], 2: Long(0), 3: Long(0)}]})
    yield "deep.parquet", b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"
    group = b"\x19\xfc" + varint(150_000) + b"\x26\0\0" * 150_000 + b"\x16\0\x16\0\0"
    start = thrift({1: 1, 2: [{4: b"schema", 5: 1}, TEXT], 3: Long(0)})[:-1]
    footer = start + b"\x19" + bytes([14 << 4 | 12]) + group * 14 + b"\0"
    yield "footer.parquet", b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def _arrow_bombs() -> Iterable[tuple[str, bytes]]:
    batch = pa.RecordBatch.from_pydict({"text": ["a"] * 1000, "id": ["b"] * 1000})
    size = 3 * GB
    zeros = compressed_buffer(size, zstd_runs((b"\0", size)))
    yield "buffer.arrow", arrow_stream(batch, {2: zeros})
    lie = compressed_buffer(1 << 40, zstandard.compress(b"a"))
    yield "lie.arrow", arrow_stream(batch, {2: lie})
    offsets = compressed_buffer(900 * MB, zstd_runs((b"\0", 900 * MB)))
    yield "rows.arrow", arrow_stream(batch, {1: offsets, 4: offsets}, 900 * MB // 4 - 1)
    dictionary = pa.DictionaryArray.from_arrays(pa.array([0] * 999 + [1], pa.int32()), ["a", "b"])
    batch = pa.RecordBatch.from_arrays([dictionary], ["text"])
    yield "indices.arrow", arrow_stream(batch, {1: offsets}, 900 * MB // 4)


def _repeats(directory: Path) -> None:
    """What pyarrow itself writes in a few kilobytes."""
    texts = repeated_dictionary(2 * MB, 8000)
    write_parquet(directory / "repeated.parquet", text=texts)
    short = pa.array(["a"] * 8000)
    write_parquet(directory / "repeated_id.parquet", text=short, id=texts)
    many = repeated_dictionary(1000, 10_000_000, is_list=True)
    write_parquet(directory / "list.parquet", text=short[:1], id=many)
    honest, lying = (b"\x35" + b"".join(map(zigzag, of)) for of in (ENCODINGS, LYING_ENCODINGS))
    lie = (directory / "list.parquet").read_bytes().replace(honest, lying)
    (directory / "lying_list.parquet").write_bytes(lie)
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([8000], pa.int32()), pa.array(["a" * 2 * MB]))
    for name, column in {"repeated": texts, "runs": short, "views": None}.items():
        columns = [short, runs] if name == "runs" else [column]
        batch = view_batch(40, 60 * MB)
        if column is not None:
            batch = pa.RecordBatch.from_arrays(columns, ["text", "id"][: len(columns)])
        write_arrow(directory / f"{name}.arrow", batch, is_file=name != "views")
    inner = pa.array(np.zeros(4 * MB, np.int8))
    offsets, sizes = np.zeros(1000, np.int32), np.full(1000, 4 * MB, np.int32)
    lists = pa.ListViewArray.from_arrays(pa.array(offsets), pa.array(sizes), inner)
    batch = pa.RecordBatch.from_arrays([short[:1000], lists], ["text", "id"])
    write_arrow(directory / "list_views.arrow", batch)
    fields = {f"f{i}": pa.array([1]) for i in range(500)}
    wide = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    write_parquet(directory / "fields.parquet", text=short[:1], id=wide)


BOMBS: tuple[Callable[[], Iterable[tuple[str, bytes]]], ...] = (
    *(_json_bombs, _table_bombs, _parquet_bombs, _arrow_bombs),
)


def write_bombs(directory: Path) -> list[Path]:
    """One file of each kind."""
    for made in BOMBS:
        for name, data in made():
            (directory / name).write_bytes(data)
    _repeats(directory)
    return sorted(directory.iterdir())
