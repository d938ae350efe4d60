"""The validation sets that come with shard sets of prepared corpora."""

from collections.abc import Iterable

from pipeline.errors import PipelineError
from pipeline.shards.manifest import validation_of
from pipeline.shards.shard_set import ShardSet


def validation_sets(urls: Iterable[str]) -> list[str]:
    """The finished sets of held-out documents that lie below these shard sets."""
    return [held_out for url in urls if _is_shard_set(held_out := validation_of(url))]


def _is_shard_set(url: str) -> bool:
    try:
        ShardSet(url)
    except PipelineError:
        return False
    return True
