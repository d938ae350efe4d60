"""A reader of the outputs that the page on file formats describes, written from that page alone.

It reads patch shards, prepared corpora and exports. Nothing of the packages that wrote the outputs
is used, so that a test with this module is a test of the page.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
import zstandard

Values = dict[str, Any]

FORMAT_VERSION = 1
"""Of prepared corpora."""
SHARD_VERSIONS = (1, 2)
FIXED_COLUMNS = {
    "sample_id": pa.string(),
    "text": pa.string(),
    "entropies": pa.list_(pa.float16()),
    "patch_lengths": pa.list_(pa.int32()),
}


class FormatError(ValueError):
    """An output is not as the page says."""


ENTRY_COLUMNS = {
    **dict.fromkeys(("name", "source"), pa.string()),
    **dict.fromkeys(("records", "rejects"), pa.int64()),
    "last": pa.bool_(),
    "error": pa.string(),
    "shard_bytes": pa.int64(),
    "sha256": pa.string(),
    **dict.fromkeys(("documents", "bytes", "tokens", "patches", "entropy", "batches"), pa.int64()),
}
BATCH_COLUMNS = {
    **dict.fromkeys(("offset", "length", "rows", "tokens"), pa.int64()),
    "hash": pa.uint64(),
}


def expect(what: str, found: Any, stated: Any) -> None:
    """Raise an error unless what was found equals what was stated."""
    if found != stated:
        raise FormatError(f"{what}: found {str(found)[:300]}, stated {str(stated)[:300]}")


def read_json(path: Path | str) -> Any:
    """Return the value that a JSON file holds."""
    return json.loads(Path(path).read_bytes())


def read_lines(path: Path | str) -> list[Any]:
    """Return the values of a JSONL file. Only a line feed ends a line, the last one too."""
    *lines, rest = Path(path).read_bytes().split(b"\n")
    expect(f"what follows the last line of {path}", rest, b"")
    return [json.loads(line) for line in lines]


def check_itself(what: str, data: bytes, values: Values) -> None:
    """Take the hash of its own text from an object, and compare it."""
    check = values.pop("check")
    zeros = data.replace(b'"check": "%s"' % check.encode(), b'"check": "0000000000000000"')
    expect(f"check of {what}", hash_bytes(zeros), check)


def read_manifest(directory: Path | str, stage: str | None = None) -> Values:
    """Return the manifest of a finished output of a stage; None stands for a shard set."""
    data = (Path(directory) / "manifest.json").read_bytes()
    manifest = json.loads(data)
    if "check" in manifest:
        check_itself(f"manifest of {directory}", data, manifest)
    expect(f"stage of {directory}", manifest.get("stage"), stage)
    version = manifest.get("format_version")
    if stage is None:
        expect(f"whether format version {version} is known", version in SHARD_VERSIONS, True)
    else:
        expect(f"format version of {directory}", version, {"prepare": FORMAT_VERSION}.get(stage))
    return manifest


def hash_bytes(data: bytes) -> str:
    """Return the XXH3-64 hash of some bytes in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(data)


def read_part(path: Path, schema: pa.Schema, place: tuple[int, int, int, str]) -> pa.RecordBatch:
    """Return a record batch of an Arrow IPC file, given its offset, length, rows and hash."""
    offset, length, rows, stated = place
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    expect(f"hash of byte {offset} to {offset + length} of {path}", hash_bytes(data), stated)
    batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
    expect(f"rows at byte {offset} of {path}", batch.num_rows, rows)
    return batch


def read_columns(directory: Path | str, name: str, types: dict[str, pa.DataType]) -> list[Values]:
    """Return the rows of a file of columns part by part, as the manifest lists them."""
    path, stated = Path(directory) / f"{name}.arrow", read_manifest(directory)[name]
    expect(f"size of {path}", path.stat().st_size, stated["bytes"])
    expect(f"SHA-256 of {path}", hashlib.sha256(path.read_bytes()).hexdigest(), stated["sha256"])
    parts = [stated["parts"][key] for key in ("offset", "length", "rows", "hash")]
    batches = [read_part(path, pa.schema(types), place) for place in zip(*parts, strict=True)]
    whole = read_table(path)
    found = dict(zip(whole.column_names, whole.schema.types, strict=True))
    expect(f"columns of {path}", found, types)
    rows = [row for batch in batches for row in batch.to_pylist()]
    expect(f"rows of {path}", rows, whole.to_pylist())
    return rows


