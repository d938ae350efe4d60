"""Summaries: what is counted, that parts add up to the whole, that nothing makes them large."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from support.texts import topics

from model import Patcher
from model.tokenizer import encode_documents
from pipeline.corpus.documents import Document
from pipeline.patches import patch_stored
from pipeline.shards.format import read_patches, record_batch, shard_schema
from pipeline.statistics.excerpts import MOST_EXCERPTS
from pipeline.statistics.groups import (
    ENTROPY_UNIT,
    MISSING,
    MOST_GROUPS,
    OTHERS,
    GroupCounts,
    largest,
)
from pipeline.statistics.summary import MOST_REASONS, Summary
from pipeline.statistics.writing_systems import JAPANESE, NONE, script_of

PATCHER = Patcher(1.5)


def summary_of(
    texts: list[str], groups: list[str | None], h_T: np.ndarray, first: int = 0
) -> Summary:
    data = [text.encode() for text in texts]
    tokens_T, lengths_D = encode_documents(data)
    patched = patch_stored(PATCHER, h_T, lengths_D, tokens_T)
    rows = [
        Document(str(i), f"d{i}", text, (group,))
        for i, (text, group) in enumerate(zip(data, groups, strict=True), first)
    ]
    batch = record_batch(rows, patched, shard_schema(("group",)))
    found = Summary.of(batch, patched, PATCHER, ["group"])
    # A reader finds the same in the rows.
    assert Summary.of(batch, read_patches(batch), PATCHER, ["group"]).to_json() == found.to_json()
    return found


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], list[str | None], list[np.ndarray]]:
    texts = [text[:700] for _, text in topics()[:30]] + ["", "é", "日本語のテキスト" * 30, "1 2 3"]
    groups: list[str | None] = [(None, "a", "b", "ß")[i % 4] for i in range(len(texts))]
    random = np.random.default_rng(0)
    entropies = [random.gamma(1, 1, len(t.encode()) + 2).astype(np.float16) for t in texts]
    return texts, groups, entropies


@pytest.mark.parametrize("cuts", [(0, 34), (0, 1, 34), (0, 10, 11, 30, 34), (0, 0, 17, 34, 34)])
def test_parts_add_up_to_the_whole(corpus, cuts):
    texts, groups, entropies = corpus
    whole = summary_of(texts, groups, np.concatenate(entropies))
    total = Summary()
    for a, b in pairwise(cuts):
        part_T = np.concatenate([np.zeros(0, np.float16), *entropies[a:b]])
        if a == b:  # no rows, no batch
            continue
        part = summary_of(texts[a:b], groups[a:b], part_T, first=a)
        total += Summary.from_json(json.loads(json.dumps(part.to_json())))
    assert total.to_json() == whole.to_json()


def test_groups_count_what_a_loop_counts(corpus):
    texts, groups, entropies = corpus
    found = summary_of(texts, groups, np.concatenate(entropies)).columns["group"]
    for name in (None, "a", "b", "ß"):
        documents = [i for i, group in enumerate(groups) if group == name]
        patches = [PATCHER.patch_lengths(torch_row(entropies[i])).shape[1] for i in documents]
        exact = sum(float(h) for i in documents for h in entropies[i].tolist())
        counts = found[MISSING if name is None else name]
        assert counts.documents == len(documents)
        assert counts.bytes == sum(len(texts[i].encode()) for i in documents)
        assert counts.patches == sum(patches)
        assert counts.entropy * ENTROPY_UNIT == exact


def torch_row(h_T: np.ndarray):
    import torch

    return torch.from_numpy(h_T)[None]


def test_excerpts_show_the_longest_and_the_shortest_patches(corpus):
    texts, groups, entropies = corpus
    long = ["x" * 300 + "é" * 500, "short: " + "y" * 100, "q" * 900]
    low = [np.full(len(t.encode()) + 2, 0.5, np.float16) for t in long]
    low[0][300] = 3.0  # a patch of 300 bytes, then one of 1,000
    noisy = "every byte of this one is a surprise, and so each of them is a patch" * 2
    high = np.full(len(noisy) + 2, 3.0, np.float16)
    found = summary_of(
        [*texts, *long, noisy], [*groups, *"abcd"], np.concatenate([*entropies, *low, high])
    )
    assert [e.measure for e in found.longest[:3]] == [1000, 900, 107]
    first = found.longest[0]
    assert (first.sample_id, first.position) == ("d34", 252)
    assert [len(patch) for patch in first.patches()] == [48, 112]
    assert b"".join(first.patches()).decode() == first.text == "x" * 48 + "é" * 56
    assert len(found.longest) == len(found.shortest) == MOST_EXCERPTS
    assert found.shortest[0].sample_id == "d37"
    assert found.shortest[0].patches()[:3] == [b"e", b"v", b"e"]
    assert found.shortest[0].measure == pytest.approx(1, abs=0.02)


def test_a_cut_in_a_character_is_no_cut_of_the_excerpt():
    text = "日本語" * 60
    h_T = np.full(len(text.encode()) + 2, 2.0, np.float16)
    (excerpt,) = summary_of([text], ["a"], h_T).shortest
    assert excerpt.text == text[:53] and set(excerpt.patch_bytes) == {1}


def test_many_values_do_not_make_it_large():
    texts = ["x" * 50] * 3000
    h_T = np.full(52 * 3000, 1.0, np.float16)
    ids = [f"https://example.org/{i}" for i in range(3000)]
    unique = json.loads(json.dumps(summary_of(texts, ids, h_T).to_json()))
    assert list(unique["columns"]["group"]) == [OTHERS]
    assert unique["columns"]["group"][OTHERS][0] == 3000
    # As of the web: some values that repeat, among thousands that do not.
    web = ["wiki" if i % 5 == 0 else url for i, url in enumerate(ids)]
    found = summary_of(texts, web, h_T).to_json()["columns"]["group"]
    assert {name: counts[0] for name, counts in found.items()} == {"wiki": 600, OTHERS: 2400}
    sites = [f"site {i % 1000}" for i in range(3000)]
    some = summary_of(texts, sites, h_T).to_json()["columns"]["group"]
    assert len(some) == MOST_GROUPS + 1
    assert sum(counts[0] for counts in some.values()) == 3000
    huge = summary_of(texts[:1], ["v" * 1_000_000], h_T[:52]).to_json()
    assert len(json.dumps(huge)) < 3000


def test_the_largest_groups_stay_and_all_are_counted():
    groups = {str(i): GroupCounts(10, i, 1, 1) for i in range(5)} | {OTHERS: GroupCounts(1, 1, 1)}
    kept = largest(groups, 2)
    assert list(kept) == ["4", "3", OTHERS]
    assert kept[OTHERS] == GroupCounts(31, 4, 4, 3)
    assert largest(kept, 2) == kept


def test_reasons_are_counted_without_their_numbers():
    summary = Summary()
    summary.reject(f"line is not valid UTF-8: invalid start byte at byte {i}" for i in range(7))
    summary.reject("no field 'text'" for _ in range(2))
    reasons = {"line is not valid UTF-…: invalid start byte at byte …": 7, "no field 'text'": 2}
    assert summary.reasons == Counter(reasons)
    summary.reject(chr(ord("a") + i % 26) * (i // 26 + 1) for i in range(50))
    kept = summary.to_json()["reasons"]
    assert len(kept) == MOST_REASONS + 1 and sum(kept.values()) == 59
    assert Summary.from_json(summary.to_json()).to_json() == summary.to_json()


@pytest.mark.parametrize(
    "text, script",
    [
        ("plain", "Latin"),
        ("“quoted” héllo", "Latin"),
        ("12 + 3", NONE),
        ("", NONE),
        ("😀😀", NONE),
        ("Привет, мир!", "Cyrillic"),
        ("مرحبا بالعالم", "Arabic"),
        ("你好，世界", "Han"),
        ("日本語のテキスト", JAPANESE),
        ("한국어", "Hangul"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("α" * 10 + "a" * 9, "Greek"),
    ],
)
def test_scripts(text, script):
    assert script_of(text.encode()) == script
    assert script_of(text.encode() + b"\xf0\x9f") == script  # cut in a character
