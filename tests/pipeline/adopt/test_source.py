"""Files that are adopted, and the model that a user names for them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.texts import topics

from model import NGramEntropyModel, Patcher, save_entropy_model
from model.checkpoints.entropy_model import fingerprint
from model.tokenizer import encode_documents
from pipeline.adopt.config import AdoptShardsConfig
from pipeline.adopt.source import leave_out_texts, stored_entropies
from pipeline.corpus.inputs import find_inputs
from pipeline.errors import ConfigError
from pipeline.patch.scoring import Scorer

TEXTS = [text[:2000] for _, text in topics()[:10]]  # more than is compared


@pytest.fixture
def adopting(ngram_model: NGramEntropyModel, tmp_path: Path) -> AdoptShardsConfig:
    """A corpus with the entropies of a model, and the flags that name it."""
    save_entropy_model(ngram_model, tmp_path / "model")
    with (tmp_path / "a.jsonl").open("w") as file:
        for text in TEXTS:
            scored = Scorer(ngram_model, Patcher(rule="byte")).score([text.encode()])
            h = scored.entropies_T.astype(float).tolist()
            file.write(json.dumps({"text": text, "entropies": h}) + "\n")
    source = (str(tmp_path / "a.jsonl"),)
    return AdoptShardsConfig(source, "out", threshold=1.0, entropy_model=str(tmp_path / "model"))


def stored(config: AdoptShardsConfig):
    return stored_entropies(config, find_inputs(config.input).files)


def test_a_model_that_is_named_is_compared_and_recorded(adopting, ngram_model):
    found = stored(adopting)
    identity = found.identity
    assert (identity.source, identity.fingerprint) == (
        adopting.entropy_model,
        fingerprint(ngram_model),
    )
    assert identity.reset_at_newline is False and identity.computed_in is None
    nobody = stored(replace(adopting, entropy_model=None))
    assert nobody.identity.fingerprint is None and nobody.flops_per_byte is None


def test_another_model_is_refused(adopting, tmp_path):
    tokens_T, lengths_D = encode_documents([b"abc" * 300])
    other = NGramEntropyModel.fit([(tokens_T, np.asarray(lengths_D))])
    save_entropy_model(other, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"gives other entropies .* by \d\.\d\d nats on average"):
        stored(replace(adopting, entropy_model=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match="--entropy-model: "):
        stored(replace(adopting, entropy_model=str(tmp_path / "none")))


def test_nothing_to_compare(adopting):
    Path(adopting.input[0]).write_text('{"text": "a", "entropies": [1]}\n')
    with pytest.raises(ConfigError, match="the first files hold no document with entropies"):
        stored(adopting)


def test_the_corpus_beside_published_shards_is_left_out(tmp_path):
    """The published preprocessing writes shards below the chunks that they are made of."""
    names = ["web.chunk.00.jsonl", "m/web.chunk.00.jsonl.shard_0.arrow", "m/manifest.json"]
    (tmp_path / "m").mkdir()
    for name in [*names, f"{names[1]}.complete"]:
        (tmp_path / name).touch()
    config = AdoptShardsConfig((str(tmp_path),), "out", threshold=1.0)
    inputs = find_inputs(config.input)
    leave_out_texts(inputs, config)
    assert [file.name for file in inputs.files] == [names[1]]
    reasons = set(inputs.unread.values())
    assert len(inputs.unread) == 2 and reasons == {"beside published shards, without entropies"}
    # Entropies are adopted wherever they are; chunks that shards name have none.
    (tmp_path / "more.jsonl").write_text('{"text": "a", "entropies": [1, 1, 1]}\n')
    more = find_inputs(config.input)
    leave_out_texts(more, config)
    assert [file.name for file in more.files] == [names[1], "more.jsonl"]
    (tmp_path / "more.jsonl").unlink()
    (tmp_path / names[1]).unlink()
    alone = find_inputs(config.input)
    leave_out_texts(alone, config)
    assert [file.name for file in alone.files] == [names[2], names[0]]
