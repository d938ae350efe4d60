"""Groups of documents, by a column of metadata, so that validation can count them separately."""

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet

NO_VALUE = "(none)"
"""Group of documents in which the column is null."""


class Groups:
    """Numbers of the values of a column, in the order in which this process meets them."""

    def __init__(self, column: str):
        self.column = column
        self.numbers: dict[str, int] = {}

    def check(self, shards: ShardSet) -> None:
        """
        Raises:
            ConfigError: the shards lack the column.
        """
        if self.column not in shards.metadata_columns:
            there = ", ".join(shards.metadata_columns)
            raise ConfigError(
                f"by: {shards.output.url} has no column {self.column!r} of metadata; there are: "
                f"{there or 'none (patch_corpus.py --keep-columns copies them)'}"
            )

    def of(self, batch: pa.RecordBatch) -> np.ndarray:
        """The group of each document, int32."""
        values = batch[self.column].to_pylist()
        numbers = self.numbers
        names = (NO_VALUE if value is None else value for value in values)
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int32)

    @property
    def names(self) -> list[str]:
        """The values, by number."""
        return list(self.numbers)
