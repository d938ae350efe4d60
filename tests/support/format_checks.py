"""Checks of outputs against the page on file formats; the first fault raises `FormatError`."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from support.format_reader import (
    FIXED_COLUMNS,
    Document,
    Values,
    add_up,
    as_map,
    check_itself,
    count_patches,
    expect,
    find_patches,
    find_threshold_values,
    hash_content,
    join_entropies,
    make_documents,
    read_documents,
    read_json,
    read_manifest,
    read_part,
    read_rejects,
    read_shards,
    read_table,
    read_thresholds,
)

TOKENIZER = {"offset": 4, "bos": 1, "eos": 2, "vocabulary": 260}
EXCERPTS = 5
NO_BATCHES: Values = {"rows": []}
PATHS = {
    "parquet": r"data/{name}\.parquet",
    "reference": r".+\.chunk\.\d\d+\.jsonl\.shard_\d+\.arrow",
    "datasets": r"data/train-{number:05d}-of-{total:05d}\.parquet",
}


def check_file(path: Path, size: int, sha256: str) -> None:
    """Check a file's size and SHA-256, and the compression of Parquet."""
    content = path.read_bytes()
    expect(f"size of {path}", len(content), size)
    expect(f"SHA-256 of {path}", hashlib.sha256(content).hexdigest(), sha256)
    if path.suffix == ".parquet":
        groups = pq.read_metadata(path).to_dict()["row_groups"]
        used = {column["compression"] for group in groups for column in group["columns"]}
        expect(f"compression of {path}", used - {"ZSTD"}, set())


def check_document(document: Document, patcher: Values) -> None:
    """Check one document's arrays and compute its patches anew."""
    name, lengths = document.sample_id, document.patch_lengths.tolist()
    expect(f"sum of {name}'s patches", sum(lengths), document.tokens)
    expect(f"whether {name}'s patches hold tokens", min(lengths) > 0, True)
    expect(f"bytes of {name}", b"".join(document.patches()), document.content)
    if document.entropies is not None:
        expect(f"entropies of {name}", len(document.entropies), document.tokens)
    expect(f"patches of {name}", lengths, find_patches(document, patcher) or lengths)


def check_statistics(what: str, documents: list[Document], stated: Values) -> None:
    """Check the statistics of some documents; entropies that are not there only by number."""
    lengths = [length for each in documents for length in each.patch_lengths.tolist()]
    entropies = join_entropies(documents)
    steps = None if entropies is None else np.floor(entropies * 50).astype(int).tolist()
    found = {
        "documents": len(documents),
        "bytes": sum(len(each.content) for each in documents),
        "tokens": sum(each.tokens for each in documents),
        "patches": len(lengths),
        "patch_lengths": as_map(min(length, 4096) for length in lengths),
        "entropies": stated["entropies"] if steps is None else as_map(steps),
    }
    expect(f"statistics of {what}", found, stated)
    counted = sum(stated["entropies"].values())
    expect(f"number of entropies of {what}", counted, found["tokens"] if counted else 0)


def check_group(what: str, documents: list[Document], stated: list[int]) -> None:
    """Check the four numbers that a summary has of a group of documents."""
    sizes = sum(len(each.content) for each in documents)
    found = [len(documents), sizes, sum(len(each.patch_lengths) for each in documents), stated[3]]
    entropies = join_entropies(documents)
    if entropies is not None:
        found[3] = int((entropies * 2**24).astype(np.int64).sum())
    expect(f"group {what}", found, stated)