def read_shards(directory: Path | str) -> list[Values]:
    """Return what a shard set knows of each shard; `places` has its record batches."""
    manifest = read_manifest(directory)
    if manifest["format_version"] == 1:
        return manifest["shards"]
    shards = read_columns(directory, "entries", ENTRY_COLUMNS)
    batches = read_columns(directory, "batches", BATCH_COLUMNS)
    for shard in shards:
        shard["places"], batches = batches[: shard["batches"]], batches[shard["batches"] :]
    expect("record batches that belong to no shard", batches, [])
    return shards


def read_rejects(directory: Path | str) -> dict[str, list[dict[str, str]]]:
    """Return the rejected records of a shard set or a prepared corpus by the name of their file."""
    paths = sorted(Path(directory, "rejects").glob("*.jsonl"))
    return {path.stem: read_lines(path) for path in paths}


def read_table(path: Path | str) -> pa.Table:
    """Return the rows of an Arrow IPC file or of a Parquet file."""
    path = Path(path)
    if path.suffix == ".parquet":
        return pq.read_table(path, use_threads=False)
    expect(f"beginning of {path}", path.read_bytes()[:6], b"ARROW1")
    with pa.ipc.open_file(path) as reader:
        return reader.read_all()


@dataclass
class Document:
    """One row. None stands for a column that the file does not have."""

    sample_id: str
    text: str
    entropies: np.ndarray | None = None
    patch_lengths: np.ndarray | None = None
    metadata: dict[str, str | None] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The text as UTF-8."""
        return self.text.encode()

    @property
    def tokens(self) -> int:
        """The number of the bytes, and of BOS and EOS."""
        return len(self.content) + 2

    def patches(self) -> list[bytes]:
        """Return the bytes of each patch; BOS and EOS have none."""
        content, ends = self.content, np.cumsum(self.patch_lengths).tolist()
        return [content[max(start - 1, 0) : end - 1] for start, end in pairwise([0, *ends])]


def make_documents(table: pa.Table) -> list[Document]:
    """Return the documents of a table."""
    arrays = [name for name in ("entropies", "patch_lengths") if name in table.column_names]
    documents = [
        Document(row.pop("sample_id"), row.pop("text"), metadata=row)
        for row in table.drop_columns(arrays).to_pylist()
    ]
    for name in arrays:
        for document, value in zip(documents, table[name], strict=True):
            setattr(document, name, value.values.to_numpy(zero_copy_only=False))
    return documents


def read_documents(path: Path | str) -> list[Document]:
    """Return the documents of an Arrow IPC file, of a Parquet file, or of a JSONL file."""
    if Path(path).suffix != ".jsonl":
        return make_documents(read_table(path))
    rows = read_lines(path)
    return [Document(row.pop("sample_id"), row.pop("text"), metadata=row) for row in rows]


def read_shard_set(directory: Path | str) -> Iterator[Document]:
    """Yield the documents of a shard set in order."""
    for entry in read_shards(directory):
        if entry["sha256"] is not None:
            yield from read_documents(Path(directory) / "shards" / f"{entry['name']}.arrow")


def read_prepared(directory: Path | str) -> Iterator[Document]:
    """Yield the documents of a prepared corpus's chunks in order, but not those for validation."""
    for chunk in read_manifest(directory, "prepare")["chunks"]:
        yield from read_documents(Path(directory) / chunk["name"])


def read_export(directory: Path | str) -> Iterator[Document]:
    """Yield the documents of an export in order; its manifest lies in the directory."""
    for each in read_manifest(directory, "export")["files"]:
        yield from read_documents(Path(directory) / each["path"])


SPACES = np.array([not (chr(byte).isalnum() and byte < 128) for byte in range(256)])
SPACES[0x80:0xC0] = False


def find_threshold_values(document: Document, patcher: Values) -> np.ndarray:
    """Return for each token from 2 on the value that must exceed the threshold for a patch there.

    It is infinite where every threshold gives a patch, and minus infinity where none does. A rule
    without a threshold is taken for `global`.
    """
    h = document.entropies.astype(np.float32)
    steps, values = np.diff(h)[:-1], h[1:-1]
    if patcher["rule"] == "monotonic":
        values = steps
    elif patcher["rule"] == "combined":
        values = np.where(steps > np.float32(patcher["threshold_add"]), values, -np.inf)
        if patcher["published"]:
            values[1:2] = -np.inf
    if patcher["published"] and patcher["rule"] in ("monotonic", "combined"):
        values = np.concatenate([np.full_like(values[:1], np.inf), values[1:]])
    return values


