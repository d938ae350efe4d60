"""Named corpora, and any data set of the hub."""

import re
from fnmatch import fnmatchcase
from typing import get_args, get_type_hints

import pytest

from pipeline.corpus.named import CORPORA, Corpus, find_corpus, list_corpus
from pipeline.errors import ConfigError
from pipeline.prepare.config import PrepareCorpusConfig
from pipeline.storage.known_tokenizers import TOKENIZERS
from pipeline.storage.listing import InputFile


def matches(corpus: Corpus, path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in corpus.files)


def test_named_corpora_are_pinned_parts_of_repositories():
    assert all(re.fullmatch("[0-9a-f]{40}", corpus.revision) for corpus in CORPORA.values())
    assert all(find_corpus(name) == CORPORA[name] for name in CORPORA)
    fineweb, sample = CORPORA["fineweb_edu"], CORPORA["fineweb_edu_10bt"]
    assert matches(fineweb, "data/CC-MAIN-2024-10/train-00000-of-00020.parquet")
    assert not matches(fineweb, "sample/10BT/000_00000.parquet")
    assert matches(sample, "sample/10BT/000_00000.parquet")
    assert not matches(sample, "sample/100BT/000_00000.parquet")
    dclm, tenth = CORPORA["dclm_baseline_1.0"], CORPORA["dclm_baseline_1.0_10prct"]
    for shard, is_in_tenth in (("01", True), ("10", False)):
        path = f"global-shard_{shard}_of_10/local-shard_0_of_10/shard_00000000.jsonl.zst"
        assert matches(dclm, path) and matches(tenth, path) == is_in_tenth


def test_any_dataset_of_the_hub_is_a_corpus():
    for name, revision in (("some.one/data_1", "main"), ("a/b@v1.0", "v1.0"), ("a/b@x/y", "x/y")):
        corpus = find_corpus(name)
        assert (corpus.name, corpus.repository) == (name, name.partition("@")[0])
        assert (corpus.format, corpus.text_column, corpus.id_column) == ("auto", "text", None)
        assert corpus.revision == revision
    for path in ("a.parquet", "deep/er/b.jsonl.zst", "c.json.gz", "d.ndjson", "e.arrow"):
        assert matches(corpus, path)
    for path in ("README.md", "LICENSE.txt", "a.pdf", "script.py"):
        assert not matches(corpus, path)


def test_other_splits_of_a_repository_are_left_out(monkeypatch):
    names = ("data/test-0.parquet", "data/train-0.parquet", "x.jsonl", "val/y.jsonl")
    names += (".gitattributes", "README.md", "dataset_infos.json", "more.tar")
    files = [InputFile(f"hf://{name}", name, 1, "") for name in names]
    monkeypatch.setattr("pipeline.storage.hub.list_repository", lambda _: files)
    monkeypatch.setattr("pipeline.storage.hub.check_access", lambda *_: None)

    def listed(*patterns):
        corpus = PrepareCorpusConfig("out", corpus="a/b", files=patterns).find_corpus()
        chosen, left_out = list_corpus(corpus)
        return [file.name for file in chosen], left_out

    other = "in another split than train"
    assert listed() == (
        ["data/train-0.parquet", "x.jsonl"],
        {
            "hf://data/test-0.parquet": other,
            "hf://val/y.jsonl": other,
            "hf://.gitattributes": "hidden",
            "hf://README.md": "about the data",
            "hf://dataset_infos.json": "about the data",
            "hf://more.tar": "in no known format",
        },
    )
    # Who names files means them.
    assert listed("*.parquet", "*.md") == ([*names[:2], "README.md"], {})


@pytest.mark.parametrize("name", ["fineweb", "./a/b", "a/b/c", "a/*.jsonl", "s3://a/b", "a/b@", ""])
def test_what_else_a_corpus_may_be_is_told(name):
    with pytest.raises(
        ConfigError, match=rf"^--corpus {re.escape(name)}: no such corpus.*"
    ) as told:
        find_corpus(name)
    assert all(known in str(told.value) for known in [*CORPORA, "owner/name@revision"])


def test_a_named_corpus_is_one_entry_in_the_table(monkeypatch):
    corpus = Corpus("toy", "lab/toy", ("*.jsonl",), "jsonl", "body", None, revision="0" * 40)
    monkeypatch.setitem(CORPORA, "toy", corpus)
    assert find_corpus("toy") == PrepareCorpusConfig("out", corpus="toy").find_corpus() == corpus
    with pytest.raises(ConfigError, match=r"there are fineweb_edu, .*, toy, and every dataset"):
        find_corpus("toys")


def test_the_flag_s_help_names_every_corpus_and_tokenizer():
    for field, names in (("corpus", CORPORA), ("tokenizer", TOKENIZERS)):
        hint = get_type_hints(PrepareCorpusConfig, include_extras=True)[field]
        (argument,) = get_args(hint)[1:]
        assert ", ".join(names) in argument.help
