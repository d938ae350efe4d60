"""The validation sets that come with shard sets of prepared corpora."""

from collections.abc import Iterable

from pipeline.shards.manifest import validation_of
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST, RECORD


def validation_sets(urls: Iterable[str]) -> list[str]:
    """The sets of held-out documents that lie below these shard sets; those that are not finished
    too, so that whoever opens them is told."""
    return [held_out for url in urls if _was_begun(held_out := validation_of(url))]


def _was_begun(url: str) -> bool:
    output = OutputDirectory(url)
    return output.exists(MANIFEST) or output.exists(RECORD)
