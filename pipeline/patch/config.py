"""The configuration of ``jobs/patch_corpus.py``: each field is a flag."""

from dataclasses import dataclass
from typing import Any

from model.checkpoints.names import BUILT_IN, NO_SUCH, may_exist
from pipeline.cli.flags import check_at_least
from pipeline.cli.optional import OrNone
from pipeline.cli.sizes import Size
from pipeline.errors import ConfigError
from pipeline.patch.shards_config import ShardsConfig

NGRAM = "ngram"


@dataclass(frozen=True)
class PatchCorpusConfig(ShardsConfig):
    """Cut a corpus into entropy patches: text files in, Arrow shards with patch boundaries out.

    A rerun of the same command continues where the last one stopped. Exit status: 0 if everything
    was done, 1 if a file could not be read or the job stopped, 2 if a flag is wrong.
    """

    entropy_model: OrNone[str] = None
    """Directory, URL or hub id of an entropy model. "entropy-1m" and, for CPUs, the far cheaper
    "entropy-conv" come with blt-titan; "ngram" fits a byte n-gram model on a sample of the corpus,
    cheaper still. By default entropy-1m, or ngram if the rule does not look at entropies."""
    reset_at_newline: bool = False
    """The entropy model's context starts again after each newline."""
    gpus_per_worker: OrNone[float] = None
    """GPUs per worker; 1 by default if the cluster has any and the model can use it."""
    ngram_bytes: Size = 64 << 20
    """Bytes of the sample that the n-gram model is fitted on."""
    no_validation: bool = False
    """Leave out the validation set of a prepared corpus. Otherwise it is patched, too, with the
    same model and threshold, into a set of its own: OUTPUT/validation."""

    @property
    def scored_with(self) -> str:
        """The entropy model that is used: the one asked for, or the default."""
        return self.entropy_model or (BUILT_IN if self.boundary_rule.reads_entropies else NGRAM)

    def check(self) -> None:
        super().check()
        check_at_least(self, ngram_bytes=1, gpus_per_worker=0)
        if self.scored_with != NGRAM and self.ngram_bytes != PatchCorpusConfig.ngram_bytes:
            raise ConfigError("--ngram-bytes: only --entropy-model ngram is fitted; leave it out")
        if self.scored_with != NGRAM and not may_exist(self.scored_with):
            raise ConfigError(f"--entropy-model: {self.scored_with}: {NO_SUCH}")

    def content(self) -> dict[str, Any]:
        return super().content() | {
            "entropy_model": self.scored_with,
            "ngram_bytes": self.ngram_bytes,
        }
