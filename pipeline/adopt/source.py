"""The files that hold entropies, and the facts that are known of these. No Ray in here."""

from contextlib import suppress

import numpy as np
import torch

from model.checkpoints.entropy_model import CheckpointError, fingerprint, load_entropy_model
from model.entropy_model import EntropyModel
from model.flops import entropy_model_flops
from model.patcher import Patcher
from model.provenance import EntropyModelIdentity
from model.tokenizer import encode_documents
from pipeline.adopt.config import AdoptShardsConfig
from pipeline.corpus.documents import Document, read_split
from pipeline.corpus.formats import FORMATS, file_format, known_format
from pipeline.corpus.inputs import Inputs
from pipeline.corpus.published import chunk_of
from pipeline.corpus.splits import plan_file, whole_file
from pipeline.errors import BadFileError, ConfigError, UnreachableFileError
from pipeline.patch.fit_ngram import beginning
from pipeline.patch.scoring import AnyEntropyModel, Scorer
from pipeline.patch.stored import StoredEntropies
from pipeline.storage.listing import InputFile

COMPARED_BYTES = 16 << 10
"""Text that a named model scores, to be compared with what is stored."""
MEAN_NATS = 0.1
"""Mean difference up to which entropies are those of the named model. Preprocessing in bfloat16
differs from float32 by 0.03 on average; another model by more than half a nat."""
MOST_FILES = 8
"""Files that are asked for text to compare."""
BESIDE = "beside published shards, without entropies"


def leave_out_texts(inputs: Inputs, config: AdoptShardsConfig) -> None:
    """Leave out files that lie beside published shards and hold no entropies: the corpus that the
    shards were made of, manifests. Chunks that shards name are not opened for it."""
    chunks = set(filter(None, map(chunk_of, inputs.files)))
    if not chunks:
        return
    beside = {
        file
        for file in inputs.files
        if file.url.rpartition("/")[2] in chunks or not _may_hold_entropies(file, config)
    }
    inputs.unread |= {file.url: BESIDE for file in beside}
    inputs.files = [file for file in inputs.files if file not in beside]


def _may_hold_entropies(file: InputFile, config: AdoptShardsConfig) -> bool:
    """True for a table, of which reading it tells, and for a file whose first records have
    entropies."""
    name = file_format(file, config.format) or ""
    if name not in FORMATS:
        return False
    if FORMATS[name].is_columnar:
        return True
    return config.entropies_column in (plan_file(file, name, file.size + 1).columns or ())


def stored_entropies(config: AdoptShardsConfig, files: list[InputFile]) -> StoredEntropies:
    """Describe the entropies.

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
    _compare(model, config, files)
    flops = entropy_model_flops(model.config) if isinstance(model, EntropyModel) else model.flops
    identity = EntropyModelIdentity(name, fingerprint(model), None, reset_at_newline=False)
    return StoredEntropies(column, identity, flops)


def _compare(model: AnyEntropyModel, config: AdoptShardsConfig, files: list[InputFile]) -> None:
    """Compare the first entropies with those of the named model.

    Raises:
        ConfigError: they are others, or there are none to compare.
    """
    documents = _first_documents(config, files)
    if not documents:
        raise ConfigError(
            f"--entropy-model: the first files hold no document with entropies to compare with "
            f"those of {config.entropy_model}; see --entropies-column, or leave the model out"
        )
    stored_T = np.concatenate([d.entropies for d in documents if d.entropies is not None])
    scorer = Scorer(model, Patcher(rule="byte"))
    scored_T = scorer.entropies(*encode_documents([document.text for document in documents]))
    apart = float(np.abs(stored_T.astype(np.float32) - scored_T.astype(np.float32)).mean())
    if apart > MEAN_NATS:
        raise ConfigError(
            f"--entropy-model: {config.entropy_model} gives other entropies than the input holds, "
            f"by {apart:.2f} nats on average; name the model that gave them, or none"
        )


def _first_documents(config: AdoptShardsConfig, files: list[InputFile]) -> list[Document]:
    """Documents from the first files that give any, with about COMPARED_BYTES of text."""
    documents: list[Document] = []
    left = COMPARED_BYTES
    for file in files[:MOST_FILES]:
        split = whole_file(file, known_format(file, config.format, "--input-format"))
        with suppress(BadFileError, UnreachableFileError):  # the run itself will name it
            for record in read_split(split, config.columns, config.max_document_bytes):
                if isinstance(record, Document):
                    documents.append(beginning(record, left))
                    left -= len(documents[-1].text)
                if left <= 0:
                    return documents
    return documents
