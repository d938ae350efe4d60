"""The common part of the commands."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rich.console import Console
from support.jobs import ROOT, environment

from pipeline.cli.command import run_job

SCRIPT = """
from rich.console import Console
from pipeline.cli.command import run_command

def job():
    for _ in range(10_000):
        print("a line of many", flush={flush})
    {end}
    return 0

raise SystemExit(run_command(job, Console(stderr=True), interrupted=""))
"""


def run_with_reader_of_one_line(**changes: object) -> tuple[int, str]:
    """The exit status and standard error of a command whose output is read as ``head -1`` reads."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(**{"flush": False, "end": ""} | changes)],
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "a line of many\n"
    process.stdout.close()
    errors = process.stderr.read()
    return process.wait(), errors


def test_a_reader_that_is_gone_ends_a_command_in_silence():
    assert run_with_reader_of_one_line(flush=True) == (141, "")
    # The rest, which is written at the end, may still be in memory.
    assert run_with_reader_of_one_line()[1] == ""


def test_another_broken_pipe_is_an_error():
    """A connection's, for example: standard output is read to its end."""
    script = SCRIPT.format(flush=False, end="raise BrokenPipeError('the connection')")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "BrokenPipeError: the connection" in done.stderr


@dataclass
class Flags:
    """A job."""

    RENAMED: ClassVar[Mapping[str, str]] = {"--format": "--layout", "--no-keep": "--drop"}

    layout: str = "a"
    drop: bool = False


def test_flags_of_earlier_releases_are_taken_and_named(monkeypatch, capsys):
    def run(config: Flags, console: Console) -> int:
        assert config == Flags("b", True)
        return 0

    monkeypatch.setattr(sys, "argv", ["job", "--format=b", "--no-keep"])
    assert run_job(Flags, run) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "note: --format is called --layout now",
        "note: --no-keep is called --drop now",
    ]
    monkeypatch.setattr(sys, "argv", ["job", "--format=b", "--layout", "c"])
    assert run_job(Flags, run) == 2
    assert "error: --layout: is given more than once" in capsys.readouterr().err