def check_thresholds(thresholds: Values, documents: list[Document], patcher: Values) -> None:
    """Check a shard's threshold curve; without entropies only at the threshold of the shards."""
    expect("bytes of thresholds", thresholds["bytes"], sum(len(x.content) for x in documents))
    values, counts = read_thresholds(thresholds)
    if join_entropies(documents) is not None:
        found = np.concatenate([[], *(find_threshold_values(x, patcher) for x in documents)])
        always = int((found == np.inf).sum()) + 2 * len(documents)
        expect("patches that every threshold gives", thresholds["always"], always)
        found = found[np.isfinite(found)]
        near = found.astype(np.float16)
        above = np.where(near < found, np.nextafter(near, np.float16(np.inf)), near)
        curve = {value: n for value, n in zip(values.tolist(), counts.tolist(), strict=True) if n}
        expect("curve", curve, dict(Counter(above.tolist())))
    if patcher["rule"] in ("global", "combined") and not patcher.get("max_patch_length"):
        patches = sum(len(each.patch_lengths) for each in documents)
        expect("patches", count_patches(thresholds, patcher["threshold"]), patches)


def check_summary(
    summary: Values, documents: list[Document], rejects: list[dict[str, str]], patcher: Values
) -> None:
    """Check one shard's summary against its documents and rejects."""
    for name, groups in {"scripts": summary["scripts"], **summary["columns"]}.items():
        total = add_up([{"": [0] * 4}, *({"": numbers} for numbers in groups.values())])
        check_group(name, documents, total[""])
        for value in groups.keys() - {"(others)"} if name in summary["columns"] else ():
            wanted = None if value == "(none)" else value
            check_group(value, [x for x in documents if x.metadata[name] == wanted], groups[value])
    largest = sorted((max(map(len, each.patches())) for each in documents), reverse=True)
    expect("longest", [excerpt["measure"] for excerpt in summary["longest"]], largest[:EXCERPTS])
    reasons = Counter(re.sub(r"\d+", "…", reject["reason"]) for reject in rejects)
    expect("reasons", summary["reasons"], dict(reasons))
    check_thresholds(summary["thresholds"], documents, patcher)


def check_sum_of_summaries(summary: Values, parts: list[Values]) -> None:
    """Check that the manifest's summary is the sum of the shards' summaries."""
    for key in ("scripts", "columns", "reasons"):
        expect(f"sum of {key}", add_up(part[key] for part in parts), summary[key])
    for key, sign in (("longest", -1), ("shortest", 1)):
        excerpts = [excerpt for part in parts for excerpt in part[key]]
        excerpts.sort(key=lambda excerpt, sign=sign: sign * excerpt["measure"])
        expect(f"sum of {key}", excerpts[:EXCERPTS], summary[key])
    for threshold in np.linspace(-5, 5, 101):
        found = sum(count_patches(part["thresholds"], threshold) for part in parts)
        expect(f"patches at {threshold}", found, count_patches(summary["thresholds"], threshold))


def check_shard(directory: Path, entry: Values, manifest: Values, rejects: list) -> None:
    """Check one shard's files against its entry in the manifest."""
    name, patcher = entry["name"], manifest["patcher"]
    path, documents = directory / "shards" / f"{name}.arrow", []
    expect(f"whether {path} exists", path.exists(), entry["sha256"] is not None)
    if path.exists():
        check_file(path, entry["shard_bytes"], entry["sha256"])
        table = read_table(path)
        types = [(name, FIXED_COLUMNS.get(name, pa.string())) for name in manifest["columns"]]
        expect(f"columns of {path}", [(x.name, x.type) for x in table.schema], types)
        fixed = [table[column] for column in table.column_names if column in FIXED_COLUMNS]
        fixed += [pc.list_flatten(each) for each in fixed if pa.types.is_list(each.type)]
        expect(f"nulls of {path}", sum(each.null_count for each in fixed), 0)
        documents = make_documents(table)
    for document in documents:
        check_document(document, patcher)
    check_statistics(name, documents, entry["statistics"])
    check_batches(path, entry, documents)
    counts = [entry["rejects"], entry["records"]]
    expect(f"records of {name}", [len(rejects), len(documents) + len(rejects)], counts)
    if manifest.get("summary") is not None:
        summary = read_json(directory / "summaries" / f"{name}.json")
        check_summary(summary, documents, rejects, patcher)


