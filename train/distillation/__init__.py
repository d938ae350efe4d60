"""Cheap entropy models, trained on the entropies that shards store."""
