"""The report's job as a user runs it: files, output, exit statuses, messages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny
from support.jobs import ROOT, edit_json, job_here
from support.texts import topics, write_jsonl

from model import NGramEntropyModel, Patcher
from pipeline.report.plots import PLOTS
from pipeline.storage.output import OutputDirectory

JOB = ROOT / "jobs" / "patch_report.py"


@pytest.fixture
def run(monkeypatch, capsys):
    return job_here(JOB, monkeypatch, capsys)


@pytest.fixture
def sets(tmp_path, ngram_model: NGramEntropyModel) -> Path:
    """Two sets with several shards each."""
    for i, part in enumerate((topics()[:6], topics()[6:9], topics()[9:12])):
        write_jsonl(tmp_path / "in" / f"{i}.jsonl", [(k, text[:2000]) for k, text in part])
    for name, rule in (("a", Patcher(1.0)), ("b", Patcher(1.5, max_patch_length=6))):
        settings = {"id_column": "id", "keep_columns": ("id",)}
        tiny.make_shards(tmp_path / name, tmp_path / "in", ngram_model, rule, **settings)
    return tmp_path


def figures(output: Path) -> list[dict]:
    return json.loads((output / "report.json").read_text())["sets"]


def test_a_page_plots_and_figures(run, sets):
    done = run("--shards", sets / "a", sets / "b", "--output", sets / "out")
    assert done.returncode == 0, done.stderr
    names = {"index.html", "report.json", *(f"{name}.png" for name in PLOTS)}
    assert {path.name for path in (sets / "out").iterdir()} == names
    assert f"page: {sets / 'out' / 'index.html'}" in done.stdout
    rows = [line.split("  ") for line in done.stdout.splitlines()]
    assert ["mean bytes per patch", f"{figures(sets / 'out')[0]['mean_patch_bytes']:.3f}"] in [
        [cell.strip() for cell in row if cell.strip()][:2] for row in rows
    ]


def test_json_is_what_the_file_holds(run, sets):
    out = sets / "out"
    done = run("--shards", sets / "a", "--output", out, "--target-patch-size", 3, "--json")
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text())
    assert [s["target"] for s in json.loads(done.stdout)["sets"][0]["suggested"]] == [3.0]


def test_sets_in_other_storage(run, sets):
    memory = OutputDirectory("memory://report-test")
    for path in (sets / "a").rglob("*"):
        if path.is_file():
            with memory.filesystem.open(
                f"/report-test/a/{path.relative_to(sets / 'a')}", "wb"
            ) as f:
                f.write(path.read_bytes())
    done = run("--shards", "memory://report-test/a", "--output", "memory://report-test/out")
    assert done.returncode == 0, done.stderr
    assert b"<svg" in memory.read("out/index.html") and memory.exists("out/threshold.png")


def test_counting_again_gives_the_same(local_ray, run, sets):
    plain, again = sets / "plain", sets / "again"
    assert run("--shards", sets / "a", sets / "b", "--output", plain).returncode == 0
    done = run("--shards", sets / "a", sets / "b", "--output", again, "--recompute")
    assert done.returncode == 0, done.stderr
    (a, b), (a2, b2) = figures(plain), figures(again)
    assert a2 == a
    changed = {"curve", "curve_has_cuts", "suggested"}
    assert {k: v for k, v in b2.items() if k not in changed} == {
        k: v for k, v in b.items() if k not in changed
    }
    # With its cuts, the curve runs through where the set is.
    thresholds, means = (b2["curve"][key] for key in ("thresholds", "mean_patch_bytes"))
    assert means[thresholds.index(1.5)] == pytest.approx(b["mean_patch_bytes"])
    assert b["curve"]["mean_patch_bytes"][-1] > means[-1] > 5


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_shard_is_named_and_left_out(local_ray, run, sets, damage):
    shard = sorted((sets / "a" / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    {"flip": lambda: shard.write_bytes(data), "cut": lambda: shard.write_bytes(data[:500])}.get(
        damage, shard.unlink
    )()
    done = run("--shards", sets / "a", "--output", sets / "out", "--recompute")
    assert done.returncode == 1
    assert str(shard) in done.stdout
    (found,) = figures(sets / "out")
    assert found["shards"] == 2 and str(shard) in found["problems"][0]
    assert found["documents"] == 9
    assert str(shard) in (sets / "out" / "index.html").read_text()


def test_counting_again_of_sets_without_entropies_or_documents(
    local_ray, run, sets, ngram_model: NGramEntropyModel
):
    tiny.make_shards(sets / "thin", sets / "in", ngram_model, Patcher(1.0), drop_entropies=True)
    done = run("--shards", sets / "thin", "--output", sets / "out", "--recompute")
    assert done.returncode == 0, done.stderr
    (found,) = figures(sets / "out")
    assert found["documents"] == 12 and found["mean_entropy"] is None
    assert found["sources"][0]["mean_entropy"] is None
    page = (sets / "out" / "index.html").read_text()
    assert "none stored" in page and "0.000" not in page
    # Nothing but rejects; and one file of them is lost.
    (sets / "bad").mkdir()
    for name in "ab":
        (sets / "bad" / f"{name}.jsonl").write_text("broken\n")
    tiny.make_shards(sets / "bare", sets / "bad", ngram_model, Patcher(1.0))
    flags = ("--shards", sets / "bare", "--output", sets / "out", "--recompute")
    assert run(*flags).returncode == 0
    assert figures(sets / "out")[0]["rejects"]["reasons"]
    rejects, _ = sorted((sets / "bare" / "rejects").iterdir())
    rejects.unlink()
    done = run(*flags)
    assert done.returncode == 1 and f"{rejects}: cannot be read" in done.stdout
    (found,) = figures(sets / "out")
    assert found["rejects"]["count"] == 2 and sum(found["rejects"]["reasons"].values()) == 1


@pytest.mark.slow
def test_many_sets_are_merged_by_several_processes(run, sets):
    """In a process of its own, from which others can be forked: here may be Ray's threads."""
    for name in ("c", "d", "e"):
        shutil.copytree(sets / "a", sets / name)
    flags = ["--merge", "--output", sets / "out", "--shards", *(sets / name for name in "aced")]
    assert run(*flags).returncode == 0
    (one,) = figures(sets / "out")
    few = (
        "import runpy, pipeline.report.job as r; r.MANY = 4; runpy.run_path({!r}, None, '__main__')"
    )
    job = [sys.executable, "-c", few.format(str(JOB)), *map(str, flags)]

    def several() -> subprocess.CompletedProcess[str]:
        return subprocess.run(job, capture_output=True, text=True, timeout=100, check=False)

    done = several()
    assert done.returncode == 0, done.stderr
    assert figures(sets / "out") == [one] and one["documents"] == 48
    assert [source["name"] for source in one["sources"]] == list("aced")
    # What is wrong is told as it is by one process.
    (sets / "d" / "manifest.json").unlink()
    done = several()
    assert done.returncode == 2 and f"--shards {sets / 'd'}: no manifest.json" in done.stderr


