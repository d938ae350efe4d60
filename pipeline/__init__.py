"""Corpora → patch shards, on Ray."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.shards.format import PatchedDocument
    from pipeline.shards.shard_set import ShardSet, open_shards

__all__ = ["PatchedDocument", "ShardSet", "open_shards"]
_MODULES = {
    "PatchedDocument": ".shards.format",
    "ShardSet": ".shards.shard_set",
    "open_shards": ".shards.shard_set",
}


def __getattr__(name: str) -> Any:
    # Shards bring torch along, which workers that only read and write text can do without.
    if name in _MODULES:
        value = globals()[name] = getattr(import_module(_MODULES[name], __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
