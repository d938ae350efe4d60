"""Training on patches that a tokenizer or the input gave, and patching so at load."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.bpe import byte_level
from support.texts import topics, write_jsonl

from model import Patcher
from pipeline import open_shards
from pipeline.bpe.byte_level import BPE
from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet
from train.data.provenance import compare_sets
from train.data.row_settings import RowSettings, RuleSettings
from train.data.row_stream import RowStream

TEXTS = [(name, text[:1500]) for name, text in topics()[:12]]
CONTENT = byte_level([text.encode() for _, text in TEXTS])
BPE_RULE = Patcher(rule="bpe", tokenizer=BPE("mine", CONTENT).sha256)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, ngram_model) -> Path:
    """The same text, patched by threshold, by a tokenizer, and as the input says."""
    directory = tmp_path_factory.mktemp("sets")
    source = write_jsonl(directory / "in.jsonl", TEXTS)
    tokenizer = str(directory / "mine.json")
    Path(tokenizer).write_bytes(CONTENT)
    tiny.make_shards(directory / "global", source, ngram_model, Patcher(2.0))
    named = {"rule": "bpe", "tokenizer": tokenizer}
    tiny.make_shards(directory / "bpe", source, ngram_model, BPE_RULE, **named)
    with (directory / "given.jsonl").open("w") as file:
        for _, text in TEXTS:
            size = len(text.encode())
            file.write(json.dumps({"text": text, "patch_lengths": [size - 7, 7]}) + "\n")
    given = Patcher(rule="given")
    tiny.make_shards(
        directory / "given", directory / "given.jsonl", ngram_model, given, rule="given"
    )
    return directory


def stream(url: Path, **rule: object) -> RowStream:
    return RowStream([str(url)], RowSettings(64, rule=RuleSettings(**rule), lanes=2))


def patches(rows: RowStream) -> np.ndarray:
    """Patch lengths of the whole set, as training reads them."""
    (source,) = rows.sources
    return np.concatenate([d.patch_lengths_P for d in source.read(0, 0, source.tokens)])


def stored(url: Path) -> list[int]:
    return np.concatenate([d.patch_lengths for d in open_shards(str(url))]).tolist()


def test_patches_are_read_as_they_are_stored(sets):
    for name in ("bpe", "given"):
        assert patches(stream(sets / name)).tolist() == stored(sets / name)
    assert stored(sets / "given")[1::3] == [len(text.encode()) - 7 for _, text in TEXTS]


def test_a_tokenizer_patches_at_load(sets):
    rows = stream(sets / "global", rule="bpe", tokenizer=str(sets / "mine.json"))
    assert patches(rows).tolist() == stored(sets / "bpe")
    assert rows.provenance[0].patcher == BPE_RULE
    # A checkpoint knows the tokenizer by its hash, wherever the file lies.
    assert rows.fingerprint()["rule"] == {"rule": "bpe", "tokenizer": BPE_RULE.tokenizer}


def test_a_set_knows_its_tokenizer(sets):
    assert stream(sets / "bpe", rule="bpe").sources[0].patcher is None
    cut = patches(stream(sets / "bpe", max_patch_length=2))
    assert cut.max() == 2 and cut.sum() == sum(stored(sets / "bpe"))
    other = sets / "other.json"
    other.write_bytes(byte_level([b"other text"], size=300))
    assert len(patches(stream(sets / "bpe", tokenizer=str(other)))) > len(stored(sets / "bpe"))


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        (
            "global",
            {"rule": "bpe"},
            r"dataloader.rule: the bpe rule needs the token",
        ),
        ("given", {"rule": "bpe"}, r"dataloader.rule: the bpe rule needs the tokenizer"),
        ("global", {"rule": "given"}, r"dataloader.rule: 'given' is not one of global"),
        (
            "given",
            {"max_patch_length": 9},
            r"dataloader.max_patch_length: .*placed again",
        ),
        ("global", {"tokenizer": "mine.json"}, r"--dataloader.patch-tokenizer: .*global rule does"),
        (
            "global",
            {"rule": "bpe", "tokenizer": "no.json"},
            "dataloader.patch-tokenizer no.json: no",
        ),
    ],
)
def test_what_cannot_be_patched_is_refused(sets, name, rule, message):
    if rule.get("tokenizer") == "mine.json":
        rule = {"tokenizer": str(sets / "mine.json")}
    with pytest.raises(ConfigError, match=message):
        stream(sets / name, **rule)


def test_given_patches_give_way_to_a_rule(sets):
    """The set has entropies, too."""
    lengths = patches(stream(sets / "given", rule="global", threshold=2.0)).tolist()
    assert lengths == stored(sets / "global")


def test_sets_of_different_tokenizers_are_not_mixed(sets, tmp_path, ngram_model):
    other = byte_level([b"other text"], size=300)
    (tmp_path / "other.json").write_bytes(other)
    source = write_jsonl(tmp_path / "in.jsonl", TEXTS[:2])
    patcher = Patcher(rule="bpe", tokenizer=BPE("other", other).sha256)
    named = {"rule": "bpe", "tokenizer": str(tmp_path / "other.json")}
    tiny.make_shards(tmp_path / "set", source, ngram_model, patcher, **named)
    two = [stream(url).provenance[0] for url in (sets / "bpe", tmp_path / "set")]
    with pytest.raises(ConfigError, match=r"the rule of .* is bpe \(tokenizer \w{12}\), that of"):
        compare_sets(two, allowed=False)
    # Adopted entropies are of a model that nobody named: that is said, or refused.
    shards = ShardSet(str(sets / "global"))
    tiny.adopt_shards(tmp_path / "adopted", Path(shards.output.url) / "shards", threshold=2.0)
    both = [stream(url).provenance[0] for url in (sets / "global", tmp_path / "adopted")]
    with pytest.raises(ConfigError, match=r"the entropy model of .* that of .*adopted is unknown"):
        compare_sets(both, allowed=False)
    (note,) = compare_sets([both[1], both[1]], allowed=False)
    assert note.startswith("neither") and note.endswith("records its entropy model")
