"""Jobs run as users run them: in a process of their own, or in this one for speed."""

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "patch_corpus.py"


RAY_SETTINGS = {
    # Ray would report to its makers that tests run, by a process of its own.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its workers would give way to all other processes, and tests wait for them.
    "RAY_worker_niceness": "0",
    # Metrics would be exported every ten seconds.
    "RAY_metrics_report_interval_ms": "1000",
    # A process of each training would watch for nodes that their owner takes back.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Environment variables of each Ray that tests start."""


def environment(**more: str) -> dict[str, str]:
    """The environment of a user without a cluster and without our tests' settings: it is the same
    for all tests, so that they can share a Ray that was started with it."""
    ours = ("RAY_", "PYTEST_", "PYTHONBREAKPOINT")  # the last one is Ray's, too
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return kept | {"COLUMNS": "200"} | RAY_SETTINGS | more


def hear_ctrl_c() -> None:
    """To be called in a new process: where tests run in the background they are deaf to it, and so
    is what they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


RunJob = Callable[..., subprocess.CompletedProcess[str]]


def command(*arguments: object, job: Path = JOB) -> list[str]:
    return [sys.executable, str(job), *map(str, arguments)]


def job_alone(job: Path) -> RunJob:
    """A job in a process of its own, as a user runs it; gives the finished process."""

    def run(*arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(*arguments, job=job),
            env=env or environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def job_here(job: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> RunJob:
    """A job in this process, which has loaded its libraries and started Ray already."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", [str(job), *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr("pipeline.cli.command.leave", sys.exit)  # this process goes on
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(job), run_name="__main__")
        said = capsys.readouterr()
        return subprocess.CompletedProcess(sys.argv, ended.value.code, said.out, said.err)

    return run


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an object in a file as somebody who knows the format does: its ``check`` goes."""
    values = json.loads(path.read_text())
    values.pop("check", None)
    change(values)
    path.write_text(json.dumps(values))


def files_below(directory: Path) -> dict[str, bytes]:
    """All files, by their paths within the directory."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def contents(output: Path) -> dict[str, bytes]:
    """Everything that a run promises to make the same each time."""
    kept = ("shards", "rejects", "summaries", "entries", "manifest.json")
    kept += ("entries.arrow", "batches.arrow")
    return {n: data for n, data in files_below(output).items() if Path(n).parts[0] in kept}
