"""The evaluation job as a user runs it: results, exit statuses, messages."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from support import tiny
from support.jobs import ROOT, environment
from support.texts import topics, write_jsonl

from model import NGramEntropyModel, Patcher, save_blt, save_entropy_model

JOB = ROOT / "jobs" / "evaluate.py"


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """Models of all kinds, text, and shards of it."""
    directory = tmp_path_factory.mktemp("evaluate")
    entropy_model, rule = tiny.entropy_model(), Patcher(tiny.THRESHOLD)
    blt = tiny.blt(patch_provenance=(tiny.record(entropy_model),))
    save_blt(blt, directory / "blt")
    save_blt(blt, directory / "both", layout="transformers", entropy_model=entropy_model)
    save_blt(tiny.blt(patcher=None), directory / "no-rule")
    save_entropy_model(entropy_model, directory / "entropy")
    for name, part in (("a", topics()[:3]), ("b", topics()[6:8])):
        short = [(name, text[:1500]) for name, text in part]
        write_jsonl(directory / "in" / f"{name}.jsonl", short)
    inputs = directory / "in"
    tiny.make_shards(directory / "shards", inputs, entropy_model, rule, keep_columns=("id",))
    tiny.make_shards(directory / "thin", inputs, entropy_model, rule, drop_entropies=True)
    return directory


class Ran:
    """What a run said."""

    def __init__(self, status: int, out: str, error: str):
        self.status, self.out = status, out
        self.error = " ".join(error.split())  # as if the terminal were wide


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the job in this process: importing torch takes longer than what is tested."""
    spec = importlib.util.spec_from_file_location("evaluate_job", JOB)
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", [str(JOB), *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        try:
            status = job.main()
        except SystemExit as stopped:  # from the parser of flags
            status = stopped.code
        return Ran(status, *capsys.readouterr())

    return run


