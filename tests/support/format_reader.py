"""A reader of the outputs that `format.md` describes, written from that page alone.

It reads patch shards, prepared corpora and exports, and checks each against its manifest. A check
raises `FormatError` at the first thing that is not as the page says. Nothing of the package that
wrote the outputs is used, so that a test with this module is a test of the page.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
import zstandard

TYPES = {
    "sample_id": pa.string(),
    "text": pa.string(),
    "entropies": pa.list_(pa.float16()),
    "patch_lengths": pa.list_(pa.int32()),
}
TOKENIZER = {"offset": 4, "bos": 1, "eos": 2, "vocabulary": 260}
LONGEST_COUNTED = 4096
ENTROPY_STEPS = 50  # a nat; the histogram's steps are 0.02 nats
ENTROPY_UNITS = 2**24  # a nat; every float16 that is not negative is a whole number of these


class FormatError(ValueError):
    """An output is not as the page says."""


def expect(what, found, stated):
    """Raise an error unless what was found equals what was stated."""
    if found != stated:
        raise FormatError(f"{what}: found {str(found)[:300]}, stated {str(stated)[:300]}")


# ---- files ----


def read_json(path):
    """Return the value that a JSON file holds."""
    return json.loads(Path(path).read_bytes())


def read_lines(path):
    """Return the objects of a file with one JSON value a line; only a line feed ends a line."""
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line]


def read_manifest(directory, stage=None):
    """Return the manifest of a finished output of the given stage; a shard set has none."""
    manifest = read_json(Path(directory) / "manifest.json")
    expect("stage", manifest.get("stage"), stage)
    if stage != "export":
        expect("format version", manifest["format_version"], 1)
    return manifest


def read_table(path):
    """Return the rows of an Arrow IPC file or of a Parquet file."""
    path = Path(path)
    if path.suffix == ".parquet":
        return pq.read_table(path, use_threads=False)
    expect(f"beginning of {path.name}", path.read_bytes()[:6], b"ARROW1")
    with pa.ipc.open_file(path) as reader:
        return reader.read_all()


def check_file(path, size, sha256):
    """Check a file's size and SHA-256."""
    content = Path(path).read_bytes()
    expect(f"size of {path}", len(content), size)
    expect(f"SHA-256 of {path}", hashlib.sha256(content).hexdigest(), sha256)


def read_rejects(directory):
    """Return the rejected records of a shard set or a prepared corpus by the name of their file."""
    paths = sorted(Path(directory, "rejects").glob("*.jsonl"))
    return {path.stem: read_lines(path) for path in paths}


# ---- documents and patches ----


@dataclass
class Document:
    """One row: arrays are NumPy's, and None stands for a column that the file does not have."""

    sample_id: str
    text: str
    entropies: np.ndarray | None = None
    patch_lengths: np.ndarray | None = None
    metadata: dict = field(default_factory=dict)

    @property
    def bytes(self):
        """The text as UTF-8."""
        return self.text.encode()

    def patches(self):
        """Return the bytes of each patch; BOS and EOS have none."""
        content, ends = self.bytes, np.cumsum(self.patch_lengths).tolist()
        return [content[max(start - 1, 0) : end - 1] for start, end in pairwise([0, *ends])]


def make_documents(table):
    """Return the documents of a table."""
    rows = table.drop_columns(TYPES.keys() & {*table.column_names} - {"sample_id", "text"})
    documents = [
        Document(row.pop("sample_id"), row.pop("text"), metadata=row) for row in rows.to_pylist()
    ]
    for name in ("entropies", "patch_lengths"):
        if name in table.column_names:
            for document, value in zip(documents, table[name], strict=True):
                setattr(document, name, value.values.to_numpy(zero_copy_only=False))
    return documents


def read_documents(path):
    """Return the documents of an Arrow IPC file, of a Parquet file, or of a JSONL file."""
    if Path(path).suffix != ".jsonl":
        return make_documents(read_table(path))
    return [
        Document(row.pop("sample_id"), row.pop("text"), metadata=row) for row in read_lines(path)
    ]


def read_shard_set(directory):
    """Yield the documents of a shard set in order."""
    for entry in read_manifest(directory)["shards"]:
        if entry["sha256"] is not None:
            yield from read_documents(Path(directory) / "shards" / f"{entry['name']}.arrow")


def cut_patches(lengths, longest):
    """Return the lengths of patches of which the longer ones were cut into pieces and a rest."""
    if longest is None:
        return lengths
    pieces = [divmod(length, longest) for length in lengths]
    return [piece for full, rest in pieces for piece in [longest] * full + [rest] * (rest > 0)]


