"""Progress for programs: a line of JSON per minute, in a file that the user names."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.cli.work_counts import WorkCounts
from pipeline.errors import ConfigError

EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class StageState:
    """How far a stage is."""

    stage: str
    """Its name, such as "patching"."""
    seconds: float
    """Time since it began in this run."""
    counts: WorkCounts
    """What this run did, of documents, rejects and time; ``bytes`` are those of earlier runs, too.
    """
    bytes_left: int
    """Approximate bytes of text that are left."""
    bytes_per_second: float
    """The rate of this run."""
    pieces_waiting: int
    """The queue: pieces that no worker has begun."""
    pieces_working: int
    """Pieces that workers have begun and not finished."""
    pieces_done: int

    @property
    def seconds_left(self) -> float | None:
        """Time until the end, estimated; None as long as there is no rate."""
        if not self.bytes_left:
            return 0.0
        return self.bytes_left / self.bytes_per_second if self.bytes_per_second > 0 else None

    def to_json(self) -> dict[str, object]:
        """The values of a line; times are in seconds."""
        values = asdict(self)
        counts = values.pop("counts")
        return {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            **values,
            **counts,
            "seconds_left": self.seconds_left,
        }


class ProgressLines:
    """The file that lines go to, if there is one."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def write(self, state: StageState) -> None:
        """Append a line, whole; a full disk must not end the run."""
        if self.path is None:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(state.to_json()) + "\n")
        except OSError:
            self.path = None


LINES = ProgressLines()
"""Of this process, whose stages follow one another."""


@contextmanager
def progress_lines(path: str | None) -> Iterator[None]:
    """While the block runs, stages append a line of JSON per minute, and one when they end.

    Args:
        path: the file; None for no lines.

    Raises:
        ConfigError: it cannot be written.
    """
    if path is not None:
        try:
            with Path(path).open("a"):
                LINES.path = Path(path)
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"--progress-json: {path} cannot be written: {why}") from error
    try:
        yield
    finally:
        LINES.path = None
