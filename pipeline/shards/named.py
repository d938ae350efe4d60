"""The shard sets that ``--shards`` names."""

from pipeline.errors import ConfigError, PipelineError
from pipeline.shards.shard_set import ShardSet
from pipeline.storage.places import refuse_credentials


def named_set(url: str) -> ShardSet:
    """Open a finished shard set that a user named.

    Raises:
        ConfigError: the URL holds credentials, or there is no such set; names the flag.
    """
    refuse_credentials("--shards", url)
    try:
        return ShardSet(url)
    except PipelineError as error:
        raise ConfigError(f"--shards {error}") from error
