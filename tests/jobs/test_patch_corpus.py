"""The main job as a user runs it, on a local Ray: results, resumption, and what goes wrong."""

import contextlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from prometheus_client.parser import text_string_to_metric_families
from support.jobs import (
    ROOT,
    command,
    contents,
    edit_json,
    environment,
    job_here,
)
from support.local_ray import (
    a_full_disk,
    a_worker_killed_when,
    share_local_ray,
    to_join_local_ray,
)
from support.shard_sets import as_version_1
from support.texts import noise, topics, write_jsonl

from model import ByteTokenizer, Patcher, load_entropy_model
from pipeline import open_shards
from pipeline.cluster.metrics import METRICS
from pipeline.patch import collect
from pipeline.shards.lost import lost
from pipeline.shards.verify import verify

# A few kilobytes a shard: a small corpus makes many.
SMALL = ("--shard-bytes", 60_000)
PART = 40
"""Of the topics, where all of them would take long."""
ALONE = ("--num-workers", 1)
"""For runs that are not about workers: each of them imports for seconds before it works."""


@pytest.fixture(scope="module")
def patched(tmp_path_factory, small_model_directory) -> tuple[Path, Path, dict]:
    """A finished run with the small transformer, which joined the Ray of this process: model
    directory, output, printed result."""
    share_local_ray()
    directory = tmp_path_factory.mktemp("patched")
    source = write_jsonl(directory / "in" / "topics.jsonl", topics()[:PART])
    out = directory / "out"
    flags = ("--entropy-model", small_model_directory, "--threshold", 2.5, "--id-column", "id")
    done = subprocess.run(
        command("--input", source, "--output", out, *flags, *SMALL, *ALONE, "--json", "--verify"),
        env=environment(**to_join_local_ray()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return small_model_directory, out, json.loads(done.stdout)


def test_shards_hold_every_document_scored_and_cut(patched):
    model_directory, out, result = patched
    shards = open_shards(str(out))
    documents = list(shards)
    assert [(d.sample_id, d.text) for d in documents] == topics()[:PART]
    model = load_entropy_model(model_directory)
    for document in documents[::7]:
        tokens = ByteTokenizer().encode(document.text)
        h = model.entropies(torch.tensor([tokens]))[0].numpy()
        # float16 keeps 11 bits, and packing moves float32 results a little.
        np.testing.assert_allclose(document.entropies, h, atol=4e-3)
        expected = Patcher(2.5).patch_lengths(torch.tensor(document.entropies)[None])[0]
        assert document.patch_lengths.tolist() == expected.tolist()
        assert document.patch_lengths.sum() == len(tokens)
        assert b"".join(document.patches()) == document.text.encode()
    assert result["documents"] == PART
    assert result["bytes"] == sum(len(d.text.encode()) for d in documents)
    assert result["patches"] == sum(len(d.patch_lengths) for d in documents)
    assert result["shards"] == len(list((out / "shards").iterdir())) > 3
    assert list(verify(shards)) == []
    assert not (out / "_tmp").exists()


def test_shards_open_with_datasets(patched, tmp_path):
    _, out, result = patched
    files = str(out / "shards" / "*.arrow")
    loaded = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path))["train"]
    assert loaded.num_rows == result["documents"]
    row = loaded[0]
    assert sum(row["patch_lengths"]) == len(row["entropies"]) == len(row["text"].encode()) + 2
    assert loaded.column_names == ["sample_id", "text", "entropies", "patch_lengths"]


def test_verify_finds_damage(patched, tmp_path):
    _, out, _ = patched
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    shard = next((copy / "shards").iterdir())
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    (problem,) = verify(open_shards(str(copy)))
    assert str(shard) in problem and "sha256" in problem
    shard.unlink()
    (problem,) = verify(open_shards(str(copy)))
    assert str(shard) in problem and "cannot be read" in problem


def test_verify_recomputes_boundaries(patched, tmp_path):
    _, out, _ = patched
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    manifest = copy / "manifest.json"
    edit_json(manifest, lambda values: values["patcher"].update(threshold=2.0))
    problems = list(verify(open_shards(str(copy))))
    assert problems and all("boundaries are not those" in problem for problem in problems)


def entries(out: Path) -> int:
    return len(list(out.glob("entries/*.json")))


