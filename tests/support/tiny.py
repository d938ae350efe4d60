"""For tests of evaluation: a tiny BLT with its entropy model, and shards made without Ray."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from model import (
    BLT,
    BLTConfig,
    ConvEntropyConfig,
    ConvEntropyModel,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
)
from model.checkpoints.entropy_model import fingerprint
from model.provenance import EntropyModelIdentity, PatchProvenance
from model.short_context import ShortContextModel
from pipeline.adopt.config import AdoptShardsConfig
from pipeline.adopt.source import leave_out_texts
from pipeline.corpus.formats import file_format
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.patch_split import patch_unit
from pipeline.patch.scoring import Scorer
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.stored import StoredScorer
from pipeline.shards.entries import read_entries
from pipeline.shards.format import shard_schema
from pipeline.shards.shard_set import TOKENIZER_FILE, ShardSet
from pipeline.storage.listing import InputFile
from pipeline.storage.output import OutputDirectory
from support.shard_sets import write_manifest

THRESHOLD = 4.49
"""Nats: patches of :func:`entropy_model` are then 2 to 8 bytes long."""

CONFIG = BLTConfig(
    dim_local=32,
    n_heads_local_encoder=2,
    n_layers_local_decoder=2,
    n_heads_local_decoder=2,
    dim_global=64,
    n_layers_global=1,
    n_heads_global=2,
    cross_attn_nheads=2,
    encoder_hash_byte_group_size=(3, 4),
    encoder_hash_byte_group_vocab=512,
    local_attention_window_len=64,
    patcher=Patcher(THRESHOLD),
)


def sharpen(model: torch.nn.Module, factor: float) -> None:
    """Random weights that say something definite."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(factor)


def blt(**changes: object) -> BLT:
    torch.manual_seed(1)
    model = BLT(replace(CONFIG, **changes))
    model.init_weights()
    sharpen(model, 1.5)
    return model.eval()


def entropy_model() -> EntropyModel:
    torch.manual_seed(2)
    config = EntropyModelConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=64, context_length=512)
    model = EntropyModel(config).eval()
    sharpen(model, 3)
    return model


def conv_model(**changes: object) -> ConvEntropyModel:
    """Random whole numbers, whose entropies spread over their range."""
    shape: dict[str, object] = {"dim": 16, "table_bits": 4, "taps": ((0, 1), (0, 3, 5))} | changes
    config = ConvEntropyConfig(**shape)
    draw = torch.Generator().manual_seed(3)
    weights = {}
    for name, (size, dtype) in config.shapes.items():
        values = torch.randint(-127, 128, size, generator=draw)
        if name.startswith("embeddings"):
            values = values // 4
        weights[name] = (values * 100 if dtype == torch.int16 else values).to(dtype)
    weights["output_bias"][:] = 2**15 - 1
    return ConvEntropyModel(config, weights)


def record(model: EntropyModel | ShortContextModel, **changes: object) -> PatchProvenance:
    """The provenance of shards that :func:`make_shards` makes with THRESHOLD."""
    identity = EntropyModelIdentity("tiny", fingerprint(model), "cpu float32", False)
    return replace(PatchProvenance(Patcher(THRESHOLD), identity, ("shards",)), **changes)


def make_shards(
    output: Path,
    inputs: Path,
    model: EntropyModel | ShortContextModel,
    patcher: Patcher,
    **settings: object,
) -> ShardSet:
    """What ``patch_corpus.py`` would write."""
    config = PatchCorpusConfig(input=(str(inputs),), output=str(output), **settings)
    scorer = Scorer(model, patcher, bpe=config.bpe)
    described = asdict(record(model))["entropy_model"]
    return _write_set(config, scorer, described, find_inputs(config.input).files)


def adopt_shards(output: Path, inputs: Path, **settings: object) -> ShardSet:
    """Write what ``adopt_shards.py`` would, of the files that it would read."""
    config = AdoptShardsConfig(input=(str(inputs),), output=str(output), **settings)
    config.check()
    scorer = StoredScorer(config.patcher, config.bpe)
    inputs_found = find_inputs(config.input)
    leave_out_texts(inputs_found, config)
    described = {"column": config.entropies_column}
    return _write_set(config, scorer, described, inputs_found.files)


def _write_set(
    config: ShardsConfig,
    scorer: Scorer | StoredScorer,
    described: dict[str, object],
    files: list[InputFile],
) -> ShardSet:
    directory = OutputDirectory(config.output)
    for i, file in enumerate(files):
        for split in plan_file(file, file_format(file, "auto"), 1 << 30).splits:
            patch_unit((split,), i, config, scorer, directory, lambda tokens: None)
    if config.bpe is not None:
        directory.write(TOKENIZER_FILE, config.bpe.content)
    columns = shard_schema(config.keep_columns, entropies=config.keep_entropies).names
    sources = [{"name": Path(url).name, "url": url} for url in config.input]
    provenance = {
        "patcher": scorer.patcher.to_json(),
        "columns": columns,
        "entropy_model": described,
        "sources": sources,
    }
    write_manifest(directory, provenance, list(read_entries(directory).values()))
    return ShardSet(config.output)
