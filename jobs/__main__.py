"""``blt-titan COMMAND [FLAGS]``: the jobs of this directory as one command.

It imports nothing but the job that is asked for, so that help and refusals come at once.
"""

import io
import os
import sys
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

# A checkout that is not installed: the packages lie beside this directory.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.cli.commands import COMMANDS, PROGRAM


def main() -> int:
    """Run the command that the first argument names; returns the exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        return _print(listing())
    if name == "--version":
        from importlib.metadata import version

        return _print(f"{PROGRAM} {version(PROGRAM)}")
    if name not in COMMANDS:
        print(f"error: {refusal(name)}", file=sys.stderr)
        return 2
    sys.argv[:2] = [f"{PROGRAM} {name}"]
    try:
        job = import_module(f"{__package__ or ''}.{COMMANDS[name].job}".lstrip("."))
    except KeyboardInterrupt:
        return 130
    status: int = job.main()
    if hasattr(job, "leave"):
        job.leave(status)
    return status


def _print(text: str) -> int:
    """Print a text; returns the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(text, flush=True)
    except BrokenPipeError:  # its reader is gone (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def listing() -> str:
    """All commands, with a line each."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{command.help}" for name, command in COMMANDS.items()]
    usage = f"usage: {PROGRAM} COMMAND [FLAGS]"
    return "\n".join([usage, "", *lines, "", f"{PROGRAM} COMMAND --help tells the flags of one."])


def refusal(name: str) -> str:
    """A sentence about a command that does not exist."""
    jobs = {command.job: known for known, command in COMMANDS.items()}
    job = name.removesuffix(".py")
    close = [jobs[job]] if job in jobs else get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"{PROGRAM} --help lists all"
    return f"there is no command {name!r}; {hint}"


if __name__ == "__main__":
    sys.exit(main())
