"""Shards → rows: packing, the order of rows over epochs and ranks, the dataloader."""