def test_workers_and_kills_change_nothing(tmp_path, run_here, small_model_directory):
    """1 worker, and 2 workers one of which is killed: the same bytes, of a large file that is cut
    and of many small ones that share shards. A driver that is killed: test_chaos.py; with its Ray:
    ``make chaos``."""
    large = [(name, text[:3000]) for name, text in topics()[:PART]]
    small = [(name, text[:100]) for name, text in topics()[:70]]
    write_jsonl(tmp_path / "in" / "topics.jsonl", large)
    for i, document in enumerate(small):
        write_jsonl(tmp_path / "in" / "small" / f"{i:02}.jsonl", [document])
    flags = ("--input", tmp_path / "in", "--entropy-model", small_model_directory)
    flags += ("--target-patch-size", 4.5, "--seed", 3, "--calibration-bytes", 20_000)
    flags += ("--shard-bytes", 18_000)
    one, two = tmp_path / "one", tmp_path / "two"
    done = run_here(*flags, "--output", one, *ALONE)
    assert done.returncode == 0, done.stderr
    with a_worker_killed_when(lambda: entries(two) > 0, "ray::Map"):
        done = run_here(*flags, "--output", two, "--num-workers", 2, "--verify")
    assert done.returncode == 0, done.stderr
    assert entries(one) >= 9
    assert contents(one) == contents(two)
    texts = [text for _, text in small + large]
    assert [d.text for d in open_shards(str(two))] == texts
    assert sum(entry.source.startswith("small") for entry in open_shards(str(one)).entries) < 20
    again = run_here(*flags, "--output", two, *ALONE, "--json")
    assert json.loads(again.stdout)["bytes_patched"] == 0
    assert contents(one) == contents(two)


def test_what_is_lost_is_made_again(patched, tmp_path, run_here, monkeypatch):
    """And what format version 1 began, version 2 continues and closes, with the same bytes."""
    model, whole, result = patched
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    as_version_1(out)
    lost, cut, *_ = sorted((out / "shards").iterdir())[1::2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    source = whole.parent / "in" / "topics.jsonl"
    flags = ("--entropy-model", model, "--threshold", 2.5, "--id-column", "id", *SMALL, "--json")
    done = run_here("--input", source, "--output", out, *flags)
    assert done.returncode == 0, done.stderr
    for path, what in ((lost, "is missing"), (cut, "has ")):
        assert f"{path}: {what}" in done.stderr and "making it again" in done.stderr
    assert 0 < json.loads(done.stdout)["bytes_patched"] < result["bytes"]
    assert contents(out) == contents(whole)
    # Parts that several workers add up give the same sums.
    monkeypatch.setattr(collect, "SHARDS_PER_PART", 2)
    (out / "entries.arrow").write_bytes((out / "entries.arrow").read_bytes()[::-1])
    done = run_here("--input", source, "--output", out, *flags, "--verify")
    assert done.returncode == 0 and "entries.arrow: is damaged" in done.stderr, done.stderr
    again = json.loads(done.stdout)
    counts = ("documents", "bytes", "patches", "shards", "rejects", "patch_length_median")
    assert [again.get(key) for key in counts] == [result.get(key) for key in counts]
    assert open_shards(str(out)).manifest["entries"]["parts"]["rows"][0] == 2
    one, other = (open_shards(str(url)) for url in (whole, out))
    assert one.entries == other.entries and one.summary.to_json() == other.summary.to_json()
    assert [d.text for d in one] == [d.text for d in other]


def test_a_swapped_shard_is_made_again_with_verify(patched, tmp_path, run_here):
    model, whole, _ = patched
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    swapped, other = sorted((out / "shards").iterdir())[1:3]
    size = swapped.stat().st_size
    swapped.write_bytes(other.read_bytes()[:size].ljust(size, b"\0"))
    assert len(list(lost(open_shards(str(out))))) == 1  # so the report names it
    source = whole.parent / "in" / "topics.jsonl"
    flags = ("--entropy-model", model, "--threshold", 2.5, "--id-column", "id", *SMALL, "--json")
    done = run_here("--input", source, "--output", out, *flags, "--verify")
    assert done.returncode == 0, done.stderr
    assert f"{swapped}: is another file than was written, or damaged: making it" in done.stderr
    assert contents(out) == contents(whole) and not list(lost(open_shards(str(out))))
    run_json = out / "run.json"
    run_json.write_bytes(run_json.read_bytes().replace(b'"threshold": 2.5', b'"threshold": 2.6'))
    done = run_here("--input", source, "--output", out, *flags)
    assert done.returncode == 2 and "run.json is damaged: its check is not the hash" in done.stderr


def test_a_changed_command_is_refused_until_overwritten(tmp_path, run_here):
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:3])
    out = tmp_path / "out"
    base = ("--input", source, "--output", out, "--rule", "space")
    assert run_here(*base).returncode == 0
    before = contents(out)
    refused = run_here(*base, "--max-patch-length", 4)
    assert refused.returncode == 1
    assert "was begun with max-patch-length None, now it is 4; --overwrite" in refused.stderr
    write_jsonl(source, topics()[:4])
    refused = run_here(*base)
    assert f"input file {source} changed since it was begun" in refused.stderr
    wrong = run_here(*base, "--overwrite", "--text-column", "body")
    assert wrong.returncode == 2 and contents(out) == before
    assert run_here(*base, "--overwrite").returncode == 0
    assert len(list(open_shards(str(out)))) == 4