def test_a_manifest_that_says_something_else_is_named(local_ray, run, sets):
    path = sets / "a" / "manifest.json"
    edit_json(path, lambda manifest: manifest["statistics"].update(patches=7))
    done = run("--shards", sets / "a", "--output", sets / "out", "--recompute")
    assert done.returncode == 1 and f"{path}: says " in done.stdout


@pytest.mark.parametrize(
    "damage, message",
    [
        ("summary", "manifest.json is damaged"),
        ("entry", "entries.arrow: is damaged (record batch 0 of 1: "),
        ("run", None),
    ],
)
def test_a_damaged_manifest_is_named(run, sets, damage, message):
    path = sets / "a" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["check"]
    if damage == "summary":
        manifest["summary"]["thresholds"]["counts"] = "AAAA"
    elif damage == "entry":
        manifest["entries"]["parts"]["hash"][0] = "0" * 16
    else:
        (sets / "a" / "runs").mkdir(exist_ok=True)
        (sets / "a" / "runs" / "x.json").write_text("{")
    path.write_text(json.dumps(manifest))
    done = run("--shards", sets / "a", "--output", sets / "out")
    if damage == "run":  # without which only the speed is not known
        assert done.returncode == 0 and "time not recorded" in done.stdout
    else:
        assert done.returncode in (1, 2) and message in done.stderr


def test_a_lost_shard_is_named(run, sets):
    lost = min((sets / "a" / "shards").iterdir())
    lost.unlink()
    done = run("--shards", sets / "a", "--output", sets / "out")
    assert done.returncode == 1 and f"{lost}: is missing" in done.stdout


def test_what_others_write_beside_a_report_stays(run, sets):
    other = sets / "out" / "_tmp" / "another's"
    other.parent.mkdir(parents=True)
    other.touch()
    assert run("--shards", sets / "a", "--output", sets / "out").returncode == 0
    assert [path.name for path in other.parent.iterdir()] == ["another's"]


@pytest.mark.ray  # which counting again imports
@pytest.mark.parametrize(
    "flags, said",
    [
        (["{a}", "nowhere"], "--shards nowhere"),
        (["{a}", "{b}", "--output", "{b}"], "--output {b}: is a shard set"),
        (["{a}", "{b}", "--merge"], "--merge: the rule of {a} is "),
        (["{a}", "--output", "{a}/manifest.json/x"], "{a}/manifest.json/x"),
    ],
)
def test_nothing_is_counted_again_for_a_wrong_flag(run, sets, monkeypatch, flags, said):
    monkeypatch.setattr("pipeline.report.recount.recompute", lambda *_: pytest.fail("it was"))
    names = {"a": sets / "a", "b": sets / "b"}
    output = [] if "--output" in flags else ["--output", sets / "out"]
    done = run("--recompute", "--shards", *(flag.format(**names) for flag in flags), *output)
    assert done.returncode in (1, 2) and said.format(**names) in done.stderr


