"""What the commands in ``jobs/`` have in common: how errors are told, and the exit status."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline.errors import ConfigError, PipelineError


def run_command(job: Callable[[], int], console: Console, *, interrupted: str) -> int:
    """The exit status of a job: its own, or 2 for a wrong flag, 1 for another error that a user can
    act on, 130 if it was interrupted.

    Args:
        console: where errors are told, in one sentence.
        interrupted: what to say if it was interrupted.
    """
    try:
        _refuse_repeated_flags(sys.argv[1:])
        return job()
    except KeyboardInterrupt:
        console.print(interrupted)
        return 130
    except PipelineError as error:
        text = f"error: {error}"
        console.print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        return 2 if isinstance(error, ConfigError) else 1


def _refuse_repeated_flags(arguments: list[str]) -> None:
    """
    Raises:
        ConfigError: a flag is given twice: the first, and input that it names, would not count.
    """
    flags = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    for name in flags:
        if flags.count(name) > 1:
            raise ConfigError(f"{name}: is given more than once; put all values after one {name}")


def submitted() -> bool:
    """Whether this is the driver of a job that was submitted with ``ray job submit``."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_lost_output(output: str, flag: str = "--output") -> None:
    """
    Raises:
        ConfigError: the output would be in the copy of the working directory that Ray makes for a
            submitted job, and removes.
    """
    if submitted() and "://" not in output and not Path(output).is_absolute():
        raise ConfigError(
            f"{flag} {output}: is relative to a copy of the working directory that Ray removes; "
            "give a submitted job an absolute path or a URL"
        )
