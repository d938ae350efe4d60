"""Exports as a user makes them: read back by others, resumed, verified, refused."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard
from support import tiny
from support.jobs import ROOT, edit_json, files_below, job_here
from support.published_loader import documents_of_rank
from support.texts import topics

from model import NGramEntropyModel, Patcher
from pipeline.export.layouts import LAYOUTS, Layout
from pipeline.export.provenance import without_places
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory

JOB = ROOT / "jobs" / "export_shards.py"
RULE = Patcher(1.0)
HOSTILE = "<script>|x|</script>[a](javascript:b)`"


@pytest.fixture
def run(local_ray, monkeypatch, capsys):
    return job_here(JOB, monkeypatch, capsys)


def write_inputs(directory: Path) -> None:
    """Two chunks, the first of several shards, with a column that may be null."""
    texts = [(name, text[:2500]) for name, text in topics()[:24]]
    odd = [("empty", ""), ("é", "é日本語😀" * 50), (HOSTILE, HOSTILE)]
    directory.mkdir(parents=True)
    for i, part in enumerate((texts[:15] + odd, texts[15:])):
        rows = [
            {"id": name, "text": text, "site": None if j % 3 else f"site {j} é"}
            for j, (name, text) in enumerate(part)
        ]
        path = directory / f"web.chunk.{i:02d}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("export")
    write_inputs(directory / "in")
    texts = [text[:2500].encode() for _, text in topics()[:24]]
    from model.tokenizer import encode_documents

    model = NGramEntropyModel.fit([encode_documents(texts)])
    settings = {"id_column": "id", "keep_columns": ("site",)}
    small = {**settings, "shard_bytes": 12_000}
    tiny.make_shards(directory / "set", directory / "in", model, RULE, **small)
    tiny.make_shards(
        directory / "thin", directory / "in", model, RULE, drop_entropies=True, **small
    )
    tiny.make_shards(directory / "space", directory / "in", model, Patcher(rule="space"), **small)
    (directory / "none").mkdir()
    (directory / "none" / "a.jsonl").write_text("")
    tiny.make_shards(directory / "bare", directory / "none", model, RULE, **small)
    return directory


@pytest.fixture
def shards(made, tmp_path) -> Path:
    """A set of one's own, to damage."""
    shutil.copytree(made / "set", tmp_path / "set")
    return tmp_path / "set"


def rows_of(shards: Path) -> list[dict]:
    return [row for batch in ShardSet(str(shards)).batches() for row in batch.to_pylist()]


def test_parquet_is_read_by_pyarrow(run, made, tmp_path):
    done = run("--shards", made / "set", "--output", tmp_path, "--layout", "parquet", "--verify")
    assert done.returncode == 0, done.stderr
    paths = sorted((tmp_path / "data").iterdir())
    assert len(paths) > 3
    names = [entry.name for entry in ShardSet(str(made / "set")).entries]
    assert [path.stem for path in paths] == names
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    assert table.schema.field("entropies").type == pa.list_(pa.float16())
    assert table.to_pylist() == rows_of(made / "set")


def test_datasets_loads_it(run, made, tmp_path):
    out = tmp_path / "out"
    done = run("--shards", made / "set", "--output", out, "--layout", "datasets", "--json")
    result = json.loads(done.stdout)
    assert result["complete"] and result["files"] == result["exported"] > 3
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features["entropies"].feature.dtype == "float16"
    assert loaded.to_list() == rows_of(made / "set")
    card = DatasetCard.load(out / "README.md")
    assert card.data.to_dict()["dataset_info"]["splits"][0]["num_examples"] == len(loaded)
    # What it calls the size of a dataset: that of its rows as Arrow.
    sizes = card.data.to_dict()["dataset_info"]
    assert sizes["download_size"] == result["bytes"]
    assert sizes["dataset_size"] == pytest.approx(loaded.data.nbytes, rel=0.1)
    statistics = ShardSet(str(made / "set")).statistics
    assert f"| mean bytes per patch | {statistics.mean_patch_bytes:.3f} |" in card.text
    assert (out / "pictures" / "threshold.png").read_bytes()[:4] == b"\x89PNG"


