"""Corpora that come with entropies or patches: the shards are those that patching gives."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import tiny
from support.jobs import contents
from support.texts import topics, write_jsonl

from model import NGramEntropyModel, Patcher
from pipeline.errors import ConfigError
from pipeline.export.config import ExportShardsConfig
from pipeline.export.export_shard import export_shard, plan_export
from pipeline.export.layouts import LAYOUTS
from pipeline.shards.shard_set import ShardSet
from pipeline.shards.verify import verify
from pipeline.storage.output import OutputDirectory

TEXTS = [(name, text[:1500]) for name, text in topics()[:24]] + [("é", "é日本語😀" * 9), ("", "")]
RULES = {
    "global": Patcher(2.0),
    "monotonic": Patcher(0.1, "monotonic", max_patch_length=9),
    "top-k": Patcher(rule="top-k", patch_size=4.5),
    "space": Patcher(rule="space"),
}


def flags_of(patcher: Patcher) -> dict[str, object]:
    values = dict(patcher.to_json())
    del values["published"]
    return values


@pytest.fixture(scope="module")
def patched(tmp_path_factory, ngram_model: NGramEntropyModel) -> Path:
    directory = tmp_path_factory.mktemp("adopt")
    write_jsonl(directory / "in" / "web.chunk.00.jsonl", TEXTS)
    for name, patcher in RULES.items():
        settings = {"id_column": "id", "shard_bytes": 1_500}
        tiny.make_shards(directory / name, directory / "in", ngram_model, patcher, **settings)
    return directory


@pytest.fixture(scope="module")
def reference(patched: Path) -> Path:
    """The reference export of a set, as another program's preprocessing would lie there."""
    shards = ShardSet(str(patched / "global"))
    config = ExportShardsConfig(str(patched / "global"), str(patched / "ref"), format="reference")
    layout, output = LAYOUTS["reference"], OutputDirectory(str(patched / "ref"))
    for piece in plan_export(shards, layout, config):
        export_shard(shards, piece, layout, config, output)
    return patched / "ref"


def rows(shards: Path) -> list[dict]:
    return [row for batch in ShardSet(str(shards)).batches() for row in batch.to_pylist()]


@pytest.mark.parametrize("rule", RULES)
def test_adopted_shards_are_patched_shards(patched, reference, tmp_path, rule):
    settings = {"id_column": "sample_id", "shard_bytes": 1_500}
    adopted = tiny.adopt_shards(tmp_path, reference, **settings, **flags_of(RULES[rule]))
    expected = ShardSet(str(patched / rule))
    # The files are numbered in another way: a shard was a file, and became one.
    assert len(adopted.entries) == len(expected.entries) > 2
    assert len(list(reference.rglob("*.shard_10.arrow"))) == 1  # sorted as numbers are
    for mine, theirs in zip(adopted.entries, expected.entries, strict=True):
        assert mine.sha256 == theirs.sha256
        assert adopted.output.read(mine.summary_path) == expected.output.read(theirs.summary_path)
    assert adopted.statistics.to_json() == expected.statistics.to_json()
    assert list(verify(adopted)) == []
    # Its entropies came from elsewhere.
    assert adopted.entropy_model.fingerprint is None
    assert adopted.manifest["entropy_model"] == {"column": "entropies"}


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.list_(pa.float16()), pa.list_(pa.float32()), pa.list_(pa.float64())),
        *(pa.large_list(pa.float32()), pa.list_view(pa.float32()), "json"),
    ],
    ids=str,
)
def test_entropies_of_all_kinds_of_columns(patched, tmp_path, kind):
    stored = rows(patched / "global")
    ids, texts = ([row[name] for row in stored] for name in ("sample_id", "text"))
    entropies = [list(map(float, row["entropies"])) for row in stored]
    (tmp_path / "in").mkdir()
    if kind == "json":
        lines = zip(ids, texts, entropies, strict=True)
        made = (json.dumps({"id": i, "text": text, "h": h}) + "\n" for i, text, h in lines)
        (tmp_path / "in" / "a.jsonl").write_text("".join(made))
    else:
        table = pa.table({"id": ids, "text": texts, "h": pa.array(entropies, kind)})
        if pa.types.is_list_view(kind):
            with pa.ipc.new_file(str(tmp_path / "in" / "a.arrow"), table.schema) as writer:
                writer.write_table(table, max_chunksize=7)
        else:
            pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=7)
    settings = {"entropies_column": "h", "id_column": "id", "threshold": 2.0}
    tiny.adopt_shards(tmp_path / "out", tmp_path / "in", **settings)
    assert rows(tmp_path / "out") == stored


def test_documents_whose_entropies_do_not_fit_are_rejected(patched, tmp_path):
    stored = rows(patched / "global")
    lists = [list(map(float, row["entropies"])) for row in stored]
    lists[1].append(1.0)
    lists[3][5] = float("nan")
    lists[4][0] = -1.0
    lists[6][2] = 7.5
    lists[8] = None
    lists[9][1] = None
    table = pa.table({"text": [row["text"] for row in stored], "entropies": lists})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    shards = tiny.adopt_shards(tmp_path / "out", tmp_path / "in", threshold=2.0)
    bad = (1, 3, 4, 6, 8, 9)
    left = [row["text"] for i, row in enumerate(stored) if i not in bad]
    assert [document.text for document in shards] == left
    rejects = {int(reject["position"]): reject["reason"] for reject in shards.rejects()}
    assert tuple(rejects) == bad
    assert rejects[3] == rejects[9] == "'entropies' holds NaN" and rejects[8] == (
        "'entropies' is null"
    )
    size = len(stored[1]["text"].encode()) + 2
    tokens = f"the text has {size} tokens (BOS, bytes, EOS)"
    assert rejects[1] == f"'entropies' has {size + 1} values, and {tokens}"
    assert shards.summary is not None
    assert shards.summary.reasons == Counter(
        {
            "'entropies' holds NaN": 2,
            "'entropies' is null": 1,
            "'entropies' holds -….…, which is no entropy": 1,
            "'entropies' has … values, and the text has … tokens (BOS, bytes, EOS)": 1,
            "'entropies' holds ….…, and the entropy of … ids is at most ….… nats (are these "
            "bits?)": 1,
        }
    )


