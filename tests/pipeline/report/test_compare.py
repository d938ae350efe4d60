"""Agreement of sets, against loops over their documents."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import log
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from support import tiny
from support.shard_sets import real_texts, rewrite, write_shards

from model import Patcher, save_entropy_model
from model.checkpoints.entropy_model import fingerprint
from model.provenance import EntropyModelIdentity
from model.tokenizer import encode_documents
from pipeline.errors import PipelineError
from pipeline.patches import recut
from pipeline.report import common_documents, compare
from pipeline.report.agreement import BoundaryAgreement, SetAgreement
from pipeline.report.agreement_wording import MISSING, agreement_rows, brief
from pipeline.report.compare import compare_sets, share_of
from pipeline.report.model_loss import model_loss
from pipeline.shards.format import PATCH_LENGTHS, PatchedDocument
from pipeline.shards.shard_set import ShardSet

FIRST = 2
"""The first token of a document about which rules decide, but for published ones."""


def agreement_of(*sets: ShardSet, documents: int | None = None, loss: int = 0) -> SetAgreement:
    named = [(f"set {i}", one) for i, one in enumerate(sets)]
    (found,) = compare_sets(named, documents, loss, Console(quiet=True))
    return found


def naive_pairs(reference: ShardSet, other: ShardSet) -> list:
    """Documents of equal text, the first with the first."""
    waiting = defaultdict(list)
    for document in other:
        waiting[document.text].append(document)
    return [(d, waiting[d.text].pop(0)) for d in reference if waiting[d.text]]


def starts(lengths: Sequence[int], first: int = FIRST) -> set[int]:
    return {start for start in [0, *accumulate(lengths)][:-1] if start >= first}


def naive_counts(pairs, first: int = FIRST) -> list[int]:
    """places, starts of the reference, of the other, of both."""
    rows = []
    for a, b in pairs:
        of_a, of_b = (starts(d.patch_lengths.tolist(), first) for d in (a, b))
        places = max(len(a.text.encode()) + 2 - first, 0)
        rows.append([places, len(of_a), len(of_b), len(of_a & of_b)])
    return np.array(rows).reshape(-1, 4).sum(axis=0).tolist()


def counts(agreement: BoundaryAgreement) -> list[int]:
    total = agreement.total
    return [total.places, total.reference_starts, total.other_starts, total.common_starts]


def repatched(document: PatchedDocument, patcher: Patcher) -> PatchedDocument:
    text = document.text.encode()
    lengths_D = np.array([len(text) + 2])
    patched = recut(patcher, np.array(document.entropies), lengths_D, [text])
    return document._replace(patch_lengths=patched.patch_lengths_P)


TEXTS = [text.decode() for text in real_texts(40)] + ["语言 и é", "same", "same"]


@given(st.lists(st.sampled_from(TEXTS), min_size=1), st.lists(st.sampled_from(TEXTS), min_size=1))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_agreement_is_that_of_a_loop(tmp_path_factory, texts_a, texts_b):
    """Whatever the order, the shards, what one set lacks, and how often it has a text."""
    directory = tmp_path_factory.mktemp("sets")
    a = write_shards(directory / "a", [t.encode() for t in texts_a], per_batch=3, seed=1)
    b = write_shards(directory / "b", [t.encode() for t in texts_b], per_shard=1, seed=2)
    found = agreement_of(a, b)
    pairs = naive_pairs(a, b)
    assert found.overlap.reference_documents == len(texts_a)
    assert found.overlap.other_documents == len(texts_b)
    assert found.overlap.common_documents == len(pairs)
    assert found.overlap.common_texts == len(set(texts_a) & set(texts_b))
    if not pairs:
        assert found.as_stored is None and "none of the" in found.problems[0]
        return
    assert counts(found.as_stored) == naive_counts(pairs)
    assert found.overlap.common_bytes == sum(len(d.text.encode()) for d, _ in pairs)
    for groups in (found.as_stored.scripts, found.as_stored.kinds):
        of_groups = [group.scores for group in groups]
        assert sum(s.common_starts for s in of_groups) == found.as_stored.total.common_starts
        assert sum(s.places for s in of_groups) == found.as_stored.total.places


@pytest.fixture(scope="module")
def texts() -> list[bytes]:
    return [*real_texts(60), "Привет, мир! Как дела? ".encode() * 20, "语言模型。".encode() * 60]


@pytest.fixture(scope="module")
def both(texts, tmp_path_factory) -> tuple[ShardSet, ShardSet]:
    """Two sets of the same texts with entropies that have nothing to do with each other."""
    directory = tmp_path_factory.mktemp("both")
    first, second = (write_shards(directory / str(n), texts, seed=n) for n in (1, 2))
    return first, second


def test_entropies_correlate_as_over_all_documents(texts, tmp_path):
    a = write_shards(tmp_path / "a", texts, seed=1)
    write_shards(tmp_path / "b", texts[::-1], seed=2)
    # Half of the entropies are those of the other set.
    first = {document.text: document.entropies for document in a}

    def mixed(batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = zip(batch["text"].to_pylist(), batch["entropies"].to_pylist(), strict=True)
        lists = [[*first[t][: len(h) // 2], *h[len(h) // 2 :]] for t, h in rows]
        place = batch.schema.get_field_index("entropies")
        field = batch.schema.field(place)
        return batch.set_column(place, field, pa.array(lists, field.type))

    rewrite(tmp_path / "b", mixed)
    found = agreement_of(a, ShardSet(str(tmp_path / "b"))).entropies
    pairs = naive_pairs(a, ShardSet(str(tmp_path / "b")))
    x, y = (
        np.concatenate([pair[i].entropies[FIRST - 1 : -1] for pair in pairs]).astype(float)
        for i in (0, 1)
    )
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.spearman == pytest.approx(np.corrcoef(*map(quick_ranks, (x, y)))[0, 1])
    assert 0.3 < found.spearman < 0.7
    assert found.reference_mean_bits == pytest.approx(x.mean() / log(2))
    assert found.other_mean_bits == pytest.approx(y.mean() / log(2))


def quick_ranks(x: np.ndarray) -> np.ndarray:
    values, where = np.unique(x, return_inverse=True)
    below = np.searchsorted(np.sort(x), values)
    up_to = np.searchsorted(np.sort(x), values, side="right")
    return ((below + up_to + 1) / 2)[where]


RULES = [
    Patcher(1.05),
    Patcher(1.3, max_patch_length=5),
    Patcher(0.3, rule="monotonic"),
    Patcher(0.9, rule="combined", threshold_add=0.1),
    Patcher(0.9, rule="combined", threshold_add=0.1, published=True),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_at_equal_size_one_threshold_is_moved(texts, tmp_path, rule):
    a = write_shards(tmp_path / "a", texts, seed=1)
    b = write_shards(tmp_path / "b", texts, seed=2, patcher=rule)
    first = 4 if rule.published else FIRST
    found = agreement_of(a, b)
    pairs = naive_pairs(a, b)
    assert counts(found.as_stored) == naive_counts(pairs, first)
    equal = found.equal_size
    assert equal.reference_threshold == a.patcher.threshold
    moved = replace(rule, threshold=equal.other_threshold)
    again = [(x, repatched(y, moved)) for x, y in pairs]
    assert counts(equal) == naive_counts(again, first)
    patches = [sum(len(pair[i].patch_lengths) for pair in again) for i in (0, 1)]
    assert equal.reference_patch_bytes == pytest.approx(found.overlap.common_bytes / patches[0])
    assert equal.other_patch_bytes == pytest.approx(found.overlap.common_bytes / patches[1])
    # No other threshold comes closer.
    for step in (-1, 1):
        near = np.nextafter(np.float16(moved.threshold), np.float16(step * np.inf))
        there = replace(rule, threshold=float(near))
        other = sum(len(repatched(y, there).patch_lengths) for _, y in pairs)
        assert abs(other - patches[0]) >= abs(patches[1] - patches[0])
    if rule.compares == "entropy":
        assert patches[1] == pytest.approx(patches[0], rel=0.01)


@pytest.mark.parametrize(
    "other, moves",
    [
        (Patcher(rule="space"), "reference"),
        (Patcher(rule="static", patch_size=4.5), "reference"),
        (Patcher(rule="top-k", patch_size=5.0), "reference"),
        (Patcher(1.0), "reference"),
    ],
    ids=str,
)
def test_where_the_other_set_cannot_be_re_patched_the_reference_is(texts, tmp_path, other, moves):
    a = write_shards(tmp_path / "a", texts, seed=1, rates=(0.4,))
    b = write_shards(tmp_path / "b", texts, seed=2, patcher=other, entropies=False)
    found = agreement_of(a, b)
    assert counts(found.as_stored) == naive_counts(naive_pairs(a, b))
    assert found.entropies is None
    moved = replace(a.patcher, threshold=found.equal_size.reference_threshold)
    again = [(repatched(x, moved), y) for x, y in naive_pairs(a, b)]
    assert counts(found.equal_size) == naive_counts(again)
    sizes = (found.equal_size.reference_patch_bytes, found.equal_size.other_patch_bytes)
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    # Neither has what that takes.
    bare = write_shards(tmp_path / "bare", texts, seed=1, entropies=False)
    found = agreement_of(bare, b)
    assert found.equal_size is None and found.as_stored is not None
    assert found.typical[0].f1 is not None


def test_documents_without_text_have_nothing_to_compare(tmp_path):
    empty = write_shards(tmp_path, [b"", b""])
    found = agreement_of(empty, empty)
    assert found.overlap.common_documents == 2 and found.as_stored.total.places == 0
    assert found.as_stored.total.f1 is None and found.entropies.other_mean_bits is None
    json.dumps(found.to_json(), allow_nan=False)
    assert found.typical == found.unlike == []
    assert brief(found).startswith("set 1 and set 0, 2 common documents")
    rows = dict(agreement_rows(found))
    assert rows["F1 of patch starts"] == [MISSING, MISSING]


def test_the_same_patches_agree_and_random_ones_reach_what_chance_does(both):
    same = agreement_of(both[0], both[0])
    assert same.as_stored.total.f1 == same.as_stored.total.kappa == 1
    assert same.entropies.spearman == pytest.approx(1)
    assert same.as_stored.intervals.f1 == (1, 1)
    random = agreement_of(*both)
    total = random.equal_size.total
    assert total.f1 == pytest.approx(total.chance_f1, abs=0.01)
    assert total.f1 == pytest.approx(0.22, abs=0.02) and abs(total.kappa) < 0.01
    low, high = random.equal_size.intervals.f1
    assert low < total.f1 < high < low + 0.03


def test_intervals_are_those_of_a_plain_loop(both, texts, tmp_path, monkeypatch):
    a, b = both
    found = agreement_of(a, b).as_stored.intervals
    by_text = defaultdict(lambda: np.zeros(4))
    for pair in naive_pairs(a, b):
        by_text[pair[0].text] += naive_counts([pair])
    rows = np.array(list(by_text.values()))
    draws = np.random.default_rng(compare.SEED)
    sums = [rows[draws.integers(len(rows), size=len(rows))].sum(axis=0) for _ in range(2000)]
    for values, ends in (
        ([2 * s[3] / (s[1] + s[2]) for s in sums], found.f1),
        ([s[3] / s[2] for s in sums], found.precision),
        ([s[3] / s[1] for s in sums], found.recall),
    ):
        np.testing.assert_allclose(np.quantile(values, [0.025, 0.975]), ends)
    # Many texts are drawn in groups, which hardly changes them.
    monkeypatch.setattr(compare, "MOST_DRAWN", 30)
    low, high = agreement_of(a, b).as_stored.intervals.f1
    assert low < high and high - low == pytest.approx(found.f1[1] - found.f1[0], rel=0.5)
    one = write_shards(tmp_path / "one", texts[:1])
    assert agreement_of(one, one).as_stored.intervals.f1 is None


def test_blocks_change_nothing(both, monkeypatch):
    a, b = both
    whole = agreement_of(a, b)
    monkeypatch.setattr(common_documents, "BLOCK_BYTES", 500)
    found = agreement_of(a, b)
    for name in ("pearson", "spearman"):  # up to rounding
        value = getattr(whole.entropies, name)
        assert getattr(found.entropies, name) == pytest.approx(value, abs=1e-9)
    assert replace(found, entropies=whole.entropies) == whole


def test_a_sample_is_the_same_texts_in_all_sets(tmp_path):
    texts = [f"text {i} of many, {i * i} words".encode() * 3 for i in range(750)]
    a = write_shards(tmp_path / "a", texts, per_batch=100, seed=1)
    b = write_shards(tmp_path / "b", texts[::-1] + [b"more"] * 9, per_batch=70, seed=2)
    sample, every = agreement_of(a, b, documents=150), agreement_of(a, b)
    assert every.overlap.share == 1 and every.overlap.other_documents == 759
    assert sample.overlap.share == pytest.approx(0.2)
    assert 100 < sample.overlap.common_documents < 200
    assert sample.overlap.common_documents == sample.overlap.reference_documents
    low, high = sample.as_stored.intervals.f1
    assert low - 0.01 < every.as_stored.total.f1 < high + 0.01
    assert agreement_of(a, b, documents=5000) == every


def test_default_samples_are_bounded_by_documents_and_bytes(both, texts, monkeypatch):
    a, _ = both
    assert share_of(a, None) == 1
    monkeypatch.setattr(compare, "SAMPLE_BYTES", a.statistics.bytes // 4)
    assert share_of(a, None) == pytest.approx(0.25, rel=0.01)
    assert share_of(a, len(texts) // 2) == 0.5  # what is asked for is what is done


def test_ids_with_another_text_are_counted(tmp_path):
    texts = [f"text {i}".encode() * 9 for i in range(8)]  # their ids begin anew in each batch of 4
    a = write_shards(tmp_path / "a", texts)
    b = write_shards(tmp_path / "b", [*texts[:3], *(text.upper() for text in texts[3:])])
    overlap = agreement_of(a, b).overlap
    assert (overlap.common_documents, overlap.same_id_other_text) == (3, 4)


def test_a_damaged_shard_is_named_and_its_rest_left_out(texts, tmp_path):
    a = write_shards(tmp_path / "a", texts, seed=1)
    b = write_shards(tmp_path / "b", texts, seed=2)
    whole = agreement_of(a, b)
    shard = sorted((tmp_path / "b" / "shards").iterdir())[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    found = agreement_of(a, b)
    (problem,) = found.problems
    assert str(shard) in problem and "its rest is not compared" in problem
    assert 0 < found.overlap.common_documents < whole.overlap.common_documents


def test_patches_of_another_text_are_named(texts, tmp_path):
    a = write_shards(tmp_path / "a", texts, seed=1)
    write_shards(tmp_path / "b", texts, seed=2)

    def longer(batch: pa.RecordBatch) -> pa.RecordBatch:
        place = batch.schema.get_field_index(PATCH_LENGTHS)
        field = batch.schema.field(place)
        lists = [[*lengths, 1] for lengths in batch[PATCH_LENGTHS].to_pylist()]
        return batch.set_column(place, field, pa.array(lists, field.type))

    rewrite(tmp_path / "b", longer)
    found = agreement_of(a, ShardSet(str(tmp_path / "b")))
    assert found.overlap.common_documents == 0
    assert "its patches or entropies are not those of its texts" in found.problems[0]


def test_without_room_the_error_names_the_directory(both, monkeypatch):
    a, _ = both

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(common_documents.Sample, "_keep", full)
    with pytest.raises(PipelineError, match="No space left on device; set TMPDIR"):
        agreement_of(a, a)


def test_examples_show_the_patches_of_both_sets(both):
    a, b = both
    found = agreement_of(a, b)
    assert [e.script for e in found.typical][:1] == ["Latin"]
    assert {"Cyrillic", "Han"} <= {e.script for e in found.typical}
    assert found.unlike[0].f1 == min(e.f1 for e in [*found.typical, *found.unlike])
    moved = replace(b.patcher, threshold=found.equal_size.other_threshold)
    pairs = {pair[0].text: pair for pair in naive_pairs(a, b)}
    for example in (*found.typical, *found.unlike):
        size = len(example.text.encode())
        (text,) = (
            t for t in pairs if t.encode()[example.position :].startswith(example.text.encode())
        )
        x, y = pairs[text]
        for document, sizes in (
            (x, example.reference_patch_bytes),
            (repatched(y, moved), example.other_patch_bytes),
        ):
            assert sum(sizes) == size
            inside = {example.position + edge for edge in accumulate(sizes[:-1])}
            edges = {edge - 1 for edge in accumulate(document.patch_lengths.tolist())}
            stop = example.position + size
            assert inside == {edge for edge in edges if example.position < edge < stop}
        _, of_a, of_b, both = naive_counts([(x, repatched(y, moved))])
        assert example.f1 == pytest.approx(2 * both / (of_a + of_b))


def test_losses_are_those_of_the_models(texts, tmp_path):
    model = tiny.entropy_model()
    save_entropy_model(model, tmp_path / "model")
    named = EntropyModelIdentity(str(tmp_path / "model"), fingerprint(model), "cpu float32", False)

    def loss(**changes: object):
        identity = replace(named, **changes)
        return model_loss(write_shards(tmp_path / "x", texts[:1], entropy_model=identity), some)

    some = [text[:400] for text in texts[:4]]
    tokens, lengths = encode_documents(some)
    nats = 0.0
    for document in np.split(tokens, lengths.cumsum()[:-1]):
        ids = torch.from_numpy(document).long()
        with torch.inference_mode():
            logits = model.logits_packed(ids[:-1], torch.tensor([len(ids) - 1]))
        nats += float(torch.nn.functional.cross_entropy(logits.float(), ids[1:], reduction="sum"))
    found = loss()
    assert found.note == ""
    assert found.bits_per_byte == pytest.approx(nats / sum(map(len, some)) / log(2), rel=1e-4)
    for changes, note in (
        ({"source": "ngram"}, "entropies and no probabilities"),
        ({"source": str(tmp_path / "gone")}, "gone"),
        ({"source": None}, "does not name its model"),
        ({"fingerprint": "f" * 64}, "its fingerprint differs"),
        ({"reset_at_newline": True}, "newline"),
    ):
        found = loss(**changes)
        assert found.bits_per_byte is None and note in found.note
    spaces = write_shards(tmp_path / "s", texts[:1], patcher=Patcher(rule="space"))
    assert "reads no entropies" in model_loss(spaces, some).note


def test_losses_are_measured_on_what_is_asked_for(both):
    a, _ = both
    found = agreement_of(a, a, loss=1000)
    assert found.losses.bytes == 1000 and "does not name" in found.losses.other.note
    assert agreement_of(a, a).losses is None
    assert json.loads(json.dumps(found.to_json()))["losses"]["bytes"] == 1000


def test_temporary_files_are_removed(both, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    agreement_of(*both)
    assert not list(Path(tmp_path / "room").iterdir())
