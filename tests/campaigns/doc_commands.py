"""``make doc-commands``: type every command of every page, as a new user does.

A page's commands run in its order in a fresh checkout, with the files that the page takes for
granted, at a small size; tests/support/page_commands.py and page_world.py say what is changed for
that. Each command's line says whether it *ran*, *failed* or was *not run*, and why. Variables that
a command exports are those of the commands after it. The exit status is 0 if none failed.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import httpx
from support.jobs import ROOT
from support.page_commands import PAGES, Command, commands

SECONDS = 900
"""Time after which a command counts as hanging."""
LAST_LINES = 25
RUN = 'set -o pipefail\n{}\nstatus=$?\nenv -0 > "$KEPT"\nexit $status\n'


@dataclass
class Result:
    """What came of a command."""

    command: Command
    outcome: str
    """``ran``, ``failed`` or ``not run``."""
    said: str = ""
    """Why it was not run, or the last lines of what it printed."""
    seconds: float = 0.0

    def __str__(self) -> str:
        first, *more = self.command.text.splitlines()
        lines = [f"{self.outcome:8}{self.seconds:6.1f} s  {first}{' …' if more else ''}"]
        if self.outcome != "not run" and self.command.small != self.command.text:
            lines.append(f"{'as':>16}  {self.command.small.splitlines()[0] if not more else '…'}")
        if self.outcome != "ran":
            lines += [f"{'':18}{line}" for line in self.said.splitlines()]
        return "\n".join(lines)


def run(command: Command, directory: Path, variables: dict[str, str]) -> Result:
    """Run a command in a directory; ``variables`` become those that it leaves."""
    if why := command.not_run:
        return Result(command, "not run", why)
    began = time.monotonic()
    text = command.small
    if command.python:
        (directory / "snippet.py").write_text(text)
        text = "python snippet.py"
    elif command.serves:
        text = f"exec {text} --port 0"
    # Beside the checkout: `ray job submit` sends it, and fails if it changes meanwhile.
    kept, log = directory.with_suffix(".variables"), directory.with_suffix(".log")
    kept.unlink(missing_ok=True)
    with log.open("wb") as printed:
        process = subprocess.Popen(
            ["bash", "-c", RUN.format(text)],
            cwd=directory,
            env=variables | {"KEPT": str(kept)},
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if command.serves:
                problem = served(process, log)
            else:
                status = process.wait(SECONDS)
                problem = f"exit status {status}" if status else ""
        except subprocess.TimeoutExpired as error:
            problem = f"not done after {error.timeout:g} s"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - began
    if problem:
        lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return Result(command, "failed", "\n".join([problem, *lines]), seconds)
    if kept.exists():
        left = (each.partition("=") for each in kept.read_text().split("\0") if each)
        variables.update({name: value for name, _, value in left if name not in ("_", "SHLVL")})
    return Result(command, "ran", seconds=seconds)


def served(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for the page that a server names, and stop it with Ctrl-C; gives what went wrong, or
    nothing."""
    for _ in range(240):
        if process.poll() is not None:
            return f"exit status {process.returncode} before its page was there"
        named = re.search(r"^page: (http://\S+)", log.read_text(errors="replace"), re.MULTILINE)
        try:
            answer = httpx.get(named[1] if named else "", trust_env=False, timeout=10)
        except httpx.TransportError:  # also if no page is named yet
            time.sleep(0.5)
            continue
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
        if not answer.is_success:
            return f"its page has the status {answer.status_code}"
        return "" if status in (0, 130) else f"exit status {status} after Ctrl-C"
    raise subprocess.TimeoutExpired(process.args, 120)


def try_page(page: Path, world, directory: Path) -> Iterator[Result]:
    """Run the commands of a page."""
    typed = list(commands(page))
    if not typed:
        return
    world.checkout(directory)
    world.give(str(page.relative_to(ROOT)), directory)
    variables = world.variables | {"PYTHONPATH": str(directory)}
    if any(re.search(r"\$(HEAD_NODE|JOB_SERVER)", command.small) for command in typed):
        variables |= world.cluster
    for command in typed:
        yield run(command, directory, variables)


def main() -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--page", nargs="+", type=Path, metavar="PAGE", help="default: all")
    parser.add_argument("--keep", type=Path, help="an empty directory, which keeps what pages made")
    flags = parser.parse_args()
    pages = [page.resolve() for page in flags.page] if flags.page else PAGES
    if unknown := [str(page) for page in pages if page not in PAGES]:
        parser.error(f"no pages of the documentation: {' '.join(unknown)}")
    from support.page_world import world

    results = []
    directory = flags.keep or Path(tempfile.mkdtemp(prefix="doc-commands-"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with world(directory) as there:
            for page in pages:
                print(page.relative_to(ROOT), flush=True)
                here = directory / page.relative_to(ROOT).with_suffix("")
                for result in try_page(page, there, here):
                    print(result, flush=True)
                    results.append(result)
                if not flags.keep:
                    shutil.rmtree(here, ignore_errors=True)
    finally:
        if not flags.keep:
            shutil.rmtree(directory, ignore_errors=True)
    return report(results)


def report(results: list[Result]) -> int:
    """Print what was not run, what failed, and how many ran; gives the exit status."""
    for outcome in ("not run", "failed"):
        for result in results:
            if result.outcome == outcome:
                text = result.command.text.splitlines()[0]
                why = result.said.splitlines()[0]
                print(f"{outcome}: {result.command.page}: {text}: {why}")
    counts = Counter(result.outcome for result in results)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("ran", "failed", "not run")))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
