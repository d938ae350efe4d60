"""The shard sets that flags of the trainer name: looked at before a model is built."""

from collections.abc import Sequence

from pipeline.errors import ConfigError, PipelineError
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.output import OutputDirectory
from pipeline.storage.run_record import MANIFEST


def check_sets(flag: str, urls: Sequence[str]) -> None:
    """Look whether all sets are there. Only their manifests' existence is asked for: each rank
    asks, and a manifest of a large set is long.

    Raises:
        ConfigError: there is none, or one is not there; names the flag.
    """
    if not urls:
        raise ConfigError(f"{flag}: name at least one shard set that patch_corpus wrote")
    for url in urls:
        try:
            if not OutputDirectory(url).exists(MANIFEST):
                ShardSet(url)  # which says what is there instead
        except PipelineError as error:
            raise ConfigError(f"{flag}: {error}") from error
