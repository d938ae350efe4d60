"""The driver of ``adopt_shards.py``: the stage of ``patch_corpus.py`` with stored entropies."""

import numpy as np
import torch
from rich.console import Console

from model.checkpoints.entropy_model import CheckpointError, fingerprint, load_entropy_model
from model.entropy_model import EntropyModel
from model.flops import entropy_model_flops
from model.patcher import Patcher
from model.provenance import EntropyModelIdentity
from model.tokenizer import encode_documents
from pipeline.adopt.config import AdoptShardsConfig
from pipeline.cli.results import print_line
from pipeline.corpus.formats import FORMATS, file_format, known_format
from pipeline.corpus.inputs import Inputs, is_published_shard
from pipeline.corpus.splits import plan_file
from pipeline.errors import ConfigError
from pipeline.patch.calibrate import sample
from pipeline.patch.job import PatchCorpusResult, make_shards
from pipeline.patch.scoring import AnyEntropyModel, Scorer
from pipeline.patch.stored import StoredEntropies
from pipeline.storage.listing import InputFile

COMPARED_BYTES = 16 << 10
"""Text that a named model scores, to be compared with what is stored."""
MEAN_NATS = 0.1
"""Mean difference up to which entropies are those of the named model. Preprocessing in bfloat16
differs from float32 by 0.03 on average; another model by more than half a nat."""
BESIDE = "beside published shards, without entropies"


def adopt_shards(config: AdoptShardsConfig, console: Console) -> PatchCorpusResult:
    """Make patch shards of a corpus that comes with entropies, or what is left of them.

    Raises:
        PipelineError: the job cannot begin or continue; what is committed stays.
    """

    def load(inputs: Inputs) -> StoredEntropies:
        _leave_out_texts(inputs, config)
        return _stored(config, inputs.files, console)

    return make_shards(config, load, console)


def _leave_out_texts(inputs: Inputs, config: AdoptShardsConfig) -> None:
    """Where there are published shards, leave out files that lie beside them and cannot hold
    entropies: the corpus that the shards were made of, manifests, marks."""
    if not any(is_published_shard(file.url) for file in inputs.files):
        return
    beside = [
        file for file in inputs.files if not _is_table(file_format(file, config.format) or "")
    ]
    inputs.unread |= {file.url: BESIDE for file in beside}
    inputs.files = [file for file in inputs.files if file not in beside]


def _is_table(name: str) -> bool:
    return name in FORMATS and FORMATS[name].is_columnar


def _stored(config: AdoptShardsConfig, files: list[InputFile], console: Console) -> StoredEntropies:
    """What is known of the entropies.

    Raises:
        ConfigError: the model that is named cannot be loaded, or gives other entropies.
    """
    column, name = config.entropies_column, config.entropy_model
    if name is None:
        return StoredEntropies(column, EntropyModelIdentity())
    try:
        model = load_entropy_model(name, device="cpu", dtype=torch.float32)
    except CheckpointError as error:
        raise ConfigError(f"--entropy-model: {error}") from error
    _compare(model, config, files, console)
    flops = entropy_model_flops(model.config) if isinstance(model, EntropyModel) else 0.0
    identity = EntropyModelIdentity(name, fingerprint(model), None, reset_at_newline=False)
    return StoredEntropies(column, identity, flops)


def _compare(
    model: AnyEntropyModel, config: AdoptShardsConfig, files: list[InputFile], console: Console
) -> None:
    """Compare the first entropies with those of the named model.

    Raises:
        ConfigError: they are others.
    """
    format_of = known_format(files[0], config.format, "--format")
    first = plan_file(files[0], format_of, 1 << 62).splits[0]
    documents = sample([first], config, min(COMPARED_BYTES, max(first.size, 1) - 1))
    documents = [d for d in documents if d.entropies is not None]
    if not documents:
        print_line(console, f"{files[0].url}: no entropies to compare with {config.entropy_model}")
        return
    # What follows a cut is not known to the model: the entropies before it are compared.
    stored_T = np.concatenate([d.entropies for d in documents if d.entropies is not None])
    scorer = Scorer(model, Patcher(rule="byte"))
    scored_T = scorer.entropies(*encode_documents([document.text for document in documents]))
    apart = float(np.abs(stored_T.astype(np.float32) - scored_T.astype(np.float32)).mean())
    if apart > MEAN_NATS:
        raise ConfigError(
            f"--entropy-model: {config.entropy_model} gives other entropies than {files[0].url} "
            f"holds, by {apart:.2f} nats on average; name the model that gave them, or none"
        )