def published_loader(directory: Path, corpus: str, model: str) -> Iterator[tuple[str, list, list]]:
    """Documents of all chunks, shard by shard: those of as many ranks as there are chunks."""
    source = directory / corpus / model
    chunks = len(list(source.glob("*.chunk.*.jsonl")))
    for rank in range(chunks):
        for row in documents_of_rank(source, directory, model, rank, chunks):
            tokens = [1, *(byte + 4 for byte in row["text"].encode()), 2]
            yield row["sample_id"], tokens, row["entropies"]


def test_the_published_layout_is_read_as_it_is_described(run, made, tmp_path):
    flags = ("--entropy-model-name", "transformer_100m", "--verify")
    done = run("--shards", made / "set", "--output", tmp_path, "--layout", "reference", *flags)
    assert done.returncode == 0, done.stderr
    found = list(published_loader(tmp_path, "web", "transformer_100m"))
    expected = rows_of(made / "set")
    assert [sample_id for sample_id, _, _ in found] == [row["sample_id"] for row in expected]
    for (_, tokens, entropies), row in zip(found, expected, strict=True):
        assert len(tokens) == len(entropies) and entropies == row["entropies"]
        assert bytes(token - 4 for token in tokens[1:-1]).decode() == row["text"]
    # Another corpus goes beside it.
    again = run("--shards", made / "set", "--output", tmp_path, "--layout", "reference", *flags[:2],
                "--corpus", "other")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert len(list(published_loader(tmp_path, "other", "transformer_100m"))) == len(expected)


