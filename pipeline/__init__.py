"""Corpora → patch shards, on Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.shards.shard_set import PatchedDocument, ShardSet, open_shards

__all__ = ["PatchedDocument", "ShardSet", "open_shards"]


def __getattr__(name: str) -> Any:
    # Shards bring torch along, which workers that only read and write text can do without.
    if name in __all__:
        from pipeline.shards import shard_set as shards

        return getattr(shards, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
