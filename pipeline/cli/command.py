"""The common part of the commands in ``jobs/``: their ``main``, errors, and the exit status."""

import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console

from pipeline.cli.optional import REGISTRY
from pipeline.cli.results import print_line, print_problems
from pipeline.errors import ConfigError, PipelineError, message_of, missing_memory
from pipeline.storage.outages import say_by

Config = TypeVar("Config")


def run_job(
    config_class: type[Config],
    run: Callable[[Config, Console], int],
    *,
    interrupted: str = "interrupted; run the same command again to continue",
) -> int:
    """The ``main`` of a job: flags become a configuration, and the configuration is run.

    Args:
        config_class: a dataclass whose fields are the flags. Its ``RENAMED``, if it has one, maps
            names that flags had in earlier releases to those of today; its ``TEXTS`` holds the
            flags whose values are texts, which may be empty, and no names or paths.
        run: does the job and prints its result to standard output; returns the exit status. It
            also gets the console for everything else, which is standard error.
        interrupted: the sentence to print after Ctrl-C.

    Returns:
        the exit status; see :func:`run_command`.
    """

    def checked(config: Config, others: list[str], console: Console) -> int:
        assert not others
        return run(config, console)

    return _run_flags(config_class, checked, interrupted, passes_on=False)


def run_job_that_passes_on(
    config_class: type[Config],
    run: Callable[[Config, list[str], Console], int],
    *,
    interrupted: str,
) -> int:
    """As :func:`run_job`, for jobs with flags of another program beside their own, which ``run``
    gets as words, in their order."""
    return _run_flags(config_class, run, interrupted, passes_on=True)


def _run_flags(
    config_class: type[Config],
    run: Callable[[Config, list[str], Console], int],
    interrupted: str,
    *,
    passes_on: bool,
) -> int:
    console = Console(stderr=True, markup=False)  # paths and names are text

    def job() -> int:
        words = _with_new_names(sys.argv[1:], getattr(config_class, "RENAMED", {}), console)
        _refuse_repeated_flags(words)  # an old name and the new one of the same flag
        if not passes_on:
            words = _checked_values(words, getattr(config_class, "TEXTS", ()))
        if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
            getattr(tyro, "_experimental_options", {})["ansi_codes"] = False
        how: dict[str, Any] = {"config": (tyro.conf.FlagCreatePairsOff,), "registry": REGISTRY}
        if not passes_on:
            return run(tyro.cli(config_class, args=words, **how), [], console)
        config, others = tyro.cli(config_class, args=words, return_unknown_args=True, **how)
        return run(config, others, console)

    return run_command(job, console, interrupted=interrupted)


def _with_new_names(
    arguments: list[str], renamed: Mapping[str, str], console: Console
) -> list[str]:
    """A command line with the present names of its flags; says which of them are old."""
    named = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in renamed:
            print_line(console, f"note: {flag} is called {renamed[flag]} now")
        named.append(renamed.get(flag, flag) + equals + value)
    return named


def run_command(job: Callable[[], int], console: Console, *, interrupted: str) -> int:
    """Run a job and print errors that a user can act on, each in one sentence.

    Args:
        console: where errors are printed.
        interrupted: the sentence to print after Ctrl-C.

    Returns:
        the exit status: the job's own, or 2 for a wrong flag, 1 for another error that a user can
        act on, 130 after Ctrl-C, 143 and 129 after SIGTERM and SIGHUP, 141 if the reader of the
        output is gone (``| head``).
    """

    try:
        status = _status_of(job, console, interrupted)
    finally:
        lost = _write_the_rest()
    if lost is not None:
        problem = f"error: standard output cannot be written: {lost.strerror}"
        print_problems(console, [problem])
    return status or int(lost is not None)


