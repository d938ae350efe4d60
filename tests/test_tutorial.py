"""docs/tutorial.md: its commands, run in their order at a small size."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pictures import tutorial
from pictures.tutorial import PAGE, shown
from support.jobs import ROOT, environment, job_here
from support.pages import blocks_of, with_outputs

from pipeline import open_shards

SMALLER = {
    "dict(pydoc_data.topics.topics)": "dict(sorted(pydoc_data.topics.topics.items())[:25])",
    '"[a-z]*.py"': '"a*.py"',
    "--validation-documents 40": "--validation-documents 3",
    "--training.steps 600": "--training.steps 2",
    "step-600": "step-2",
    "--max-new-bytes 400": "--max-new-bytes 12",
}


def commands(script: str) -> list[list[str]]:
    """The commands of a block, each as a list of words; the code of a here-document is a word."""
    document = re.fullmatch(r"python - <<'END'\n(.*)END\n", script, re.DOTALL)
    if document:
        return [["python", "-c", document[1]]]
    lines = re.sub(r"(\\|\|\|)\n\s*", r"\1 ", script).replace("\\ ", "").splitlines()
    return [shlex.split(line.rpartition("|| ")[2]) for line in lines]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command as from the repository, in an empty directory; gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def of(words: list[str]) -> str:
        assert words[0] == "python"
        if words[1].startswith("jobs/"):
            done = job_here(ROOT / words[1], monkeypatch, capsys)(*words[2:])
        else:
            assert words[1] in ("-c", "-m")
            done = subprocess.run(
                [sys.executable, *words[1:]],
                env=environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"),
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return of


def test_the_whole_story(local_ray, run):
    page = PAGE.read_text()
    for old, new in SMALLER.items():
        assert page.count(old) >= 1, f"the page does not say {old!r} any more"
        page = page.replace(old, new)
    jobs = {}
    for block in blocks_of(page):
        for words in commands(block.script):
            jobs[Path(words[1]).name] = run(words)
    assert list(jobs) == [
        *("-c", "prepare_corpus.py", "patch_corpus.py", "patch_report.py", "-m"),
        *("convert_checkpoint.py", "generate.py", "evaluate.py", "export_shards.py"),
    ]
    shards = open_shards("tutorial/patched")
    assert shards.statistics.mean_patch_bytes == pytest.approx(4.5, rel=0.05)
    assert "entropy_model/model.safetensors" in jobs["convert_checkpoint.py"]
    assert re.search(r"^\d+ bytes in", jobs["generate.py"], re.MULTILINE)
    # The same rule and model place the patches of text that was held out.
    assert "note:" not in jobs["evaluate.py"]
    bits = re.search(r"corpus.val.parquet|all +(\d\.\d+)", jobs["evaluate.py"])
    assert bits, jobs["evaluate.py"]
    assert jobs["-c"].startswith("['sample_id', 'text', ")


def test_the_page_shows_what_was_printed():
    blocks = blocks_of(PAGE.read_text())
    assert len(blocks) == 9
    assert all(block.shown and block.shown.strip() for block in blocks)
    page = "a\n\n```sh\none\n```\n\n```text\nold\n```\n\n```sh\ntwo\n```\n"
    assert with_outputs(page, ["new", "not shown"]) == page.replace("old", "new")


def test_ctrl_c_ends_it_without_a_traceback(monkeypatch, capsys):
    def stopped(script: str):
        raise KeyboardInterrupt

    monkeypatch.setattr(tutorial, "run", stopped)
    assert tutorial.main() == 130
    assert capsys.readouterr().out.endswith("stopped; the same command goes on from here\n")


def test_most_of_a_training_s_log_is_left_out():
    steps = "".join(
        f"[titan] now - root - INFO - \x1b[31mstep: {n}  loss: 5\n"
        f"[titan] now - root - INFO - \x1b[32m{n}.5 bits per byte\x1b[39m, 9 bytes/s\n"
        for n in range(1, 41)
    )
    lines = shown(f"[titan] now - root - INFO - begins\n{steps}").splitlines()
    assert lines[0] == "step 1: 1.5 bits per byte, 9 bytes/s"
    assert lines[-1] == "step 40: 40.5 bits per byte, 9 bytes/s" and len(lines) == 10
    working = "patching: 0.5 of about 2.0 MB · 0.10 MB/s · about 0 min left"
    assert shown(f"{working}\nin {ROOT}/tutorial/x  \n") == "in tutorial/x"
