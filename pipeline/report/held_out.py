"""The validation set below a shard set: a line of the report of that, and no report of its own."""

from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.shards.manifest import validation_of
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST, RECORD


@dataclass(frozen=True)
class HeldOut:
    """The counts of a validation set; all 0 if it cannot be used."""

    url: str
    documents: int = 0
    bytes: int = 0
    """UTF-8 bytes of text."""
    patches: int = 0
    problem: str | None = None
    """Why it cannot be used; names it."""

    @property
    def mean_patch_bytes(self) -> float:
        """Bytes of text per patch."""
        return self.bytes / self.patches if self.patches else 0.0


def read_held_out(url: str) -> HeldOut | None:
    """The validation set of a shard set; None if there is none.

    Args:
        url: the shard set.
    """
    output = OutputDirectory(validation_of(url))
    if not output.exists(MANIFEST):
        if not output.exists(RECORD):
            return None
        problem = f"{output.url}: is not finished; run the command that patches again"
        return HeldOut(output.url, problem=problem)
    try:
        counts = ShardSet(output.url).statistics
    except PipelineError as error:
        return HeldOut(output.url, problem=str(error))
    return HeldOut(output.url, counts.documents, counts.bytes, counts.patches)
