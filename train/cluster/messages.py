"""Messages of the workers to the driver, through a Ray queue: lines, failures and the result.

Ray's own forwarding of output prefixes, repeats and delays lines, and its errors are pages of
traceback. Here a line stays a line. The queue's own process loads this module: it takes no time.
"""

import io
import queue
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from ray.exceptions import RayError
from ray.util.queue import Queue


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
    """As :func:`train.cluster.failures.portable_error` returns it."""
    permanent: bool
    """The settings are wrong, so a restart would fail in the same way."""


@dataclass
class ResultMessage:
    """Rank 0 trained to the end."""

    metrics: dict[str, float]
    """The numbers that it logged last, by name."""


Message = StartMessage | LineMessage | FailureMessage | ResultMessage


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
