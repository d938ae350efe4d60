"""Messages of the workers to the driver, through a Ray queue: lines, failures and the result.

Ray's own forwarding of output prefixes, repeats and delays lines, and its errors are pages of
traceback. Here a line stays a line, and when several ranks fail the driver reports the error that
began it: see :func:`_rank_failure`.
"""

import io
import queue
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from ray.exceptions import RayError
from ray.util.queue import Queue

from model.checkpoints.files import CheckpointError
from pipeline.errors import ConfigError, PipelineError
from train.checkpoints.collective import LOST_CONNECTION

CONNECTION_WORDS = ("gloo", "nccl", "connection", *LOST_CONNECTION)
"""Words in the errors of ranks that fail only because another rank is gone."""


@dataclass
class StartMessage:
    """Rank 0 starts, for the first time or after a failure."""


@dataclass
class LineMessage:
    """Rank 0 printed a line."""

    text: str


@dataclass
class FailureMessage:
    """A rank raised an error."""

    rank: int
    error: Exception
    """As :func:`portable_error` returns it."""
    permanent: bool
    """The settings are wrong, so a restart would fail in the same way."""


@dataclass
class ResultMessage:
    """Rank 0 trained to the end."""

    metrics: dict[str, float]
    """The numbers that it logged last, by name."""


Message = StartMessage | LineMessage | FailureMessage | ResultMessage


class MessageReader:
    """Handles the workers' messages on the driver."""

    def __init__(self, print_line: Callable[[str], None]):
        self.print_line = print_line
        self.starts = 0
        self.failures: list[tuple[int, str]] = []
        """Since the last start of the workers; see :func:`_rank_failure`."""
        self.metrics: dict[str, float] = {}
        """The numbers that rank 0 logged last; empty until it has trained to the end."""

    def handle(self, message: Message) -> None:
        """Print, or remember, what a message says.

        Raises:
            ConfigError, PipelineError: the workers cannot begin, however often they are restarted.
        """
        match message:
            case LineMessage(text):
                self.print_line(text)
            case ResultMessage(metrics):
                self.metrics = metrics
            case FailureMessage(rank, error, permanent):
                failure = _rank_failure(rank, error)
                self.failures.append(failure)
                if self.starts <= 1 and permanent:
                    if isinstance(error, ConfigError | CheckpointError):
                        raise ConfigError(failure[1])
                    raise PipelineError(f"cannot begin: {failure[1]}")
            case StartMessage():
                if self.starts:
                    cause = min(self.failures, default=(2, "a worker's process died"))[1]
                    self.print_line(
                        f"workers were started again, to continue from the last checkpoint: {cause}"
                    )
                self.starts += 1
                self.failures = []


def training_error(error: Exception) -> PipelineError:
    """The error for users, in one sentence, for what ``fit`` raised."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        cause = min(_rank_failure(rank, failure) for rank, failure in failures.items())[1]
    else:
        cause = _first_line(getattr(error, "controller_failure", error))
    return PipelineError(
        f"training failed: {cause}; the same command continues from the last checkpoint"
    )


def _rank_failure(rank: int, error: Exception) -> tuple[int, str]:
    """How far a rank's error is from the cause (0 is nearest), and a text for it.

    When one rank fails, the others fail as well, because they wait for it. The smallest pair of all
    ranks names the cause: rank 1's ``(1, "rank 1: ValueError: x")`` comes before rank 0's
    ``(3, "rank 0 lost the connection to another one")``.
    """
    if isinstance(error, PipelineError | CheckpointError):
        return 0, str(error)
    if _is_rays(error):
        return 2, f"the process of rank {rank} died ({_first_line(error)})"
    text = _first_line(error)
    if not isinstance(error, _OtherError):
        text = f"{type(error).__name__}: {text}"
    if any(word in text.lower() for word in CONNECTION_WORDS):
        return 3, f"rank {rank} lost the connection to another one"
    return 1, f"rank {rank}: {text}"


class _OtherError(Exception):
    """The text of an error whose class the driver might not be able to load."""


def _is_rays(error: Exception) -> bool:
    return type(error).__module__.startswith("ray.")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def portable_error(error: Exception) -> Exception:
    """An error that the driver can unpickle: our own keep their class, others become text."""
    if isinstance(error, PipelineError | CheckpointError):
        return type(error)(str(error))
    return _OtherError(f"{type(error).__name__}: {_first_line(error)}")


class ForwardedStream(io.TextIOBase):
    """Standard output that sends each line to the driver as well. Ray's own logs keep the lines."""

    def __init__(self, messages: Queue, stream: TextIO):
        self.messages, self.stream, self.partial_line = messages, stream, ""

    def write(self, text: str) -> int:
        self.stream.write(text)
        *lines, self.partial_line = (self.partial_line + text).split("\n")
        for line in lines:
            # Training continues when no driver reads the lines, or reads them too slowly.
            with suppress(RayError, queue.Full):
                self.messages.put(LineMessage(line))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()