def find_patches(entropies, patcher):
    """Return the patch lengths that a rule gives, or None if the page does not say how.

    The rule `global` is told by the page; `monotonic` was found from shards.
    """
    if patcher["rule"] not in ("global", "monotonic") or patcher["published"]:
        return None
    values = entropies.astype(np.float32)
    if patcher["rule"] == "monotonic":
        values = np.diff(values, prepend=np.float32(0))
    decided = 2 + np.flatnonzero(values[1:-1] > np.float32(patcher["threshold"]))
    starts = [0, 1, *decided.tolist(), len(values)]
    return cut_patches(np.diff(starts).tolist(), patcher.get("max_patch_length"))


# ---- statistics and summaries of shards ----


def add_up(maps):
    """Return the sum of maps whose values are numbers, lists of four, or such maps again."""
    total = {}
    for key, value in (item for each in maps for item in each.items()):
        if isinstance(value, dict):
            total[key] = add_up([total.get(key, {}), value])
        elif isinstance(value, list):
            total[key] = [sum(pair) for pair in zip(total.get(key, [0] * 4), value, strict=True)]
        else:
            total[key] = total.get(key, 0) + value
    return total


def as_map(values):
    """Return how often each whole number occurs, with the numbers as decimal strings."""
    return {str(value): count for value, count in Counter(values).items()}


def count_statistics(documents):
    """Return what an entry's `statistics` should say of these documents."""
    lengths = [length for each in documents for length in each.patch_lengths.tolist()]
    entropies = [each.entropies.astype(float) for each in documents if each.entropies is not None]
    steps = np.floor(np.concatenate([*entropies, []]) * ENTROPY_STEPS).astype(int).tolist()
    return {
        "documents": len(documents),
        "bytes": sum(len(each.bytes) for each in documents),
        "tokens": sum(len(each.bytes) + 2 for each in documents),
        "patches": len(lengths),
        "patch_lengths": as_map(min(length, LONGEST_COUNTED) for length in lengths),
        "entropies": as_map(steps),
    }


def count_group(documents):
    """Return the four numbers that a summary has of a group of documents."""
    units = sum(
        int((each.entropies.astype(float) * ENTROPY_UNITS).sum())
        for each in documents
        if each.entropies is not None
    )
    numbers = count_statistics(documents)
    return [numbers["documents"], numbers["bytes"], numbers["patches"], units]


def read_thresholds(thresholds):
    """Return the float16 values of a summary's threshold curve, rising, and their counts."""
    packed = (
        zstandard.ZstdDecompressor()
        .decompressobj()
        .decompress(base64.b64decode(thresholds["counts"]))
    )
    counts = np.frombuffer(packed, f"<u{thresholds['size']}").astype(np.int64)
    places = thresholds["first"] + np.arange(len(counts))
    bits = np.where(places >= 32768, places - 32768, 65535 - places)
    return bits.astype(np.uint16).view(np.float16), counts


def count_patches(thresholds, threshold):
    """Return how many patches a threshold gives by the curve, before any are cut."""
    values, counts = read_thresholds(thresholds)
    above = values.astype(np.float32) > np.float32(threshold)
    return thresholds["always"] + int(counts[above].sum())


def check_thresholds(thresholds, documents, patcher):
    """Check a shard's threshold curve against the boundaries that thresholds give, uncut."""
    expect("bytes of thresholds", thresholds["bytes"], sum(len(each.bytes) for each in documents))
    # Only the rule `global` compares float16 values; other curves are exact at such thresholds.
    chosen = [patcher["threshold"]] if patcher["rule"] == "global" else []
    for threshold in [*chosen, 0.125, 0.5, 1.0, 2.0]:
        rule = patcher | {"threshold": threshold, "max_patch_length": None}
        found = [
            find_patches(each.entropies, rule) for each in documents if each.entropies is not None
        ]
        if None not in found:
            expect(
                f"patches at threshold {threshold}",
                count_patches(thresholds, threshold),
                sum(map(len, found)),
            )


def check_summary(summary, documents, rejects, patcher):
    """Check one shard's summary against its documents and rejects."""
    for name, groups in {"scripts": summary["scripts"], **summary["columns"]}.items():
        expect(
            f"sum of {name}",
            add_up({"": numbers} for numbers in groups.values()),
            {"": count_group(documents)} if documents else {},
        )
    for column, groups in summary["columns"].items():
        for value in groups.keys() - {"(none)", "(others)"}:
            group = [each for each in documents if each.metadata[column] == value]
            expect(f"{column} = {value}", groups[value], count_group(group))
    reasons = Counter(re.sub(r"\d+", "…", reject["reason"]) for reject in rejects)
    expect("reasons", summary["reasons"], dict(reasons))
    check_thresholds(summary["thresholds"], documents, patcher)