def test_agreement_is_printed_and_on_the_page(run, sets):
    flags = ("--shards", sets / "a", sets / "b", "--output", sets / "out", "--agreement")
    done = run(*flags, "--loss-bytes", 500)
    assert done.returncode == 0, done.stderr
    report = json.loads((sets / "out" / "report.json").read_text())
    (found,) = report["agreement"]
    assert (found["reference"], found["other"]) == ("a", "b")
    assert found["overlap"]["common_documents"] == 12 and found["problems"] == []
    # The same entropies, cut where patches exceed 6 tokens.
    assert found["entropies"]["spearman"] == pytest.approx(1)
    total = found["equal_size"]["total"]
    assert total["chance_f1"] < 0.5 < total["f1"] < 1
    line = f"agreement of b and a, 12 common documents, patches of equal size: F1 {total['f1']:.3f}"
    assert line in done.stdout
    page = (sets / "out" / "index.html").read_text()
    assert "Agreement of b with a" in page and "By kind of byte" in page
    assert found["losses"]["other"]["note"] in page
    # Without the flag, nothing is compared, and the page says what would.
    assert run(*flags[:-1]).returncode == 0
    assert json.loads((sets / "out" / "report.json").read_text())["agreement"] == []
    assert "<code>--agreement</code> compares them" in (sets / "out" / "index.html").read_text()


def test_sets_without_a_common_document_are_named(run, sets, ngram_model: NGramEntropyModel):
    write_jsonl(sets / "others" / "x.jsonl", [("x", "another text")])
    tiny.make_shards(sets / "c", sets / "others", ngram_model, Patcher(1.0))
    flags = ("--output", sets / "out", "--agreement")
    done = run("--shards", sets / "a", sets / "c", sets / "b", *flags)
    assert done.returncode == 1
    assert f"{sets / 'c'}: none of the 12 documents" in done.stdout
    first, second = json.loads((sets / "out" / "report.json").read_text())["agreement"]
    assert first["as_stored"] is None and second["overlap"]["common_documents"] == 12
    assert "none of the 12 documents" in (sets / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--shards", "nowhere"], "--shards"),
        (["--shards", "{a}", "--agreement"], "--agreement: name two or more --shards"),
        (["--shards", "{a}", "{b}", "--agreement", "--merge"], "--agreement: compares sets"),
        (["--shards", "{a}", "{b}", "--documents", "5"], "--documents: only --agreement"),
        (["--shards", "{a}", "{b}", "--loss-bytes", "5"], "--loss-bytes: only --agreement"),
        (["--shards", "{a}", "{b}", "--agreement", "--documents", "0"], "--documents: must be"),
        (["--shards"], "--shards: name at least one"),
        (["--shards", "{a}", "--num-workers", "2"], "--num-workers: only --recompute has workers"),
        (["--shards", "{a}", "{a}/../a/"], "--shards: {a} is named 2 times"),
        (["--shards", "{a}", "--output", "{a}"], "--output {a}: is a shard set"),
        (["--shards", "{a}", "--output", "{a}/shards/x"], "--output {a}/shards/x: is a part of"),
        (["--shards", "{a}", "--target-patch-size", "0"], "--target-patch-size"),
        (["--shards", "{a}", "--context-bytes", "0"], "--context-bytes"),
        (["--shards", "{a}", "--tokenizer", "{a}"], "--tokenizer {a}: holds no tokenizer.json"),
        (["--shards", "{a}", "{b}", "--merge"], "--merge"),
        (["--shards", "s3://user:pass@bucket/x"], "no credentials in URLs"),
        (["--shards", "https://host/x?token=t"], "--shards https://host/x?…: no queries in URLs"),
    ],
)
def test_a_wrong_flag_is_named(run, sets, flags, said):
    names = {"a": sets / "a", "b": sets / "b"}
    output = [] if "--output" in flags else ["--output", sets / "out"]
    done = run(*(flag.format(**names) for flag in flags), *output)
    assert done.returncode == 2
    assert said.format(**names) in done.stderr
    assert not (sets / "out" / "index.html").exists()


def test_an_output_that_cannot_be_written_is_named(run, sets):
    (sets / "file").write_text("")
    done = run("--shards", sets / "a", "--output", sets / "file" / "out")
    assert done.returncode == 1 and str(sets / "file" / "out") in done.stderr
