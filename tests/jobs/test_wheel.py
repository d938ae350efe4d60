"""The wheel, installed beside a user's own modules: it patches, reports, trains and generates."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.jobs import ROOT, environment
from support.texts import topics, write_jsonl

from pipeline.cli.commands import COMMANDS

PROGRAM = """
import importlib, json, sys

def run(command, *flags):
    sys.argv = [f"blt-titan {command}", *flags]
    job = importlib.import_module(f"blt_titan.jobs.{COMMANDS[command].job}")
    status = job.main()
    assert status == 0, (command, status)

if __name__ == "__main__":
    import model, pipeline, train  # the user's own

    from blt_titan.pipeline.cli.commands import COMMANDS
    from blt_titan.pipeline import open_shards

    run("patch", "--input", "corpus.jsonl", "--output", "shards", "--threshold", "2")
    assert all(document.text for document in open_shards("shards"))
    run("report", "--shards", "shards", "--output", "page")
    run("view", "--write-space", "space")
    run("pretrain", "--config", "blt_debug", "--dataloader.shards", "shards",
        "--dump-folder", "run", "--training.steps", "10", "--training.seq-len", "128",
        "--training.local-batch-size", "2", "--metrics.log-freq", "1",
        "--checkpoint.interval", "10", "--num-workers", "1")
    run("convert", "--checkpoint", "run/checkpoint/step-10", "--output", "weights")
    run("generate", "--model", "weights", "--entropy-model", "entropy-1m",
        "--prompt", "The", "--max-new-bytes", "8", "--json")
    theirs = [module.OWN for module in (model, pipeline, train)]
    ours = [name for name in sys.modules if name.startswith(("model.", "pipeline.", "train."))]
    print(json.dumps([theirs, ours]))
    importlib.import_module("blt_titan.jobs.pretrain").leave(0)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A directory with the wheel, built and installed by pip."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("blt_titan-*.whl")
    install = ["install", "--no-deps", "--no-index", "--no-compile", "--target", folder / "site"]
    subprocess.run([*pip, *install, wheel], check=True)
    return folder / "site"


def test_the_wheel_installs_one_package_and_one_command(installed):
    assert {path.name for path in installed.iterdir() if "dist-info" not in path.name} == {
        "bin",
        "blt_titan",
    }
    assert [path.name for path in (installed / "bin").iterdir()] == ["blt-titan"]
    assert not (installed / "blt_titan" / "jobs" / "demo.py").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 0, "usage: blt-titan COMMAND"),
        (["patch", "--help"], 0, "usage: blt-titan patch"),
        (["plan", "--help"], 0, "usage: blt-titan plan"),
        (["pach"], 2, "did you mean patch?"),
        (["patch_report.py"], 2, "did you mean report?"),
        (["--version"], 0, "blt-titan "),
    ],
)
def test_the_command(installed, arguments, status, said):
    program = [installed / "bin" / "blt-titan", *arguments]
    done = subprocess.run(
        program,
        env=environment(PYTHONPATH=str(installed)),
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr if status == 0 else "") == (status, "")
    assert said in done.stdout + done.stderr
    if not arguments:
        assert all(f"  {name} " in done.stdout for name in COMMANDS)
    if "--help" in arguments:
        assert "jobs/" not in done.stdout


def test_the_wheel_works_beside_a_users_modules(installed, tmp_path):
    for name in ("model", "pipeline", "train"):
        (tmp_path / f"{name}.py").write_text(f"OWN = 'my {name}'\n")
    (tmp_path / "work.py").write_text(PROGRAM)
    write_jsonl(tmp_path / "corpus.jsonl", [(name, text[:1000]) for name, text in topics()[:20]])
    done = subprocess.run(
        [sys.executable, "work.py"],
        env=environment(
            PYTHONPATH=os.pathsep.join([str(tmp_path), str(installed)]),
            RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1",  # as users have it, and other tests do not
        ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == '[["my model", "my pipeline", "my train"], []]'
    assert "look at them: blt-titan report --shards" in done.stdout
    assert "10 steps done" in done.stdout
    assert (tmp_path / "page" / "index.html").exists()
    app = (tmp_path / "space" / "app.py").read_text()
    assert "from blt_titan.pipeline.viewer.page import serve" in app
    assert (tmp_path / "space" / "blt_titan" / "pipeline" / "viewer" / "page.py").exists()