def test_a_layout_is_one_entry_of_the_table(run, made, tmp_path, monkeypatch):
    """As CONTRIBUTING.md says; Ray sends the class of a test by value."""

    class Flat(Layout):
        name = "flat"

        def paths(self, entries, shards, settings):
            return [f"{entry.name}.parquet" for entry in entries]

    flags = ("--shards", made / "set", "--output", tmp_path / "out", "--layout", "flat")
    refused = run(*flags)
    assert refused.returncode == 2 and "invalid choice 'flat'" in refused.stderr
    monkeypatch.setitem(LAYOUTS, "flat", Flat())
    assert run(*flags, "--verify").returncode == 0
    paths = sorted((tmp_path / "out").glob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert len(paths) > 1 and rows == rows_of(made / "set")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["format"] == "flat" and len(manifest["files"]) == len(paths)
    paths[0].unlink()
    before = paths[1].stat().st_mtime_ns
    assert run(*flags).returncode == 0 and paths[0].exists()
    assert paths[1].stat().st_mtime_ns == before  # only what was lost is written again
    assert run(*flags, "--overwrite", "--threshold", 3.0).returncode == 0


def test_cut_anew_and_without_entropies(run, made, tmp_path):
    flags = ("--threshold", "1.9", "--drop-entropies", "--verify")
    done = run("--shards", made / "set", "--output", tmp_path, "--layout", "datasets", *flags)
    assert done.returncode == 0, done.stderr
    table = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "data").iterdir())))
    assert table.schema.names == ["sample_id", "text", "patch_lengths", "site"]
    rule = replace(RULE, threshold=1.9)
    patches = 0
    for row, source in zip(table.to_pylist(), rows_of(made / "set"), strict=True):
        h = torch.tensor(np.array(source["entropies"], np.float16))[None]
        assert row["patch_lengths"] == rule.patch_lengths(h)[0].tolist()
        patches += len(row["patch_lengths"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["statistics"]["patches"] == patches
    assert manifest["patcher"]["threshold"] == 1.9
    assert "threshold 1.9" in (tmp_path / "README.md").read_text()


def test_the_number_of_workers_and_kills_change_nothing(run, made, tmp_path):
    for name, workers in (("one", 1), ("three", 3)):
        output = tmp_path / name
        flags = ("--output", output, "--layout", "datasets", "--num-workers", workers)
        done = run("--shards", made / "set", *flags)
        assert done.returncode == 0, done.stderr
    one = files_below(tmp_path / "one")
    three = files_below(tmp_path / "three")
    # The card bears the name of its directory.
    three["README.md"] = three["README.md"].replace(b"three", b"one")
    assert three == one
    # What a kill leaves: files without entries, no manifest, a half-written file.
    output = tmp_path / "one"
    entries = sorted((output / "entries").iterdir())
    entries[0].unlink()
    entries[2].unlink()
    (output / "manifest.json").unlink()
    sorted((output / "data").iterdir())[2].unlink()
    (output / "_tmp").mkdir()
    (output / "_tmp" / "half").write_bytes(b"PAR1")
    again = run(
        "--shards", made / "set", "--output", output, "--layout", "datasets", "--num-workers", 1
    )
    assert again.returncode == 0 and "(2 written now)" in again.stdout
    assert files_below(output) == one
    # All done: nothing is written again.
    last = run("--shards", made / "set", "--output", output, "--layout", "datasets")
    assert "(0 written now)" in last.stdout and files_below(output) == one


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named_and_the_rest_is_done(run, shards, tmp_path, damage):
    shard = sorted((shards / "shards").iterdir())[1]
    good = shard.read_bytes()
    wrong = bytearray(good)
    wrong[len(wrong) // 2] ^= 1
    shard.unlink() if damage == "remove" else shard.write_bytes(
        wrong if damage == "flip" else good[:700]
    )
    output = tmp_path / "out"
    done = run("--shards", shards, "--output", output, "--layout", "parquet")
    assert done.returncode == 1 and str(shard) in done.stdout
    written = {path.stem for path in (output / "data").iterdir()}
    assert f"{len(written)} ({len(written)} written now)" in done.stdout
    assert written == {path.stem for path in (shards / "shards").iterdir()} - {shard.stem}
    assert not (output / "manifest.json").exists()
    assert "no manifest was written" in done.stdout
    shard.write_bytes(good)
    again = run("--shards", shards, "--output", output, "--layout", "parquet", "--verify")
    assert again.returncode == 0, again.stdout
    assert (output / "data" / f"{shard.stem}.parquet").exists()


def test_verification_finds_what_was_changed_and_a_rerun_mends_it(run, made, tmp_path):
    flags = ("--shards", made / "set", "--output", tmp_path, "--layout", "parquet", "--verify")
    assert run(*flags).returncode == 0
    good = files_below(tmp_path)
    first, second = sorted((tmp_path / "data").iterdir())[:2]
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    # A whole file, but of other rows; its size and hash are in its entry.
    table = pq.read_table(second)
    pq.write_table(table.slice(0, table.num_rows - 1), second)
    entry = tmp_path / "entries" / f"{second.stem}.json"
    digest = hashlib.sha256(second.read_bytes()).hexdigest()
    other = {"sha256": digest, "bytes": second.stat().st_size}
    edit_json(entry, lambda values: values.update(other))
    done = run(*flags)
    assert done.returncode == 1 and not (tmp_path / "manifest.json").exists()
    assert f"{first}: sha256" in done.stdout and f"{second}: its rows are not" in done.stdout
    assert run(*flags).returncode == 0
    assert files_below(tmp_path) == good


def test_another_command_is_refused_unless_it_starts_anew(run, made, shards, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(made / "thin", shards / "validation")
    done = run("--shards", shards, "--output", output, "--layout", "parquet")
    assert done.returncode == 0
    assert f"not exported: the validation set, which --shards {shards}/validation" in done.stderr
    changed = run("--shards", shards, "--output", output, "--layout", "datasets")
    assert changed.returncode == 1 and "--overwrite starts anew" in changed.stderr
    other = run("--shards", made / "space", "--output", output, "--layout", "parquet")
    assert other.returncode == 1 and "manifest" in other.stderr
    anew = run("--shards", shards, "--output", output, "--layout", "datasets", "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert all(path.name.startswith("train-") for path in (output / "data").iterdir())


def test_other_jobs_say_what_an_export_is_and_leave_it(run, made, tmp_path, monkeypatch, capsys):
    assert (
        run("--shards", made / "set", "--output", tmp_path, "--layout", "parquet").returncode == 0
    )
    before = files_below(tmp_path)
    for name, flags in (("patch_corpus.py", ("--rule", "byte")), ("prepare_corpus.py", ())):
        job = job_here(ROOT / "jobs" / name, monkeypatch, capsys)
        for more in ((), ("--overwrite",)):
            refused = job("--input", made / "in", "--output", tmp_path, *flags, *more)
            assert refused.returncode == 2
            assert f"--output {tmp_path}: holds an export; choose another" in refused.stderr
    (tmp_path / "run.json").write_text("[]")
    for flags in ((), ("--overwrite",)):
        refused = run("--shards", made / "set", "--output", tmp_path, "--layout", "parquet", *flags)
        assert refused.returncode == 2 and "run.json is damaged: it is a list" in refused.stderr
    (tmp_path / "run.json").unlink()
    assert files_below(tmp_path) == {
        name: data for name, data in before.items() if name != "run.json"
    }


def test_an_export_that_was_killed_while_it_began_goes_on(run, made, tmp_path):
    flags = ("--shards", made / "set", "--output", tmp_path / "out", "--layout", "parquet")
    (tmp_path / "out" / "_tmp").mkdir(parents=True)
    (tmp_path / "out" / "_tmp" / "half").touch()
    assert run(*flags).returncode == 0
    whole = files_below(tmp_path / "out")

    def removes_none(self, name: str, known=OutputDirectory.remove) -> None:
        if not name.startswith("lease/"):  # that of a process that is alive would stand
            raise KeyboardInterrupt
        known(self, name)

    def removes_some(self, names, known=OutputDirectory.remove_files) -> None:
        known(self, list(names)[:2])
        raise KeyboardInterrupt

    for name, killed in (("remove", removes_none), ("remove_files", removes_some)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OutputDirectory, name, killed)
            assert run(*flags, "--overwrite").returncode == 130
        done = run(*flags)
        assert done.returncode == 0, done.stderr
        assert files_below(tmp_path / "out") == whole


def test_what_others_put_beside_an_export_stays(run, made, tmp_path):
    flags = ("--shards", made / "set", "--output", tmp_path, "--overwrite", "--layout")
    assert run(*flags, "parquet").returncode == 0
    for name in ("README.md", "pictures/mine.png", "data/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    assert run(*flags, "parquet").returncode == 0
    assert list(files_below(tmp_path).values()).count(b"mine") == 3
    assert run(*flags, "datasets").returncode == 0
    assert list(files_below(tmp_path).values()).count(b"mine") == 2
    # A card that was edited is not written again, when nothing else is.
    (tmp_path / "README.md").write_text("mine")
    assert run(*flags[:4], "--layout", "datasets").returncode == 0
    assert list(files_below(tmp_path).values()).count(b"mine") == 3
    (tmp_path / "README.md").unlink()
    assert run(*flags[:4], "--layout", "datasets").returncode == 0
    assert b"mean bytes per patch" in (tmp_path / "README.md").read_bytes()


@pytest.mark.parametrize("format", ["datasets", "reference"])
def test_what_is_lost_of_an_export_is_written_again(run, made, tmp_path, format):
    flags = ("--shards", made / "set", "--output", tmp_path / "out", "--layout", format, "--json")
    assert run(*flags).returncode == 0
    whole = files_below(tmp_path / "out")
    lost = [name for name in whole if name.endswith((".parquet", ".arrow", ".complete"))]
    for name in (lost[0], lost[-1]):
        (tmp_path / "out" / name).unlink()
        done = run(*flags)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["exported"] == 1
        assert files_below(tmp_path / "out") == whole


@pytest.mark.parametrize(
    "flags, said",
    [
        (["nowhere", "--layout", "parquet"], "--shards nowhere"),
        (["{made}/thin", "--layout", "parquet", "--threshold", "1"], "--threshold"),
        (["{made}/thin", "--layout", "reference"], "--layout reference"),
        (["{made}/space", "--layout", "parquet", "--threshold", "1"], "the space rule has none"),
        (["{made}/set", "--layout", "parquet", "--threshold", "nan"], "--threshold"),
        (["{made}/set", "--layout", "reference", "--threshold", "1"], "--threshold"),
        (["{made}/set", "--layout", "reference", "--drop-entropies"], "--drop-entropies"),
        (["{made}/set", "--layout", "reference", "--corpus", "../x"], "--corpus"),
        (["{made}/set", "--layout", "parquet", "--corpus", "x"], "--corpus"),
        (["{made}/set", "--layout", "parquet", "--private"], "--private"),
        (["{made}/set", "--layout", "hub", "--output", "one-word"], "owner/name"),
        (
            ["{made}/set", "--layout", "parquet", "--output", "{made}/set/x"],
            "lies in the shard set",
        ),
        (["{made}/set", "--layout", "parquet", "--output", "{made}/in"], "is not empty"),
        (["{made}/set", "--layout", "parquet", "--output", "s3://me:secret@b/x"], "--output"),
        (["{made}/set", "--layout", "parquet", "--num-workers", "0"], "--num-workers"),
    ],
)
def test_a_wrong_flag_is_named(run, made, tmp_path, flags, said):
    output = [] if "--output" in flags else ["--output", tmp_path / "out"]
    done = run("--shards", *(flag.format(made=made) for flag in flags), *output)
    assert done.returncode == 2
    assert said in done.stderr and "secret" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_set_without_documents(run, made, tmp_path):
    for kind in ("parquet", "datasets"):
        output = tmp_path / kind
        done = run("--shards", made / "bare", "--output", output, "--layout", kind, "--verify")
        assert done.returncode == 0, done.stderr
        assert json.loads((output / "manifest.json").read_text())["files"] == []


def test_what_others_see_does_not_tell_where_it_was_made():
    public = "hf://datasets/owner/name@0/data/z.parquet"
    signed = "https://host/z.parquet?token=secret"
    sources = [
        {"name": "/home/alice/x.jsonl", "url": "/home/alice/x.jsonl", "bytes": 1},
        {"name": "sub/y.jsonl", "url": "s3://alice/sub/y.jsonl", "bytes": 2},
        {"name": public, "url": public, "bytes": 3},
        {"name": signed, "url": signed, "bytes": 4},
    ]
    for source, said in (
        *(("/home/alice/model", "model"), ("../../alice/model", "model"), ("ngram", "ngram")),
        *(("s3://alice/model", "model"), ("owner/name", "owner/name")),
    ):
        made = {"sources": sources, "entropy_model": {"source": source}, "patcher": {}}
        told = without_places(made)
        assert told["entropy_model"] == {"source": said}
        assert [(s["name"], s["url"]) for s in told["sources"]] == [
            ("x.jsonl", None),
            ("sub/y.jsonl", None),
            (public, public),
            ("https://host/z.parquet", "https://host/z.parquet"),
        ]


def test_storage_that_is_not_shared_is_told(run, made):
    done = run("--shards", made / "set", "--output", "memory://exported", "--layout", "parquet")
    # Memory is each process's own, as disks are each node's.
    assert done.returncode == 1 and "storage that all nodes share" in done.stderr
