"""The driver of ``adopt_shards.py``: the stage of ``patch_corpus.py`` with stored entropies."""

from rich.console import Console

from pipeline.adopt.config import AdoptShardsConfig
from pipeline.adopt.source import leave_out_texts, stored_entropies
from pipeline.corpus.inputs import Inputs
from pipeline.patch.job import make_shards
from pipeline.patch.result import PatchCorpusResult
from pipeline.patch.stored import StoredEntropies


def adopt_shards(config: AdoptShardsConfig, console: Console) -> PatchCorpusResult:
    """Make patch shards of a corpus that comes with entropies, or what is left of them.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """

    def load(inputs: Inputs) -> StoredEntropies:
        leave_out_texts(inputs, config)
        return stored_entropies(config, inputs.files)

    return make_shards(config, load, console)
