"""What workers tell the driver through a queue: lines, results, and what went wrong.

Ray's own forwarding of output prefixes, repeats and delays it, and its errors are pages of
traceback; here a line stays a line, and of all ranks' errors the one that began it is told.
"""

import io
import queue
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from ray.exceptions import RayError
from ray.util.queue import Queue

from model.checkpoints.files import CheckpointError
from pipeline.errors import ConfigError, PipelineError

OF_COMMUNICATION = ("gloo", "nccl", "connection", "closed by peer", "timed out", "socket")
"""Words in errors of ranks whose only fault is that another one is gone."""


class Listener:
    """What workers tell, on the driver."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.starts = 0
        self.failures: list[tuple[int, str]] = []
        """Since the workers were started; see :func:`_weigh`."""
        self.result: dict[str, float] = {}

    def hear(self, kind: str, value: Any) -> None:
        """
        Raises:
            ConfigError, PipelineError: they can't begin, however often they are started.
        """
        if kind == "line":
            self.say(value)
        elif kind == "result":
            self.result = value
        elif kind == "failure":
            rank, error, hopeless = value
            self.failures.append(_weigh(rank, error))
            if self.starts <= 1 and hopeless:
                of_user = isinstance(error, ConfigError | CheckpointError)
                text = _weigh(rank, error)[1]
                raise ConfigError(text) if of_user else PipelineError(f"cannot begin: {text}")
        elif kind == "start":
            if self.starts:
                why = min(self.failures, default=(2, "a worker's process died"))[1]
                self.say(f"workers were started again, to go on from the last checkpoint: {why}")
            self.starts += 1
            self.failures = []


def as_one_sentence(error: Exception) -> PipelineError:
    """What ``fit`` raised, for users: why, and not where in Ray."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        why = min(_weigh(rank, failure) for rank, failure in failures.items())[1]
    else:
        why = _first_line(getattr(error, "controller_failure", error))
    return PipelineError(
        f"training failed: {why}; the same command goes on from the last checkpoint"
    )


def _weigh(rank: int, error: Exception) -> tuple[int, str]:
    """How far an error of a rank is from what began it, and what to say of it.

    When one rank fails the others do, too, for want of it.
    """
    if isinstance(error, PipelineError | CheckpointError):
        return 0, str(error)
    if _is_rays(error):
        return 2, f"the process of rank {rank} died ({_first_line(error)})"
    text = _first_line(error)
    if not isinstance(error, _OtherError):
        text = f"{type(error).__name__}: {text}"
    if any(word in text.lower() for word in OF_COMMUNICATION):
        return 3, f"rank {rank} lost the connection to another one"
    return 1, f"rank {rank}: {text}"


class _OtherError(Exception):
    """Text of an error that is not ours, and that the driver might not be able to read."""


def _is_rays(error: Exception) -> bool:
    return type(error).__module__.startswith("ray.")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def portable(error: Exception) -> Exception:
    """An error that the driver can read: with ours what they are, others as text."""
    if isinstance(error, PipelineError | CheckpointError):
        return type(error)(str(error))
    return _OtherError(f"{type(error).__name__}: {_first_line(error)}")


class SentOn(io.TextIOBase):
    """Standard output whose lines the driver gets, too. Ray's own logs keep them."""

    def __init__(self, told: Queue, stream: TextIO):
        self.told, self.stream, self.begun = told, stream, ""

    def write(self, text: str) -> int:
        self.stream.write(text)
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            # Training goes on where nobody listens, or not for long.
            with suppress(RayError, queue.Full):
                self.told.put(("line", line))
        return len(text)

    def flush(self) -> None:
        self.stream.flush()
