"""docs/format.md is complete: a reader that was written from it alone reads what the jobs write.

The reader (``support/format_reader.py``, ``support/format_checks.py``) was written by somebody who
had not seen the code, and imports nothing of this project. It checks every output against its
manifest; here its documents are compared with those of ``open_shards``, too.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support import format_checks, format_reader
from support.jobs import ROOT, job_here
from support.texts import topics

from pipeline import open_shards

RULES = {
    "global": ("--threshold", 1.5, "--shard-bytes", 30_000, "--keep-columns", "kind", "size"),
    "cut": ("--rule", "monotonic", "--threshold", 0.3, "--max-patch-length", 6),
    "monotonic": ("--rule", "monotonic", "--threshold", 0.3, "--published-rules"),
    "combined": ("--rule", "combined", "--threshold", 1, "--threshold-add", 0.1),
    "published": (
        *("--rule", "combined", "--threshold", 1, "--threshold-add", 0.1, "--published-rules"),
        *("--max-patch-length", 9),
    ),
    "top-k": ("--rule", "top-k", "--patch-size", 4.5),
    "space": (
        "--rule",
        "space",
    ),
    "static": ("--rule", "static", "--patch-size", 4.5),
    "static-published": ("--rule", "static", "--patch-size", 4.5, "--published-rules"),
    "byte": ("--rule", "byte"),
    "no-entropies": ("--threshold", 1.5, "--drop-entropies"),
}
EXPORTS = {
    "parquet": (),
    "datasets": ("--drop-entropies",),
    "threshold": ("--threshold", 2.25),
    "reference": (),
}
PREPARED = {
    "parquet": ("--num-chunks", 3, "--validation-documents", 7, "--keep-columns", "kind"),
    "jsonl": (
        "--num-chunks",
        2,
        "--chunk-format",
        "jsonl",
        "--deduplicate",
        "--validation-documents",
        0,
    ),
    "many": ("--num-chunks", 101, "--validation-documents", 1),
}


def write_input(directory: Path) -> None:
    """Real text, awkward text, and records that cannot be used, in two files."""
    directory.mkdir()
    texts = [text[:4000] for _, text in topics()[:60]]
    texts += [
        "",
        "x",
        "é",
        "line\u2028separator\nand more",
        "日本語のテキスト" * 30,
        texts[3],
        texts[3],
    ]
    kinds = ["a", None, {"b": [1, None]}, 3.5]
    records = [
        {"id": f"d{i}", "text": text, "kind": kinds[i % 4], "size": len(text)}
        for i, text in enumerate(texts)
    ]
    lines = [json.dumps(record) for record in records]
    lines[5:5] = [
        "no json",
        json.dumps({"id": "x", "text": 3}),
        json.dumps({"id": None, "text": ""}),
    ]
    (directory / "a.jsonl").write_text("\n".join(lines[:40]) + "\n")
    (directory / "b.jsonl").write_text("\n".join(lines[40:]))


@pytest.fixture
def run(local_ray, monkeypatch, capsys) -> Callable[..., None]:
    def run(job: str, *flags: object) -> None:
        done = job_here(ROOT / "jobs" / job, monkeypatch, capsys)(*flags)
        assert done.returncode == 0, done.stderr

    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("source") / "in"
    write_input(directory)
    return directory


def patch(run: Callable[..., None], source: Path, rule: str) -> Path:
    """The set of a rule; where another test has made it, the job finds nothing to do."""
    output = source.parent / rule
    # A worker for each file: they need no pool, whose start takes longest.
    flags = ("--entropy-model", "ngram", "--id-column", "id", "--num-workers", 2)
    run("patch_corpus.py", "--input", source, "--output", output, *flags, *RULES[rule])
    return output


@pytest.mark.parametrize("rule", RULES)
def test_shard_sets(run, source, rule):
    output = patch(run, source, rule)
    format_checks.check_shard_set(output)
    shards = open_shards(str(output))
    documents = list(format_reader.read_shard_set(output))
    assert len(documents) == shards.statistics.documents == 67
    for theirs, ours in zip(documents, shards, strict=True):
        assert (theirs.sample_id, theirs.text) == (ours.sample_id, ours.text)
        assert theirs.patches() == ours.patches()
        assert (theirs.entropies is None) == (ours.entropies is None) == (rule == "no-entropies")
        if ours.entropies is not None:
            assert theirs.entropies.tobytes() == ours.entropies.tobytes()
    rejects = [line for lines in format_reader.read_rejects(output).values() for line in lines]
    assert rejects == list(shards.rejects()) and len(rejects) == 3


@pytest.mark.parametrize("kind", PREPARED)
def test_prepared_corpora(run, source, tmp_path, kind):
    output = tmp_path / "prepared"
    flags = ("--id-column", "id", *PREPARED[kind])
    run("prepare_corpus.py", "--input", source, "--output", output, *flags)
    format_checks.check_prepared(output)
    held_out = {"parquet": 7, "jsonl": 0, "many": 1}[kind]
    documents = list(format_reader.read_prepared(output))
    assert len(documents) == 67 - held_out - 3 * (kind == "jsonl")


def test_exports(run, source, tmp_path):
    shards = patch(run, source, "global")
    texts = [document.text for document in open_shards(str(shards))]
    for name, flags in EXPORTS.items():
        layout = "parquet" if name == "threshold" else name
        output = tmp_path / name
        run("export_shards.py", "--shards", shards, "--output", output, "--layout", layout, *flags)
        (manifest,) = output.rglob("manifest.json")
        format_checks.check_export(manifest.parent)
        documents = list(format_reader.read_export(manifest.parent))
        assert [document.text for document in documents] == texts


def test_the_checks_notice(run, source):
    output = patch(run, source, "global")
    for damage in ("shards/*.arrow", "entries/*.json", "summaries/*.json"):
        path = sorted(output.glob(damage))[0]
        data = path.read_bytes()
        path.write_bytes(data.replace(b"1", b"2", 1) if path.suffix == ".json" else data[::-1])
        with pytest.raises((format_reader.FormatError, ValueError)):
            format_checks.check_shard_set(output)
        path.write_bytes(data)
        format_checks.check_shard_set(output)


def test_the_reader_imports_nothing_of_this_project():
    for module in (format_reader, format_checks):
        source = Path(module.__file__).read_text()
        imports = re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE)
        assert imports and not {"model", "pipeline", "train"} & set(imports)
