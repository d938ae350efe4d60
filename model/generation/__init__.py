"""Writing text: sampling, caches, and models that read only what is new."""

BATCH_SIZE = 128
"""Texts that are written at a time."""
