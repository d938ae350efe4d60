"""The result of a preparation, as its job prints it."""

from dataclasses import dataclass

from pipeline.corpus.prepared import PreparedManifest


@dataclass
class PrepareCorpusResult:
    """The result of a run."""

    output: str
    manifest: PreparedManifest | None
    """None if files could not be reached: then there are no chunks yet."""
    failures: list[str]
    """Files that could not be read (to their end), and why."""
    seconds: float = 0.0
    """Time that sorting and writing took."""
    bytes_sorted: int = 0
    """Text that this run sorted, without what an earlier one did."""
