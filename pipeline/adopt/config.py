"""The configuration of ``jobs/adopt_shards.py``: each field is a flag."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.cli.optional import OrNone
from pipeline.errors import ConfigError
from pipeline.patch.shards_config import ShardsConfig
from pipeline.shards.names import ENTROPIES

if TYPE_CHECKING:
    from pipeline.corpus.documents import Columns

NUMBERS_PER_TEXT = 4
"""A file with entropies is about so many times as large as its text alone, or less."""


@dataclass(frozen=True)
class AdoptShardsConfig(ShardsConfig):
    """Make patch shards of a corpus that comes with entropies: shards of the published
    preprocessing, a reference export, or any files with texts and entropies in; no model is run.

    A rerun of the same command continues where the last one stopped. Exit status: 0 if everything
    was done, 1 if a file could not be read or the job stopped, 2 if a flag is wrong.
    """

    entropies_column: str = ENTROPIES
    """Column with a list of entropies for each document: nats, one per token (BOS, bytes, EOS). A
    document that they do not fit is rejected."""
    entropy_model: OrNone[str] = None
    """Directory, URL or hub id of the model that gave the entropies, so that the shards name it. It
    scores the first documents, and is refused if its entropies are others."""

    @property
    def columns(self) -> "Columns":
        return replace(super().columns, entropies=self.entropies_column)

    @property
    def split_bytes(self) -> int:
        return NUMBERS_PER_TEXT * self.shard_bytes

    def check(self) -> None:
        super().check()
        numbers = self.columns.numbers
        if self.text_column in numbers or len(set(numbers)) < len(numbers):
            raise ConfigError(
                f"--entropies-column: {self.entropies_column!r} is named for something else, too"
            )

    def content(self) -> dict[str, Any]:
        return super().content() | {
            "entropies_column": self.entropies_column,
            "entropy_model": self.entropy_model,
        }