def test_bad_documents_and_files_are_told_and_the_rest_is_done(tmp_path, run_here):
    corpus = tmp_path / "corpus"
    write_jsonl(corpus / "good.jsonl", topics()[:5])
    (corpus / "bad.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\nnothing\n{"text": ""}\n')
    pq.write_table(pa.table({"text": [1, 2]}), corpus / "dtype.parquet")
    pq.write_table(pa.table({"body": ["a"]}), corpus / "column.parquet")
    pq.write_table(pa.table({"text": ["a"] * 1000}), corpus / "cut.parquet")
    whole = (corpus / "cut.parquet").read_bytes()
    (corpus / "cut.parquet").write_bytes(whole[:-30])
    (corpus / "empty.jsonl").touch()
    out = tmp_path / "out"
    flags = ("--input", corpus, "--output", out, "--rule", "byte", *ALONE)
    done = run_here(*flags)
    assert done.returncode == 1
    for message in (
        "failed: dtype.parquet: column 'text' is int64, not a string",
        "failed: column.parquet: no column 'text'; there are body",
        "failed: cut.parquet: truncated or corrupt",
    ):
        assert message in done.stdout
    shards = open_shards(str(out))
    assert sorted(d.text for d in shards) == sorted(["ok", "", *(t for _, t in topics()[:5])])
    rejects = [(r["file"], r["position"], r["reason"]) for r in shards.rejects()]
    assert rejects[0] == (
        "bad.jsonl",
        "15",
        "line is not valid UTF-8: invalid start byte at byte 10",
    )
    assert rejects[1][:2] == ("bad.jsonl", "29")
    assert [r[0] for r in rejects[2:]] == ["column.parquet", "cut.parquet", "dtype.parquet"]

    stopped = run_here(*flags[:3], tmp_path / "strict", *flags[4:], "--on-bad-document", "fail")
    assert stopped.returncode == 1
    assert f"error: {corpus}/bad.jsonl, position 15: line is not valid UTF-8" in stopped.stderr

    # A file that was broken may be mended; the rest is not done again.
    (corpus / "cut.parquet").write_bytes(whole)
    again = run_here(*flags, "--json", "--on-bad-document", "fail")
    result = json.loads(again.stdout)
    assert result["bytes_patched"] == 1000
    *failed, earlier = result["failures"]
    assert [f.split(":")[0] for f in failed] == ["column.parquet", "dtype.parquet"]
    assert earlier.startswith(
        "an earlier run, without --on-bad-document fail, rejected 2 documents"
    )
    # Those that are as they were are read again where that is asked for.
    again = run_here(*flags, "--json", "--retry-failed")
    assert json.loads(again.stdout)["failures"] == failed
    assert again.stderr.count(" was broken: reading it again") == 2
    assert f"{corpus}/dtype.parquet was broken: reading it again" in again.stderr


WRONG = {
    "--input {tmp}/nothing": "--input {tmp}/nothing: no such file or directory",
    "--input {tmp}/empty": "--input {tmp}/empty: no such file, and no files with",
    "--input {tmp}/a.jsonl --text-column body": "--text-column: no input file has a column 'body'; "
    "there are: id, text",
    "--input {tmp}/a.jsonl --keep-columns text": "--keep-columns: 'text' is in the shards already",
    "--input {tmp}/a.bin": "--input-format: cannot tell what {tmp}/a.bin holds from its name",
    "--input s3://key:secret@bucket/a": "--input: no credentials in URLs",
    "--input {tmp}/a.jsonl --rule global": "--threshold: the global rule needs either",
    "--input {tmp}/a.jsonl --rule static": "--patch-size: the static rule needs it",
    "--input {tmp}/a.jsonl --target-patch-size 4.5 --rule space": "--target-patch-size: the space",
    "--input {tmp}/a.jsonl --input {tmp}/b.jsonl": "--input: is given more than once; put all",
    "--input {tmp}/a.jsonl --threshold=1 --threshold 2": "--threshold: is given more than once",
    "--input {tmp}/a.jsonl --rule global --threshold inf": "--threshold: must be a finite number",
    "--input {tmp}/out/../a.jsonl {tmp}/out": "--input {tmp}/out: no such file, and no files with",
    "--input {tmp}/a.jsonl --num-workers 0": "--num-workers: must be at least 1, got 0",
    "--input {tmp}/a.jsonl --entropy-model {tmp}/empty": "--entropy-model: {tmp}/empty: no entropy",
    "--input {tmp}/a.jsonl --entropy-model {tmp}/none": "--entropy-model: {tmp}/none: no such dir",
}


@pytest.mark.parametrize("flags", WRONG)
def test_wrong_flags_fail_before_any_work(tmp_path, run_here, flags):
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.bin").touch()
    write_jsonl(tmp_path / "a.jsonl", topics()[:2])
    rule = () if "rule" in flags or "target" in flags else ("--rule", "byte")
    out = tmp_path / "out"
    done = run_here(*flags.format(tmp=tmp_path).split(), "--output", out, *rule)
    assert done.returncode == 2, done.stderr
    assert f"error: {WRONG[flags].format(tmp=tmp_path)}" in done.stderr.replace("\n", " ")
    assert "secret" not in done.stderr
    assert not out.exists()


def test_an_output_below_its_input_from_another_directory(tmp_path, run_here, monkeypatch):
    """And without an installation: workers are told where the packages are."""
    write_jsonl(tmp_path / "text" / "a.jsonl", topics()[:3])
    code = tmp_path / "checkout"
    for name in ("jobs", "model", "pipeline"):
        shutil.copytree(ROOT / name, code / name)
    worker = code / "pipeline" / "patch" / "patch_split.py"
    worker.write_text(worker.read_text().replace("BATCH_BYTES = 1 << 20", "BATCH_BYTES = 1"))
    arguments = ("--input", ".", "--output", "out", "--rule", "byte", "--json")
    monkeypatch.chdir(tmp_path / "text")
    done = subprocess.run(
        [sys.executable, str(code / "jobs" / "patch_corpus.py"), *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    for again in (False, True):
        done = run_here(*arguments) if again else done
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["bytes_patched"] == 0) == again
        assert result["output"] == f"{tmp_path}/text/out"
    shards = open_shards(str(tmp_path / "text" / "out"))
    assert [d.text for d in shards] == [t for _, t in topics()[:3]]
    assert len(list(shards.batches())) == 3


def test_a_full_disk_stops_the_job_and_a_rerun_finishes(tmp_path, run_here):
    source, out = write_jsonl(tmp_path / "a.jsonl", noise(3)), tmp_path / "out"
    flags = ("--input", source, "--output", out, "--rule", "static", "--patch-size", 4)
    flags += ALONE
    with a_full_disk():
        done = run_here(*flags)
    assert done.returncode == 1
    assert f"error: cannot write {out}/shards/" in done.stderr
    assert "File too large" in done.stderr
    assert not (out / "manifest.json").exists()
    assert not list((out / "shards").glob("*")) if (out / "shards").exists() else True
    assert run_here(*flags, "--verify").returncode == 0


def test_an_unwritable_output_is_named(tmp_path, run_here):
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:2])
    (tmp_path / "file").touch()
    done = run_here("--input", source, "--output", tmp_path / "file" / "out", "--rule", "byte")
    assert done.returncode == 2
    said = done.stderr.replace("\n", " ")
    assert f"error: --output: {tmp_path}/file/out: cannot be used: " in said