@pytest.mark.slow
def test_text_as_a_user_runs_it(there):
    flags = ("--model", there / "blt", "--entropy-model", there / "entropy")
    done = subprocess.run(
        [sys.executable, JOB, *flags, "--input", there / "in"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines[1:4]] == ["a.jsonl", "b.jsonl", "all"]
    assert "bits per byte" in done.stdout and "0.95 interval" in done.stdout
    value, low, high = (float(lines[3][i]) for i in (1, 2, 4))
    assert low <= value <= high
    assert lines[3][5] == "5" and "bytes/s" in lines[4]


def test_json_by_source_and_the_model_s_own_entropy_model(there, run):
    flags = ("--input", there / "in", "--json", "--context", 700, "--seed", 3)
    apart = run("--model", there / "blt", "--entropy-model", there / "entropy", *flags)
    both = run("--model", there / "both", *flags)
    assert apart.status == both.status == 0
    one, other = json.loads(apart.out), json.loads(both.out)
    timed = ("seconds", "bytes_per_second")
    assert {k: v for k, v in one.items() if k not in timed} == {
        k: v for k, v in other.items() if k not in timed
    }
    assert one["complete"] and one["failures"] == [] and one["rejects"] == 0
    assert one["bytes_per_second"] > 0
    low, high = one["interval"]
    assert low < one["bits_per_byte"] < high
    assert one["bytes"] == sum(of["bytes"] for of in one["sources"].values())
    assert one["mean_patch_bytes"] == one["bytes"] / one["patches"]
    by = run("--model", there / "both", *flags, "--by", "id")
    found = json.loads(by.out)
    assert list(found["sources"]) == sorted(name for name, _ in topics()[:3] + topics()[6:8])
    assert found["bits_per_byte"] == one["bits_per_byte"]
    narrow = json.loads(run("--model", there / "both", *flags, "--confidence", 0.5).out)
    assert low < narrow["interval"][0] < narrow["interval"][1] < high


def test_shards_and_text_agree(there, run):
    text = run("--model", there / "both", "--input", there / "in", "--json")
    shards = run("--model", there / "blt", "--shards", there / "shards", "--json")
    assert text.status == shards.status == 0
    one, other = json.loads(text.out), json.loads(shards.out)
    assert one["bits_per_byte"] == pytest.approx(other["bits_per_byte"], rel=1e-6)
    assert (one["patches"], list(one["sources"])) == (other["patches"], list(other["sources"]))
    stored = ("--model", there / "blt", "--shards", there / "shards", "--json")
    assert len(json.loads(run(*stored, "--by", "id").out)["sources"]) == 5
    finer = run(*stored, "--threshold", 4.3)
    assert json.loads(finer.out)["patches"] > other["patches"]
    assert finer.error.count("note: ") == 1 and "note:" not in shards.error + text.error
    assert (
        "note: the rule of the checkpoint is global (threshold 4.49), that of the shards is global "
        "(threshold 4.3)"
    ) in finer.error


def test_the_entropy_model_is_the_one_trained_with(there, run, tmp_path):
    other = tiny.entropy_model()
    tiny.sharpen(other, 1.01)
    save_entropy_model(other, tmp_path / "other")
    tiny.make_shards(tmp_path / "shards", there / "in", other, Patcher(tiny.THRESHOLD))
    name = tiny.record(other).entropy_model.fingerprint[:12]
    trained = tiny.record(tiny.entropy_model()).entropy_model
    given = ("--input", there / "in", "--entropy-model", tmp_path / "other")
    for flags, flag, of, source in (
        (given, "--entropy-model", "this run", tmp_path / "other"),
        (("--shards", tmp_path / "shards"), "--shards", "the shards", "tiny"),
    ):
        done = run("--model", there / "blt", *flags)
        assert done.status == 2 and done.out == ""
        assert done.error == (
            f"error: {flag}: the entropy model of the checkpoint is {trained}, that of {of} is "
            f"{source} (fingerprint {name}); take those that the model was trained with, or go on "
            "all the same (--allow-other-entropies)"
        )
        allowed = run("--model", there / "blt", *flags, "--allow-other-entropies")
        assert allowed.status == 0 and "note: the entropy model of the checkpoint" in allowed.error
    # A directory of another name or layout may hold the same model.
    save_entropy_model(tiny.entropy_model(), tmp_path / "same", layout="transformers")
    flags = ("--input", there / "in", "--entropy-model", tmp_path / "same", "--threshold", 4.3)
    done = run("--model", there / "blt", *flags)
    assert done.status == 0 and done.error.count("note: ") == 1
    assert "that of this run is global (threshold 4.3)" in done.error


def test_a_checkpoint_without_a_record_cannot_be_compared(there, run, tmp_path):
    save_blt(tiny.blt(), tmp_path / "old")
    save_blt(tiny.blt(patcher=None), tmp_path / "older")
    text = ("--input", there / "in", "--entropy-model", there / "entropy")
    text += ("--threshold", tiny.THRESHOLD)
    for model, data, said in (
        ("old", text, "its entropy model: that of this run is not compared"),
        ("old", ("--shards", there / "shards"), "its entropy model: that of the shards is not"),
        ("older", text, "its patches: those of this run are not compared"),
        ("older", ("--shards", there / "shards"), "its patches: those of the shards are not"),
    ):
        done = run("--model", tmp_path / model, *data)
        assert done.status == 0 and done.error.count("note: ") == 1, done.error
        assert f"note: the checkpoint does not record {said}" in done.error


def test_contexts_of_the_entropies_are_as_recorded(there, run, tmp_path):
    entropy_model = tiny.entropy_model()
    one = tiny.record(entropy_model)
    reset = replace(one, entropy_model=replace(one.entropy_model, reset_at_newline=True))
    for name, record in (("reset", reset), ("plain", one)):
        blt = tiny.blt(patch_provenance=(record,))
        save_blt(blt, tmp_path / name, entropy_model=entropy_model)
    data = ("--input", there / "in", "--json")
    recorded = run("--model", tmp_path / "reset", *data)
    again = run("--model", tmp_path / "reset", *data, "--reset-at-newline")
    assert recorded.status == again.status == 0 and "note:" not in recorded.error + again.error
    patches = {json.loads(done.out)["patches"] for done in (recorded, again)}
    plain = run("--model", tmp_path / "plain", *data)
    assert len(patches) == 1 and json.loads(plain.out)["patches"] not in patches
    refused = run("--model", tmp_path / "plain", *data, "--reset-at-newline")
    assert refused.status == 2
    assert "the entropies of this run start again after each newline, those of" in refused.error


def test_an_entropy_model_is_evaluated_without_patches(there, run):
    for data in (("--input", there / "in"), ("--shards", there / "shards")):
        done = run("--model", there / "entropy", *data)
        assert done.status == 0, done.error
        cells = next(line.split() for line in done.out.splitlines() if line.startswith("all"))
        assert cells[-1] == "-" and 5 < float(cells[1]) < 15
    wrong = run("--model", there / "entropy", "--input", there / "in", "--threshold", 1.0)
    assert wrong.status == 2 and "--threshold:" in wrong.error and "without patches" in wrong.error


def test_what_is_lost_is_told(there, run, tmp_path):
    text = tmp_path / "mixed.jsonl"
    text.write_text('{"text": "fine"}\n' + '{"text": null}\n' * 12 + "{broken\n")
    flags = ("--model", there / "both")
    done = run(*flags, "--input", text)
    assert done.status == 0
    assert "rejected documents: 13" in done.out and "and 3 more" in done.out
    assert "mixed.jsonl, position 17: 'text' is null" in done.out
    listed = json.loads(run(*flags, "--input", text, "--json").out)
    assert listed["rejects"] == len(listed["rejected"]) == 13 and listed["complete"]
    stopped = run(*flags, "--input", text, "--on-bad-document", "fail")
    assert stopped.status == 1 and "position 17" in stopped.error
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1")
    done = run(*flags, "--input", text, bad)
    assert done.status == 1 and "failed:" in done.out and "bad.parquet" in done.out
    (tmp_path / "more").mkdir()
    for name, data in (("a.jsonl", text.read_bytes()), ("b.zip", b"PK")):
        (tmp_path / "more" / name).write_bytes(data)
    done = run(*flags, "--input", tmp_path / "more")
    assert f"not read: 1 file, in no known format: {tmp_path}/more/b.zip" in done.error
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_text("")
    done = run(*flags, "--input", nothing)
    assert done.status == 1 and "no text to score" in done.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model M/blt", "--input: give one of --input (text), --shards and --harness-tasks"),
        ("--model M/both --input M/in --shards M/shards", "--input and --shards: give one of"),
        ("--model M/blt --input M/in", "--entropy-model: M/blt: holds no entropy model"),
        ("--model M/no-rule --input M/in --entropy-model M/entropy", "--threshold: the checkpoint"),
        ("--model M/both --input M/none", "--input M/none: no such file"),
        ("--model M/both --input M/in --text-column body", "--text-column: no input file has"),
        ("--model M/both --input M/in --by lang", "--by: no input file has a column 'lang'"),
        ("--model M/in --input M/in", "--model: M/in: no BLT in a known layout"),
        ("--model M/none --input M/in", "--model: M/none: no such directory"),
        ("--model M/blt --input M/in --entropy-model M/blt", "--entropy-model: M/blt: "),
        ("--model M/blt --shards M/in", "--shards M/in: no manifest.json"),
        ("--model M/blt --shards M/shards --by lang", "--by: the shards have no column 'lang'"),
        ("--model M/blt --shards M/thin --threshold 4", "--threshold: the shards were written"),
        ("--model M/blt --shards M/shards --entropy-model M/entropy", "--entropy-model: the patch"),
        ("--model M/blt --shards M/shards --rule space", "--rule: the patches of --shards"),
        ("--model M/both --input M/in --rule none", "--rule: 'none' is not one of global, "),
        ("--model M/both --input M/in --rule monotonic", "--threshold: the monotonic rule needs"),
        ("--model M/both --input M/in --rule top-k", "--rule: the top-k rule also has patch_size"),
        ("--model M/entropy --input M/in --rule space", "--rule: M/entropy is an entropy model"),
        ("--model M/blt --shards M/shards --context 1", "--context: must be at least 2 bytes"),
        ("--model M/blt --shards M/shards --confidence 95", "--confidence: must lie between"),
        ("--model M/blt --shards M/shards --seed -1", "--seed: must not be negative"),
        ("--model M/blt --shards M/shards --text-column a", "--text-column: only --input read"),
        ("--model M/blt --shards M/shards --input-format csv", "--input-format: only --input"),
        ("--model M/blt --harness-tasks x --by id", "--by: only --input and --shards read it"),
        ("--model M/both --input M/in --max-document-bytes 0", "--max-document-bytes: from 1"),
    ],
)
def test_wrong_flags_are_named(there, run, flags, message):
    done = run(*flags.replace("M/", f"{there}/").split())
    assert done.status == 2
    assert f"error: {message}".replace("M/", f"{there}/") in done.error
    assert done.out == ""