def find_starts(document: Document, patcher: Values) -> set[int] | None:
    """Return the tokens at which patches start before cuts, or None for want of entropies."""
    rule, count = patcher["rule"], document.tokens
    if rule == "static":
        size, shift = patcher["patch_size"], 0 if patcher["published"] else 1
        starts = np.floor(np.arange(int(count / size) + 2) * size).astype(int) + shift
        return {0, shift, *starts[starts < count].tolist()}
    if rule == "byte":
        return {*range(count)}
    if rule == "space":
        spaces = np.append(True, SPACES[np.frombuffer(document.content, np.uint8)])  # BOS is one
        return {0, 1, *(np.flatnonzero(spaces[1:] & ~spaces[:-1]) + 2).tolist()}
    if document.entropies is None:
        return None
    if rule == "top-k":
        most = max(int(np.float32(count) / np.float32(patcher["patch_size"])) - 2, 0)
        order = np.argsort(-document.entropies[1:-1].astype(np.float32), kind="stable")
        return {0, 1, *(order[:most] + 2).tolist()}
    values = find_threshold_values(document, patcher)
    return {0, 1, *(np.flatnonzero(values > np.float32(patcher["threshold"])) + 2).tolist()}


def find_patches(document: Document, patcher: Values) -> list[int] | None:
    """Return the patch lengths that a manifest's rule gives, or None for want of entropies."""
    starts = find_starts(document, patcher)
    if starts is None:
        return None
    lengths = [end - start for start, end in pairwise([*sorted(starts), document.tokens])]
    longest = patcher.get("max_patch_length") or document.tokens
    pieces = [divmod(length, longest) for length in lengths]
    return [piece for full, rest in pieces for piece in [longest] * full + [rest] * (rest > 0)]


def join_entropies(documents: list[Document]) -> np.ndarray | None:
    """Return the entropies of some documents in one array, or None if they have none."""
    arrays = [each.entropies for each in documents]
    return None if any(each is None for each in arrays) else np.concatenate([[], *arrays])


def read_thresholds(thresholds: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return the float16 values of a summary's threshold curve, rising, and their counts."""
    packed = base64.b64decode(thresholds["counts"])
    unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    counts = np.frombuffer(unpacked, f"<u{thresholds['size']}").astype(np.int64)
    places = thresholds["first"] + np.arange(len(counts))
    bits = np.where(places >= 32768, places - 32768, 65535 - places)
    return bits.astype(np.uint16).view(np.float16), counts


def count_patches(thresholds: Values, threshold: float) -> int:
    """Return how many patches a threshold gives by a curve, before any are cut."""
    values, counts = read_thresholds(thresholds)
    above = values.astype(np.float32) > np.float32(threshold)
    return thresholds["always"] + int(counts[above].sum())


def hash_column(column: pa.ChunkedArray) -> list[str]:
    """Return the hashes of a column's lengths and of its values, both in hexadecimal."""
    is_text = pa.types.is_string(column.type)
    lengths = (pc.binary_length if is_text else pc.list_value_length)(column)
    lengths = lengths.cast(pa.int64()).fill_null(-1).to_numpy().astype("<i8")
    if is_text:
        values = "".join(value for value in column.to_pylist() if value is not None).encode()
    else:
        values = pc.list_flatten(column).to_numpy()
        values = values.astype(values.dtype.newbyteorder("<")).tobytes()
    return [xxhash.xxh3_128_hexdigest(part) for part in (lengths.tobytes(), values)]


def hash_content(table: pa.Table) -> str:
    """Return the hash of a table's rows that an export's manifest calls `content`."""
    lines = [" ".join([name, *hash_column(table[name])]) for name in sorted(table.column_names)]
    return xxhash.xxh3_128_hexdigest("".join(line + "\n" for line in lines).encode())


def add_up(maps: Iterable[Values]) -> Values:
    """Return the sum of maps whose values are numbers, lists of four, or such maps again."""
    total: Values = {}
    for key, value in (item for each in maps for item in each.items()):
        if isinstance(value, dict):
            total[key] = add_up([total.get(key, {}), value])
        elif isinstance(value, list):
            total[key] = [sum(pair) for pair in zip(total.get(key, [0] * 4), value, strict=True)]
        else:
            total[key] = total.get(key, 0) + value
    return total


def as_map(values: Iterable[int]) -> dict[str, int]:
    """Return how often each whole number occurs, with the numbers as decimal strings."""
    return {str(value): count for value, count in Counter(values).items()}