def check_sum_of_summaries(summary, parts):
    """Check that the manifest's summary is the sum of the shards' summaries."""
    for key in ("scripts", "columns", "reasons"):
        expect(f"sum of {key}", add_up(part[key] for part in parts), summary[key])
    for threshold in np.linspace(-5, 5, 101):
        expect(
            f"patches at {threshold}",
            count_patches(summary["thresholds"], threshold),
            sum(count_patches(part["thresholds"], threshold) for part in parts),
        )


def check_document(document, patcher):
    """Check one document's arrays and recompute its patches where the page says how."""
    tokens, lengths = len(document.bytes) + 2, document.patch_lengths.tolist()
    expect(f"sum of {document.sample_id}'s patches", sum(lengths), tokens)
    expect(f"shortest patch of {document.sample_id}", min(lengths) > 0, True)
    expect(f"bytes of {document.sample_id}", b"".join(document.patches()), document.bytes)
    if document.entropies is not None:
        expect(f"entropies of {document.sample_id}", len(document.entropies), tokens)
        found = find_patches(document.entropies, patcher)
        if found is not None:
            expect(f"patches of {document.sample_id}", lengths, found)


def read_checked_shard(directory, entry, columns):
    """Return the documents of one shard after checks of its file and of its columns."""
    if entry["sha256"] is None:
        return []
    path = Path(directory) / "shards" / f"{entry['name']}.arrow"
    check_file(path, entry["shard_bytes"], entry["sha256"])
    table = read_table(path)
    expect(
        f"columns of {path}",
        dict(zip(table.column_names, table.schema.types, strict=True)),
        {name: TYPES.get(name, pa.string()) for name in columns},
    )
    expect(f"order of columns of {path}", table.column_names, columns)
    nulls = [table[name].null_count for name in TYPES.keys() & {*columns}]
    expect(f"nulls of {path}", sum(nulls), 0)
    return make_documents(table)


def check_shard(directory, entry, manifest, rejects):
    """Check one shard's files against its entry in the manifest."""
    name, patcher = entry["name"], manifest["patcher"]
    documents = read_checked_shard(directory, entry, manifest["columns"])
    for document in documents:
        check_document(document, patcher)
    expect(f"statistics of {name}", count_statistics(documents), entry["statistics"])
    expect(f"records of {name}", len(documents) + len(rejects), entry["records"])
    expect(f"rejects of {name}", len(rejects), entry["rejects"])
    expect(f"entry of {name}", read_json(Path(directory) / "entries" / f"{name}.json"), entry)
    if manifest.get("summary") is not None:
        summary = read_json(Path(directory) / "summaries" / f"{name}.json")
        check_summary(summary, documents, rejects, patcher)


def check_shard_set(directory):
    """Check a whole shard set against its manifest."""
    manifest, rejects = read_manifest(directory), read_rejects(directory)
    expect("tokenizer", manifest["tokenizer"], TOKENIZER)
    entries = manifest["shards"]
    names = [entry["name"] for entry in entries]
    expect("order of shards", names, sorted(names))
    expect("shards with rejects", list(rejects), [x["name"] for x in entries if x["rejects"]])
    for entry in entries:
        expect("source", manifest["sources"][int(entry["name"][:6])]["name"], entry["source"])
        check_shard(directory, entry, manifest, rejects.get(entry["name"], []))
    expect("statistics", manifest["statistics"], add_up(x["statistics"] for x in entries))
    if manifest.get("summary") is not None:
        parts = [read_json(Path(directory) / "summaries" / f"{name}.json") for name in names]
        check_sum_of_summaries(manifest["summary"], parts)


# ---- prepared corpora ----


def read_prepared(directory):
    """Yield the documents of a prepared corpus's chunks, in order."""
    for chunk in read_manifest(directory, "prepare")["chunks"]:
        yield from read_documents(Path(directory) / chunk["name"])


def count_texts(texts):
    """Return the statistics that a prepared corpus has of some texts, given as bytes."""
    sizes = [len(text) for text in texts]
    return {
        "documents": len(texts),
        "bytes": sum(sizes),
        "longest": max(sizes, default=0),
        "lengths": as_map(((size + 1) ** 8).bit_length() - 1 for size in sizes),
        "digest": f"{sum(map(xxhash.xxh3_128_intdigest, texts)) % 2**128:032x}",
    }


