"""Corpora → patch shards, on Ray."""

from pipeline.shards import PatchedDocument, ShardSet, open_shards

__all__ = ["PatchedDocument", "ShardSet", "open_shards"]