def check_batches(path: Path, entry: Values, documents: list[Document]) -> None:
    """Check what is stated of each record batch of a shard, of which the documents are known."""
    rows, columns = 0, None
    for place in zip(*(entry["batches"] or NO_BATCHES).values(), strict=True):
        stated = dict(zip(entry["batches"], place, strict=True))
        columns = columns or read_table(path).schema
        read_part(path, columns, tuple(stated[x] for x in ("offset", "length", "rows", "hash")))
        part = documents[rows : rows + stated["rows"]]
        expect(f"tokens in a batch of {path}", sum(each.tokens for each in part), stated["tokens"])
        rows += stated["rows"]
    expect(f"rows of {path}", rows, len(documents))


def read_entry(directory: Path, row: Values) -> Values:
    """Return the entry of a shard, whose hash is right and which says what the set's row says."""
    data = (directory / "entries" / f"{row['name']}.json").read_bytes()
    entry = json.loads(data)
    check_itself(row["name"], data, entry)
    counts, batches = entry["statistics"], entry["batches"]
    histogram = counts["entropies"].items()
    entropy = sum((int(k) + 0.5) * n for k, n in histogram) * 0.02 * 2**24
    expect(f"entropy of {row['name']}", abs(row["entropy"] - entropy) < 1, True)
    found = {key: counts[key] if key in counts else entry.get(key) for key in row}
    found |= {key: row[key] for key in ("entropy", "places")}
    expect(f"row of {row['name']}", found | {"batches": len((batches or NO_BATCHES)["rows"])}, row)
    for i, place in enumerate(row["places"]):
        stated = {key: values[i] for key, values in batches.items()}
        expect(f"a batch of {row['name']}", place | {"hash": f"{place['hash']:016x}"}, stated)
    return entry


def check_shard_set(directory: Path | str) -> None:
    """Check a whole shard set against its manifest."""
    directory, manifest = Path(directory), read_manifest(directory)
    rejects = read_rejects(directory)
    entries = [read_entry(directory, row) for row in read_shards(directory)]
    names = [entry["name"] for entry in entries]
    expect("tokenizer", manifest["tokenizer"], TOKENIZER)
    expect("order of shards", names, sorted(names))
    expect("shards with rejects", list(rejects), [x["name"] for x in entries if x["rejects"]])
    for entry in entries:
        expect("source", manifest["sources"][int(entry["name"][:6])]["name"], entry["source"])
        check_shard(directory, entry, manifest, rejects.get(entry["name"], []))
    expect("statistics", manifest["statistics"], add_up(x["statistics"] for x in entries))
    if manifest.get("summary") is not None:
        parts = [read_json(directory / "summaries" / f"{name}.json") for name in names]
        check_sum_of_summaries(manifest["summary"], parts)


def count_texts(texts: list[bytes]) -> Values:
    """Return the statistics that a prepared corpus has of some texts."""
    lengths = as_map(((len(text) + 1) ** 8).bit_length() - 1 for text in texts)
    digest = f"{sum(map(xxhash.xxh3_128_intdigest, texts)) % 2**128:032x}"
    found = {"documents": len(texts), "bytes": sum(map(len, texts)), "lengths": lengths}
    return found | {"longest": max(map(len, texts), default=0), "digest": digest}