@pytest.mark.parametrize("form", ["tokens", "bytes", "offsets"])
def test_patches_that_the_input_gives(patched, tmp_path, form):
    """Patches of any rule, written in three ways, come back."""
    stored = rows(patched / "monotonic")
    texts, given = [row["text"] for row in stored], []
    for row in stored:
        lengths = np.array(row["patch_lengths"])
        if form != "tokens":
            lengths = lengths[1:]
            lengths[-1] -= 1
            lengths = lengths[lengths > 0]  # a patch of EOS alone cannot be said without it
        given.append((lengths.cumsum() if form == "offsets" else lengths).tolist())
    column = {"tokens": "patch_lengths", "bytes": "sizes", "offsets": "ends"}[form]
    ids, h = ([row[name] for row in stored] for name in ("sample_id", "entropies"))
    table = pa.table({"sample_id": ids, "text": texts, "entropies": h, column: given})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    flag = {"tokens": {}, "bytes": {"patch_lengths_column": column}}
    named = flag.get(form, {"patch_offsets_column": column})
    settings = {"rule": "given", "id_column": "sample_id", **named}
    shards = tiny.adopt_shards(tmp_path / "out", tmp_path / "in", **settings)
    for document, row in zip(shards, stored, strict=True):
        lengths = row["patch_lengths"]
        if form != "tokens" and len(lengths) > 2 and lengths[-1] == 1:
            lengths = [*lengths[:-2], lengths[-2] + 1]
        assert document.patch_lengths.tolist() == lengths
        assert document.entropies.tolist() == row["entropies"]
    assert shards.patcher == Patcher(rule="given")
    assert list(verify(shards)) == []


def test_given_patches_without_entropies_and_with_the_longest(ngram_model, tmp_path):
    """patch_corpus.py reads them, too; what does not fit is rejected."""
    lines = [("hello world", [6, 5]), ("hello world", [6, 6]), ("abc", [1, 5]), ("abc", None)]
    made = [json.dumps({"text": text, "patch_lengths": lengths}) for text, lengths in lines]
    (tmp_path / "a.jsonl").write_text("\n".join(made))
    settings = {"rule": "given", "max_patch_length": 4}
    patcher = Patcher(rule="given", max_patch_length=4)
    shards = tiny.make_shards(
        tmp_path / "out", tmp_path / "a.jsonl", ngram_model, patcher, **settings
    )
    found = [document.patches() for document in shards]
    assert found == [[b"", b"hell", b"o ", b"worl", b"d"]]
    reasons = [reject["reason"] for reject in shards.rejects()]
    assert reasons == [
        "'patch_lengths' sums to 12, and the text has 11 bytes (13 tokens)",
        "'patch_lengths' sums to 6, and the text has 3 bytes (5 tokens)",
        "'patch_lengths' is null",
    ]


def test_a_rerun_does_what_is_left(reference, tmp_path):
    settings = {"threshold": 2.0, "id_column": "sample_id", "shard_bytes": 1_000}
    tiny.adopt_shards(tmp_path / "out", reference, **settings)
    before = contents(tmp_path / "out")
    for entry in sorted((tmp_path / "out" / "entries").iterdir())[1::2]:
        entry.unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    tiny.adopt_shards(tmp_path / "out", reference, **settings)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--threshold: the global rule needs either"),
        ({"threshold": 1.0, "entropies_column": "text"}, "--entropies-column: 'text' is named"),
        ({"threshold": 1.0, "keep_columns": ("entropies",)}, "is in the shards already"),
        ({"threshold": 1.0, "keep_columns": ("a", "a")}, "'a' is in the shards already"),
        ({"threshold": float("inf")}, "^--threshold: must be a finite number"),
        ({"rule": "combined", "threshold": 1.0}, "^--threshold-add: "),
        ({"target_patch_size": 0.49}, "^--target-patch-size: 0.49 bytes is no size"),
        ({"target_patch_size": 10_001}, "^--target-patch-size: 10001 bytes is no size"),
        ({"target_patch_size": 0.5, "num_workers": 0}, "^--num-workers: must be at least 1"),
        ({"target_patch_size": 10_000, "calibration_bytes": 0}, "^--calibration-bytes: must be at"),
        ({"rule": "bpe"}, "--tokenizer: the bpe rule needs one"),
        ({"threshold": 1.0, "tokenizer": "gpt2"}, "--tokenizer: only the bpe rule reads it"),
        ({"threshold": 1.0, "patch_lengths_column": "p"}, "--patch-lengths-column: only the given"),
        (
            {"rule": "given", "patch_lengths_column": "p", "patch_offsets_column": "q"},
            "--patch-offsets-column: give either it or --patch-lengths-column",
        ),
    ],
)
def test_flags_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny.adopt_shards(tmp_path / "out", tmp_path, **settings)