def test_an_ngram_model_has_no_bits_per_byte(there, run, tmp_path, ngram_model: NGramEntropyModel):
    save_entropy_model(ngram_model, tmp_path / "ngram")
    done = run("--model", tmp_path / "ngram", "--input", there / "in")
    assert done.status == 2 and "n-gram model: it gives entropies" in done.error
    # As the model that places the boundaries it will do.
    flags = ("--entropy-model", tmp_path / "ngram", "--threshold", 2.0, "--allow-other-entropies")
    done = run("--model", there / "blt", "--input", there / "in", *flags)
    assert done.status == 0


def test_a_model_at_a_url_is_called_by_its_url(there, run):
    store = fsspec.filesystem("memory")
    for name in ("both", "blt"):
        store.put(str(there / name), f"/models/{name}", recursive=True)
    data = ("--input", there / "in", "--json")
    assert run("--model", "memory://models/both", *data).status == 0
    done = run("--model", "memory://models/blt", *data)
    assert (
        done.status == 2
        and "--entropy-model: memory://models/blt: holds no entropy model" in done.error
    )
    done = run("--model", "memory://models/none", *data)
    assert done.status == 2 and "--model: cannot read the model in memory://models" in done.error


def test_harness_tasks_need_lm_eval(there, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.utils", None)
    done = run("--model", there / "both", "--harness-tasks", "anything")
    assert done.status == 2
    assert "--harness-tasks: lm-eval cannot be imported" in done.error and "harness" in done.error


def test_results_of_tasks_are_json_for_every_reader(there, run, monkeypatch):
    """A metric may have no value, such as the deviation over a single document."""
    from pipeline.evaluate import harness

    found = {"results": {"task": {"f1,none": float("nan"), "acc,none": 0.5}}, "configs": {}}
    monkeypatch.setattr(harness, "evaluate_tasks", lambda config: found)
    done = run("--model", there / "both", "--harness-tasks", "task", "--json")
    values = json.loads(done.out, parse_constant=pytest.fail)
    assert values == {"results": {"task": {"f1,none": None, "acc,none": 0.5}}}


def test_help_tells_of_windows(run, capsys):
    done = run("--help")
    assert done.status == 0
    text = " ".join(done.out.split())
    assert "at least half a context before it" in text and "--harness-tasks" in text