def _status_of(job: Callable[[], int], console: Console, interrupted: str) -> int:
    def say(message: str) -> None:
        console.print(message, highlight=False, markup=False)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # what a locale cannot write is escaped
    say_by(say, doubt_addresses=True)
    try:
        end_on_signals()
        _refuse_repeated_flags(sys.argv[1:])
        return job()
    except Ended as ended:
        console.print(interrupted)
        return 128 + ended.signal
    except KeyboardInterrupt:
        console.print(interrupted)
        return 128 + signal.SIGINT
    except SystemExit as end:
        # SIGTERM has a handler of Ray's while that starts, which a Ctrl-C may have interrupted.
        if end.code != signal.SIGTERM:
            raise
        console.print(interrupted)
        return 128 + signal.SIGTERM
    except PipelineError as error:
        print_problems(console, [f"error: {error}"])
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        if not _reader_is_gone():  # it was another pipe, or a connection
            raise
        return 141
    except OSError as error:
        if error.errno not in FULL:
            raise
        print_problems(console, [f"error: {message_of(error)}; make room, and run it again"])
        return 1
    except Exception as error:
        if not _is_of_gpu_memory(error):
            raise
        problem = f"error: the GPU has no memory for this: {missing_memory(error)}"
        print_problems(console, [f"{problem}; end what else runs there, or ask for less at a time"])
        return 1


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The operating system's errors where a disk, or what a user may have of it, is full."""


def _is_of_gpu_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # without it, the error is not torch's
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _reader_is_gone() -> bool:
    """True if standard output is a pipe whose other end is closed."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _write_the_rest() -> OSError | None:
    """Write what standard output still holds, or drop it: without a word if nobody reads it.

    Returns:
        another reason why it cannot be written, such as a full disk.
    """
    if sys.stdout is None:  # it was closed before the process began
        return None
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return None if isinstance(error, BrokenPipeError) else error
    return None


BEFORE_LEAVING: list[Callable[[], None]] = []
"""Functions that :func:`leave` calls, in this order."""


def leave(status: int) -> NoReturn:
    """End the process of a job, and the Ray that it started.

    What Python would do at exit takes a second: Ray waits for messages, and torch is taken apart.
    The status is the job's, also where what comes before the end fails or is interrupted.
    """
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError):
                stream.flush()
        for finish in BEFORE_LEAVING:
            with suppress(Exception):
                finish()
    finally:
        os._exit(status)


class Ended(KeyboardInterrupt):
    """The process was asked to end, by a scheduler or because its terminal is gone; what cleans up
    after Ctrl-C cleans up now as well."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the process as Ctrl-C does.

    To be called again after a library has installed handlers of its own, as Ray does. Signals that
    are ignored, as nohup has it, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)  # the end is under way
    raise Ended(number)


def _refuse_repeated_flags(arguments: list[str]) -> None:
    """
    Raises:
        ConfigError: a flag is given twice; only the last one, and the input that it names, would
            count.
    """
    words = (argument.split("=")[0] for argument in arguments if argument.startswith("--"))
    flags = [word.replace("_", "-") for word in words]  # either is taken
    for name in flags:
        if flags.count(name) > 1:
            raise ConfigError(f"{name}: is given more than once; put all values after one {name}")


def _checked_values(arguments: list[str], texts: Sequence[str]) -> list[str]:
    """A command line with home directories in the place of ``~``, which a shell leaves as it is
    after ``--flag=``: a directory of that name would be made.

    Args:
        texts: flags whose values stay as they are.

    Raises:
        ConfigError: a value is empty, as a shell leaves it of a variable that is not set; a path
            would be the working directory.
    """
    checked, flag = [], ""
    for argument in arguments:
        is_flag = argument.startswith("--")
        if is_flag:
            flag = argument.split("=")[0]
        name, equals, value = argument.partition("=") if is_flag else ("", "", argument)
        if flag not in texts and (equals or not is_flag):
            if not value:
                raise ConfigError(
                    f"{flag or 'the command line'}: has an empty value; is a variable of your "
                    "shell not set?"
                )
            value = at_home(value)
        checked.append(name + equals + value)
    return checked


def at_home(value: str) -> str:
    """A path that begins with ~, which a shell leaves as it is behind ``--flag=``, whole."""
    if value == "~" or value.startswith("~/"):
        return os.path.expanduser(value)  # noqa: PTH111 (which raises nothing)
    return value


def submitted() -> bool:
    """True if this is the driver of a job that was submitted with ``ray job submit``."""
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
