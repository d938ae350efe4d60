"""Errors that a user can act on: jobs print their text and nothing else."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class PipelineError(Exception):
    """The job cannot continue; the message says what is wrong, where, and what to do."""


class ConfigError(PipelineError):
    """A setting is wrong; the message begins with the flag. Raised before any work."""


class BadFileError(PipelineError):
    """A file's content cannot be decoded (further): the file fails, the job continues."""


class UnreachableFileError(PipelineError):
    """A file cannot be read now: the rest of it is left for a rerun, the job continues."""


class BadDocumentError(PipelineError):
    """A document cannot be used, and the job was asked to stop at such."""


class DamagedShardError(PipelineError):
    """A shard is not what its manifest says; tells where and how."""


def message_of(error: BaseException) -> str:
    """The text of an exception; its type's name where it has none. One of the operating system's is
    told without its number."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return str(error.args[0][0][2])  # of many files, the first
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if isinstance(error.filename, str) else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


@contextmanager
def translated(
    where: str,
    kind: type[PipelineError] = PipelineError,
    what: str = "cannot be read",
    *,
    advice: str = "",
) -> Iterator[None]:
    """Turn whatever the block raises into one error that a user can act on.

    Each filesystem, and each library that reads from one, raises exceptions of its own. What they
    mean to a user is the same: this file cannot be read.

    Args:
        where: the file, with the flag that names it if there is one: the message begins with it.
        kind: the error to raise.
        what: what is wrong with the file.
        advice: what the user can do; the message ends with it.

    Raises:
        PipelineError: of type ``kind``; a PipelineError of the block stays as it is.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        end = advice and f"; {advice}"
        raise kind(f"{where}: {what}: {message_of(error)}{end}") from error


def missing_memory(error: Exception) -> str:
    """Why a GPU's allocator gave no memory, from torch's message: what was asked for and what is
    free, without the advice on torch's settings."""
    text = str(error).partition(" Including non-PyTorch memory")[0].partition(" If reserved")[0]
    return text.partition("\n")[0].rstrip(".")


SHOWN_REASONS = 3


def listed(reasons: Sequence[str]) -> str:
    """Different reasons as further lines of a message; of many, the first, and how many more."""
    different = list(dict.fromkeys(reasons))
    more = len(different) - SHOWN_REASONS
    shown = different[:SHOWN_REASONS] + [f"and {more} more"] * (more > 0)
    return "".join(f"\n  {reason}" for reason in shown)
