"""Names of the columns of shards; flags are checked against them."""

SAMPLE_ID = "sample_id"
TEXT = "text"
ENTROPIES = "entropies"
PATCH_LENGTHS = "patch_lengths"
OWN_COLUMNS = (SAMPLE_ID, TEXT, ENTROPIES, PATCH_LENGTHS)
"""Columns that shards have by themselves; all others are metadata."""
