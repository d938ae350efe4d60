"""The common part of the commands."""

import math
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import tyro
from rich.console import Console
from support.jobs import ROOT, environment

from pipeline.cli.command import run_command, run_job
from pipeline.cli.flags import check_at_least, check_new_output
from pipeline.errors import ConfigError

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


@dataclass
class Places:
    """A job."""

    TEXTS: ClassVar[tuple[str, ...]] = ("--text",)

    input: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    num_workers: int = 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["--input", ""], "--input: has an empty value"),  # "$UNSET" of a shell
        (["--input="], "--input: has an empty value"),
        (["--input", "a", "", "--text", "b"], "--input: has an empty value"),
        (["", "--input", "a"], "the command line: has an empty value"),
        (["--num_workers", "1", "--num-workers", "2"], "--num-workers: is given more than once"),
        (["--input", "a", "--text", "", "b"], None),
    ],
)
def test_empty_values_and_flags_given_twice_are_refused(monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["job", *words])
    assert run_job(Places, lambda config, console: 0) == (2 if said else 0)
    assert said is None or f"error: {said}" in capsys.readouterr().err


def test_a_home_directory_is_meant_wherever_it_stands(monkeypatch):
    """A shell leaves --input=~/a as it is."""

    def run(config: Places, console: Console) -> int:
        assert config.input == ("/home/me/a", "/home/me", "b~/c", "~d") and config.text == ("~/e",)
        return 0

    monkeypatch.setenv("HOME", "/home/me")
    words = ["--input", "~/a", "~", "b~/c", "~d", "--text", "~/e"]
    monkeypatch.setattr(sys, "argv", ["job", *words])
    assert run_job(Places, run) == 0
    monkeypatch.setattr(sys, "argv", ["job", "--input=~/a"])
    assert run_job(Places, lambda config, console: config.input != ("/home/me/a",)) == 0


def test_refusals_have_no_colours_where_nobody_wants_them(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "argv", ["job", "--nothing"])
    options = dict(tyro._experimental_options) | {"ansi_codes": True}
    for no_color, coloured in (("", True), ("1", False)):
        monkeypatch.setattr("tyro._experimental_options", dict(options))
        monkeypatch.setattr("tyro._settings._experimental_options", tyro._experimental_options)
        monkeypatch.setenv("NO_COLOR", no_color)
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        with pytest.raises(SystemExit):
            run_job(Places, lambda config, console: 0)
        assert ("\x1b[" in capsys.readouterr().err) == coloured


@pytest.mark.parametrize("number", [0.5, math.nan, math.inf, -math.inf])
def test_numbers_below_a_limit_infinite_or_none_are_refused(number):
    with pytest.raises(ConfigError, match=f"^--size: must be at least 1, got {number}$"):
        check_at_least(SimpleNamespace(size=number), size=1)


def test_numbers_that_torch_does_not_take_are_refused():
    """A seed of 25 digits was a traceback of torch.manual_seed."""
    check_at_least(SimpleNamespace(seed=(1 << 63) - 1), seed=0)
    with pytest.raises(ConfigError, match=r"^--seed: must be below 2\*\*63, got 9"):
        check_at_least(SimpleNamespace(seed=1 << 63), seed=0)


def run_script(script: str, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env=environment(PYTHONPATH=str(ROOT)),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("lines", [1, 10_000])  # written at the end, and meanwhile
def test_output_that_a_full_disk_does_not_take_is_an_error(lines):
    script = SCRIPT.format(flush=False, end="").replace("10_000", str(lines))
    with Path("/dev/full").open("w") as full:
        done = run_script(script, full)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr


def test_a_gpu_without_memory_is_told(capsys):
    """By jobs that know nothing of it; other errors of torch stay what they are."""

    def job(error: Exception) -> int:
        raise error

    full = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 384.00 MiB. GPU 0 has a total capacity of 15.77 GiB "
        "of which 21.19 MiB is free. Including non-PyTorch memory, this process has 2.42 GiB"
    )
    console = Console(stderr=True, width=300)
    assert run_command(lambda: job(full), console, interrupted="") == 1
    assert capsys.readouterr().err == (
        "error: the GPU has no memory for this: CUDA out of memory. Tried to allocate 384.00 MiB. "
        "GPU 0 has a total capacity of 15.77 GiB of which 21.19 MiB is free; end what else runs "
        "there, or ask for less at a time\n"
    )
    with pytest.raises(RuntimeError, match="other"):
        run_command(lambda: job(RuntimeError("other")), console, interrupted="")