def test_the_entropy_model_that_comes_with_the_package_is_the_default(tmp_path, run_here):
    source = write_jsonl(tmp_path / "a.jsonl", topics()[:2])
    done = run_here("--input", source, "--output", tmp_path / "out", "--threshold", 1.5, "--verify")
    assert done.returncode == 0, done.stderr
    shards = open_shards(str(tmp_path / "out"))
    assert shards.manifest["entropy_model"]["source"] == "entropy-1m"
    assert 2 < shards.statistics.mean_patch_bytes < 9


def test_help_explains_itself(run_here):
    done = run_here("--help")
    assert done.returncode == 0
    for word in ("--input", "--target-patch-size", "Exit status", "calibrated on a sample"):
        assert word in done.stdout


def scraped() -> dict[str, float]:
    """The sum of each metric of ours over all nodes, workers and labels, as Prometheus reads it."""
    kinds = {metric.exported: metric.kind.__name__.lower() for metric in METRICS}
    sums: dict[str, float] = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        families = []
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        for family in families:
            for sample in family.samples if family.name.startswith("ray_blt_titan_") else ():
                assert family.type == kinds[sample.name] and math.isfinite(sample.value)
                assert (
                    sample.labels["stage"] and {"WorkerId", "NodeAddress"} <= sample.labels.keys()
                )
                key = f"{sample.name} {sample.labels.get('state', '')}".strip()
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