def check_prepared(directory: Path | str) -> None:
    """Check a prepared corpus against its manifest."""
    directory, manifest = Path(directory), read_manifest(directory, "prepare")
    settings, counts, chunks = (manifest[x] for x in ("configuration", "counts", "chunks"))
    digits = max(2, len(str(len(chunks) - 1)))
    stems = [f"{settings['name']}.chunk.{number:0{digits}d}" for number in range(len(chunks))]
    expect("names of chunks", [Path(each["name"]).stem for each in chunks], stems)
    validation = [manifest["validation"]] if manifest["validation"] else []
    metadata, texts = manifest["columns"]["metadata"], []
    fields = [(name, pa.string(), True) for name in ["sample_id", "text", *metadata]]
    for each in validation + chunks:
        path = directory / each["name"]
        check_file(path, each["file_bytes"], each["sha256"])
        if path.suffix == ".parquet":
            found = [(x.name, x.type, x.nullable) for x in pq.read_schema(path)]
            expect(f"schema of {path}", found, fields)
        documents = read_documents(path)
        found = [x for x in documents if [*x.metadata] != metadata]
        expect(f"rows of {path} with other metadata", found, [])
        expect(f"texts in {path}", count_texts([x.content for x in documents]), each["documents"])
        texts += [document.content for document in documents]
    expect("statistics", count_texts(texts), manifest["statistics"])
    sources = [source["documents"] for source in manifest["sources"]]
    read = add_up({k: x[k] for k in ("documents", "bytes", "lengths")} for x in sources)
    digest = f"{sum(int(each['digest'], 16) for each in sources) % 2**128:032x}"
    read |= {"longest": max(each["longest"] for each in sources), "digest": digest}
    if settings["deduplicate"]:
        expect("number of texts", len({*texts}), len(texts))
    else:
        expect("sum over the sources", read, manifest["statistics"])
    rejects = sum(map(len, read_rejects(directory).values()))
    expect("rejects", rejects, sum(each["rejects"] for each in manifest["sources"]))
    held_out = sum(each["documents"]["documents"] for each in validation)
    expected = {"records": read["documents"] + rejects, "rejects": rejects}
    expected |= {"duplicates": read["documents"] - len(texts), "validation": held_out}
    expect("counts", counts, expected | {"chunks": len(texts) - held_out})


def check_exported_file(path: Path, each: Values, manifest: Values) -> list[Document]:
    """Check one file of an export against what the manifest says of it; return its documents."""
    check_file(path, each["bytes"], each["sha256"])
    table = read_table(path)
    found = [table.num_rows, hash_content(table)]
    expect(f"rows and content of {path}", found, [each["rows"], each["content"]])
    documents = make_documents(table)
    if manifest["format"] == "reference":  # patches are counted, but not written
        types = [(name, FIXED_COLUMNS[name], False) for name in [*FIXED_COLUMNS][:3]]
        expect(f"columns of {path}", [(x.name, x.type, x.nullable) for x in table.schema], types)
        expect(f"marker of {path}", Path(f"{path}.complete").read_bytes(), b"")
        chunk = Path(str(path).rpartition(".shard_")[0])
        expect(f"chunk of {path}", chunk.read_bytes(), b"")
        for document in documents:
            document.patch_lengths = np.array(find_patches(document, manifest["patcher"]))
    for document in documents:
        check_document(document, manifest["patcher"])
    counts = {
        "documents": len(documents),
        "bytes": sum(len(document.content) for document in documents),
        "tokens": sum(document.tokens for document in documents),
        "patches": sum(len(document.patch_lengths) for document in documents),
    }
    maps: Values = {"patch_lengths": {}, "entropies": {}}
    expect(f"statistics of {path}", counts | maps, each["statistics"])
    return documents


def check_export(directory: Path | str) -> None:
    """Check an export against its manifest, which lies in the directory."""
    manifest = read_manifest(directory, "export")
    files, names = manifest["files"], [each["name"] for each in manifest["files"]]
    expect("tokenizer", manifest["tokenizer"], TOKENIZER)
    expect("order of files", names, sorted(names))
    documents: list[Document] = []
    for number, each in enumerate(files):
        pattern = PATHS.get(manifest["format"], PATHS["datasets"])
        pattern = pattern.format(name=each["name"], number=number, total=len(files))
        expect(f"pattern of {each['path']}", bool(re.fullmatch(pattern, each["path"])), True)
        documents += check_exported_file(Path(directory) / each["path"], each, manifest)
    check_statistics("the export", documents, manifest["statistics"])