def add_texts(parts):
    """Return the statistics of several collections of texts together."""
    parts = [count_texts([]), *parts]
    counted = [{key: part[key] for key in ("documents", "bytes", "lengths")} for part in parts]
    digest = sum(int(part["digest"], 16) for part in parts) % 2**128
    longest = max(part["longest"] for part in parts)
    return add_up(counted) | {"longest": longest, "digest": f"{digest:032x}"}


def check_prepared(directory):
    """Check a prepared corpus against its manifest."""
    manifest = read_manifest(directory, "prepare")
    corpus = manifest["configuration"]["name"]
    for number, chunk in enumerate(manifest["chunks"]):
        expect("name of a chunk", Path(chunk["name"]).stem, f"{corpus}.chunk.{number:02d}")
    files = manifest["chunks"] + [manifest["validation"]] * (manifest["validation"] is not None)
    for each in files:
        check_file(Path(directory) / each["name"], each["file_bytes"], each["sha256"])
        documents = read_documents(Path(directory) / each["name"])
        names = {name for document in documents for name in document.metadata}
        unknown = names - {*manifest["columns"]["metadata"]}
        expect(f"metadata in {each['name']} that was not asked for", unknown, set())
        expect(
            f"statistics of {each['name']}",
            count_texts([x.bytes for x in documents]),
            each["documents"],
        )
    written = add_texts(each["documents"] for each in files)
    left_out = add_texts(each["duplicates"] for each in files)
    read = add_texts(each["documents"] for each in manifest["sources"])
    expect("statistics", written, manifest["statistics"])
    expect("chunks, validation and duplicates", add_texts([written, left_out]), read)
    rejects = sum(each["rejects"] for each in manifest["sources"])
    expect("rejects", sum(map(len, read_rejects(directory).values())), rejects)
    held_out = manifest["validation"]["documents"]["documents"] if manifest["validation"] else 0
    expect(
        "counts",
        manifest["counts"],
        {
            "records": read["documents"] + rejects,
            "rejects": rejects,
            "duplicates": left_out["documents"],
            "validation": held_out,
            "chunks": written["documents"] - held_out,
        },
    )


# ---- exports ----


def hash_column(column):
    """Return the hashes of a column's lengths and of its values, both in hexadecimal."""
    is_text = pa.types.is_string(column.type)
    lengths = (pc.binary_length if is_text else pc.list_value_length)(column)
    lengths = lengths.cast(pa.int64()).fill_null(-1).to_numpy().astype("<i8")
    if is_text:
        values = "".join(value for value in column.to_pylist() if value is not None).encode()
    else:
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes()
    return [xxhash.xxh3_128_hexdigest(part) for part in (lengths.tobytes(), values)]


def hash_content(table):
    """Return the hash of a table's rows that an export's manifest calls `content`."""
    lines = [" ".join([name, *hash_column(table[name])]) for name in sorted(table.column_names)]
    return xxhash.xxh3_128_hexdigest("".join(line + "\n" for line in lines).encode())


def read_export(directory):
    """Yield the documents of an export in order; `directory` is the one with the manifest."""
    for each in read_manifest(directory, "export")["files"]:
        yield from read_documents(Path(directory) / each["path"])


def check_exported_file(path, each, manifest):
    """Check one file of an export against what the manifest says of it."""
    check_file(path, each["bytes"], each["sha256"])
    table = read_table(path)
    expect(f"rows of {path}", table.num_rows, each["rows"])
    expect(f"content of {path}", hash_content(table), each["content"])
    documents = make_documents(table)
    if manifest["format"] == "reference":
        expect(f"columns of {path}", table.column_names, [*TYPES][:3])
        expect(f"nullable in {path}", any(column.nullable for column in table.schema), False)
        expect(f"marker of {path}", Path(f"{path}.complete").read_bytes(), b"")
        for document in documents:  # patches are counted, but not written
            lengths = find_patches(document.entropies, manifest["patcher"])
            document.patch_lengths = None if lengths is None else np.array(lengths)
    if all(document.patch_lengths is not None for document in documents):
        for document in documents:
            check_document(document, manifest["patcher"])
        found = count_statistics(documents)
        if "entropies" not in table.column_names:  # the page does not say what is stated then
            found["entropies"] = each["statistics"]["entropies"]
        expect(f"statistics of {path}", found, each["statistics"])


def check_export(directory):
    """Check an export against its manifest; `directory` is the one with the manifest."""
    manifest = read_manifest(directory, "export")
    files = manifest["files"]
    names = [each["name"] for each in files]
    expect("order of files", names, sorted(names))
    for each in files:
        check_exported_file(Path(directory) / each["path"], each, manifest)
    expect("statistics", manifest["statistics"], add_up(each["statistics"] for each in files))