PIECES = "ray_blt_titan_pieces"


def pieces(seen: dict[str, float]) -> float:
    return sum(value for name, value in seen.items() if name.startswith(f"{PIECES} "))


def test_a_run_that_goes_on_can_be_watched(
    local_ray, tmp_path, small_model_directory, monkeypatch, capsys
):
    """By Prometheus, by lines of JSON, and by a report of what is there."""
    source = write_jsonl(tmp_path / "in" / "topics.jsonl", topics() * 20)  # it is stopped
    source.write_text("no JSON\n" * 3 + source.read_text())
    out, lines = tmp_path / "out", tmp_path / "progress.jsonl"
    flags = ("--input", source, "--output", out, "--threshold", 2, "--shard-bytes", 30_000)
    flags += ("--entropy-model", small_model_directory)
    log = (tmp_path / "log").open("wb")
    job = subprocess.Popen(
        command(*flags, *ALONE, "--progress-json", lines),
        env=environment(**to_join_local_ray()),
        stdout=log,
        stderr=log,
    )
    states = {"device_seconds_total": ("busy", "idle"), "pieces": ("waiting", "working", "done")}
    wanted = {
        f"{name} {state}".strip()
        for name in (metric.exported for metric in METRICS)
        for state in states.get(name.removeprefix("ray_blt_titan_"), ("",))
    }
    try:
        until, seen = time.monotonic() + 200, {}
        # Ray still exports what earlier jobs on it said; this one has dozens of pieces.
        while not (wanted <= seen.keys() and pieces(seen) > 10 and seen[f"{PIECES} done"]):
            assert job.poll() is None and time.monotonic() < until, (seen, log.name)
            time.sleep(0.3)
            seen = scraped()
    finally:
        job.terminate()
    assert job.wait(60) == 143
    assert seen["ray_blt_titan_text_bytes_total"] > 0 < seen["ray_blt_titan_documents_total"]
    assert seen["ray_blt_titan_device_seconds_total busy"] > 0.1
    assert 0 < seen["ray_blt_titan_bytes_left"] < source.stat().st_size
    *_, last = (json.loads(line, parse_constant=pytest.fail) for line in lines.open())
    assert last["stage"] == "patching" and last["pieces_done"] >= 1 <= last["pieces_waiting"]
    assert last["documents"] > 0 < last["device_seconds"] and last["rejects"] == 3
    assert last["seconds_left"] == pytest.approx(last["bytes_left"] / last["bytes_per_second"])
    report = job_here(ROOT / "jobs" / "patch_report.py", monkeypatch, capsys)
    done = report("--shards", out, "--output", tmp_path / "report", "--json")
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)["sets"]
    assert figures["documents"] == sum(
        json.loads(path.read_text())["statistics"]["documents"] for path in out.glob("entries/*")
    )
    so_far = figures["so_far"]
    assert 0 < so_far["input_bytes_done"] < so_far["input_bytes"] == source.stat().st_size
    share = so_far["input_bytes_done"] / so_far["input_bytes"]
    shown = report("--shards", out, "--output", tmp_path / "report")
    assert re.search(rf"unfinished +{share:.1%} of the input so far: ", shown.stdout), shown.stdout
    both = report("--shards", out, out / "..", "--merge", "--output", tmp_path / "report")
    assert both.returncode == 2 and "is not finished; report on it alone" in both.stderr