def test_what_a_job_says_is_no_markup(monkeypatch, capsys):
    @dataclass(frozen=True)
    class Config:
        output: str = "runs[/v2]/set[b]"

    def run(config: Config, console: Console) -> int:
        console.print(f"continuing the run in {config.output}", highlight=False)
        return 0

    monkeypatch.setattr(sys, "argv", ["job.py"])
    assert run_job(Config, run) == 0
    assert capsys.readouterr().err == "continuing the run in runs[/v2]/set[b]\n"


def test_sigterm_behind_ctrl_c_while_ray_starts_is_an_interruption(capsys):
    """Ray's handler, which is there meanwhile, exits from within the cleaning: with 15, and without
    a word."""

    def job(status: int) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            sys.exit(status)

    console = Console(stderr=True)
    assert run_command(lambda: job(signal.SIGTERM), console, interrupted="run it again") == 143
    assert capsys.readouterr().err == "run it again\n"
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: job(2), console, interrupted="run it again")


def test_a_job_ends_although_its_output_is_closed():
    script = SCRIPT.format(flush=False, end="")
    done = run_script(f"import sys; sys.stdout = None\n{script}")
    assert (done.returncode, done.stderr) == (0, "")


LEAVING = """
import sys
from pipeline.cli.command import BEFORE_LEAVING, leave

def fail():
    raise RuntimeError("a callback")

BEFORE_LEAVING += [lambda: print("first", flush=True), fail, lambda: print("last", flush=True)]
print("still in memory")
{last}
leave(3)
"""


def test_leaving_keeps_the_status_and_runs_all_callbacks():
    done = run_script(LEAVING.format(last=""))
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == "still in memory\nfirst\nlast\n"


def test_leaving_keeps_the_status_when_it_is_interrupted():
    done = run_script(
        LEAVING.format(last="def fail(): raise KeyboardInterrupt\nBEFORE_LEAVING[:] = [fail]")
    )
    assert (done.returncode, done.stdout) == (3, "still in memory\n")


def test_an_output_is_looked_at_before_long_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_new_output(tmp_path / "new" / "below")
    for path, why in (
        ("file", "exists; give another"),
        ("file/x", "cannot be written: .*/file is no directory"),
    ):
        with pytest.raises(ConfigError, match=f"^--output: .*{path} {why}"):
            check_new_output(tmp_path / path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests' user may do all
    with pytest.raises(ConfigError, match=r"^--output: .*x cannot be written: .* may not be"):
        check_new_output(tmp_path / "x")


@pytest.mark.parametrize(
    ("job", "config", "flags"),
    [
        ("distil_entropy_model", "DistilEntropyModelConfig", {"shards": ("there",)}),
        ("train_tokenizer", "TrainTokenizerConfig", {"shards": ("there",)}),
        ("download_weights", "DownloadWeightsConfig", {}),
    ],
)
def test_a_url_is_no_path_on_this_machine(job, config, flags, tmp_path, monkeypatch):
    """As a path it would be a directory called s3: below the working directory."""
    monkeypatch.chdir(tmp_path)
    space = runpy.run_path(str(ROOT / "jobs" / f"{job}.py"))
    given = space[config](output="s3://bucket/model", **flags)
    with pytest.raises(ConfigError, match=r"^--output: s3://bucket/model is a URL; give a"):
        space["run"](given, Console(quiet=True))
    assert not list(tmp_path.iterdir())
