"""The sample, the threshold, and the n-gram model that come before a run."""

import argparse
import gzip
import inspect
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.texts import topics

from model import Patcher
from model.tokenizer import encode_documents
from pipeline.adopt.config import AdoptShardsConfig
from pipeline.corpus.formats import file_format
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file, whole_file
from pipeline.errors import PipelineError
from pipeline.patch import windows
from pipeline.patch.calibrate import calibrate
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.fit_ngram import fit_ngram, sample_documents
from pipeline.patch.scoring import Scorer
from pipeline.patch.stored import StoredScorer
from pipeline.patches import recut


@pytest.fixture
def planned(corpus):
    config = PatchCorpusConfig((str(corpus.parent),), "unused", target_patch_size=4.5)
    files = find_inputs(config.input).files
    return config, [split for file in files for split in plan_file(file, "jsonl", 50_000).splits]


def test_a_small_corpus_is_its_own_sample(planned):
    config, splits = planned
    documents = sample_documents(splits, config, 1 << 30)
    assert documents == [text.encode() for _, text in topics()]


def test_a_sample_is_seeded_bounded_and_from_all_over(planned):
    config, splits = planned
    sample = sample_documents(splits, config, 100_000)
    assert sample == sample_documents(splits, config, 100_000)
    assert sample != sample_documents(splits, replace(config, seed=1), 100_000)
    assert 90_000 <= sum(map(len, sample)) < 250_000
    order = [text.encode() for _, text in topics()]
    halves = {order.index(document) * 2 // len(order) for document in sample if document in order}
    assert halves == {0, 1}


@pytest.mark.parametrize("kind", ["ranges", "gzip", "row groups"])
def test_no_document_is_in_a_sample_twice(tmp_path, kind):
    """Although more places are drawn than there are different ones: of a gzip file it was the
    beginning 64 times, of a Parquet file those of its few row groups."""
    texts = [f"{i} {text}" for i, (_, text) in enumerate(topics())]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path = tmp_path / {"ranges": "a.jsonl", "gzip": "a.jsonl.gz"}.get(kind, "a.parquet")
    if kind == "row groups":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=len(texts) // 5)
    else:
        path.write_bytes(gzip.compress(lines) if kind == "gzip" else lines)
    config = PatchCorpusConfig((str(path),), "unused", target_patch_size=4.5)
    (file,) = find_inputs(config.input).files
    splits = plan_file(file, file_format(file, "auto"), 1 << 20).splits
    found = sample_documents(splits, config, 100_000)
    assert 70_000 <= sum(map(len, found)) < 250_000
    assert len(set(found)) == len(found)


def test_small_files_give_as_much_as_is_asked_for(tmp_path, monkeypatch):
    """64 of a thousand files of some bytes would be next to nothing. The same files are read
    whenever, and the larger ones first as a rule."""
    for i in range(1000):
        (tmp_path / f"{i:03}.txt").write_text(f"{i} " * (1 if i % 2 else 20))
    config = PatchCorpusConfig((str(tmp_path),), "unused", target_patch_size=4.5)
    files = find_inputs(config.input).files
    splits = [split for file in files for split in plan_file(file, "text", 50_000).splits]
    found = sample_documents(splits, config, 10_000)
    assert 10_000 <= sum(map(len, found)) < 10_100
    assert len(set(found)) == len(found)
    assert sum(len(text) > 10 for text in found) > len(found) / 2
    monkeypatch.setattr("pipeline.patch.fit_ngram.READERS", 1)
    assert sample_documents(splits, config, 10_000) == found


def test_a_corpus_that_is_no_larger_is_its_own_sample_however_its_files_differ(tmp_path):
    (tmp_path / "0.txt").write_text("long " * 2000)
    for i in range(1, 20):
        (tmp_path / f"{i}.txt").write_text("short")
    config = PatchCorpusConfig((str(tmp_path),), "unused", target_patch_size=4.5)
    files = find_inputs(config.input).files
    splits = [split for file in files for split in plan_file(file, "text", 50_000).splits]
    assert sum(map(len, sample_documents(splits, config, 10_100))) == 10_095


def test_unreadable_files_give_nothing_to_a_sample(planned, ngram_model, tmp_path):
    config, splits = planned
    gone = replace(splits[0], file=replace(splits[0].file, url=str(tmp_path / "gone.jsonl")))
    assert sample_documents([gone], config, 1000) == []
    with pytest.raises(PipelineError, match="--entropy-model ngram: no text"):
        fit_ngram([], config)
    found = calibrate(
        Scorer(ngram_model, Patcher(0.0)), [*splits, gone, gone], config, 4.5, 1 << 20
    )
    (left_out,) = found.left_out
    assert "gone.jsonl" in left_out


RULES = [
    Patcher(0.0),
    Patcher(0.0, "monotonic"),
    Patcher(0.0, "combined", threshold_add=-0.5),
    Patcher(0.0, max_patch_length=8),
]


@pytest.mark.parametrize("patcher", RULES, ids=lambda patcher: patcher.rule)
def test_the_threshold_meets_the_target(planned, ngram_model, patcher):
    """Of a small corpus exactly, as far as there is such a threshold; all of it is scored."""
    config, splits = planned
    found = calibrate(Scorer(ngram_model, patcher), splits, config, 4.5, 1 << 30)
    documents = sample_documents(splits, config, 1 << 30)
    assert mean_patch_size(Scorer(ngram_model, found.patcher), documents) == found.patch_size
    assert found.patch_size == pytest.approx(4.5, rel=0.02) and found.error == 0
    assert replace(found.patcher, threshold=0.0) == patcher
    # It is a number that the rule compares, and those next to it are no nearer.
    scored = Scorer(ngram_model, patcher).score(documents)
    h_T = scored.entropies_T.astype(np.float32)
    numbers = np.unique(np.diff(h_T) if patcher.compares == "rise" else h_T)
    place = int(np.searchsorted(numbers, found.patcher.threshold))
    assert numbers[place] == found.patcher.threshold
    for other in numbers[[place - 1, place + 1]].tolist():
        moved = recut(replace(patcher, threshold=other), scored.entropies_T, scored.lengths_D)
        size = sum(map(len, documents)) / len(moved.patch_lengths_P)
        assert abs(size - 4.5) >= abs(found.patch_size - 4.5)


def mean_patch_size(scorer, documents):
    return sum(map(len, documents)) / len(scorer.score(documents).patch_lengths_P)


HETEROGENEOUS = {
    "one text after the other": ("jsonl", lambda texts: texts),
    "a huge document": ("jsonl", lambda texts: [*texts[:50], "\n".join(texts[50:])]),
    "lines": ("jsonl.gz", lambda texts: [line for t in texts for line in t.splitlines()[::5]]),
    "files": ("txt", lambda texts: texts),
}


@pytest.mark.parametrize("kind", HETEROGENEOUS)
def test_windows_stand_for_a_heterogeneous_corpus(tmp_path, ngram_model, kind, monkeypatch):
    """Prose, then code, then numbers, in documents of any length: what comes out is what was asked
    for, within three standard errors, though a part of it is scored."""
    monkeypatch.setattr(windows, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(windows, "BACK_BYTES", 1 << 13)
    form, made_of = HETEROGENEOUS[kind]
    texts = made_of(mixture())
    if form == "txt":
        for i, text in enumerate(texts):
            (tmp_path / f"{i:04}.txt").write_text(text)
    else:
        opened = gzip.open if form.endswith("gz") else open
        with opened(tmp_path / f"a.{form}", "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    flags = {"target_patch_size": 4.5, "calibration_bytes": 50_000}
    config = PatchCorpusConfig((str(tmp_path),), "out", **flags)
    files = find_inputs(config.input).files
    plans = [plan_file(file, file_format(file, "auto"), 100_000) for file in files]
    splits = [split for plan in plans for split in plan.splits]
    scorer = Scorer(ngram_model, Patcher(0.0))
    found = calibrate(scorer, splits, config, 4.5, 50_000)
    assert 0 < found.error < 0.08 and 20_000 < found.text_bytes < 60_000
    out = mean_patch_size(replace(scorer, patcher=found.patcher), [t.encode() for t in texts])
    assert abs(out / found.patch_size - 1) < 3 * found.error
    if kind == "files":
        assert found == calibrate(scorer, splits, config, 4.5, 50_000)
        assert found != calibrate(scorer, splits, replace(config, seed=1), 4.5, 50_000)


@pytest.mark.parametrize("files", [1, 30])
def test_no_more_is_scored_than_asked_for_of_text_that_compression_hides(
    tmp_path, ngram_model, files
):
    """Its size is an estimate, by which all of it would be less than is asked for."""
    for i in range(files):
        line = json.dumps({"text": "all work and no play " * (1500 // files)}) + "\n"
        (tmp_path / f"{i:02}.jsonl.gz").write_bytes(gzip.compress(line.encode() * 50))
    flags = {"target_patch_size": 4.5, "calibration_bytes": 60_000}
    config = PatchCorpusConfig((str(tmp_path),), "out", **flags)
    found = find_inputs(config.input).files
    splits = [split for file in found for split in plan_file(file, "jsonl", 1 << 20).splits]
    assert sum(split.size for split in splits) <= 60_000
    calibration = calibrate(Scorer(ngram_model, Patcher(0.0)), splits, config, 4.5, 60_000)
    assert 10_000 < calibration.text_bytes < 70_000
    assert windows.Places(splits, config, None).everything(4 * 60_000) is None


def mixture() -> list[str]:
    """Prose, code, numbers."""
    prose = [text for _, text in topics()[:40]]
    code = [inspect.getsource(module) for module in (argparse, inspect)]
    numbers = ["\n".join(f"{i * i % 97} {i / 7:.4f}" for i in range(k, k + 400)) for k in range(20)]
    return prose + code + numbers


def test_windows_are_parts_of_documents(tmp_path, monkeypatch):
    """By hand: segments of 100 tokens, a lead of 10, and a window of 30 bytes from token 85 on."""
    monkeypatch.setattr(windows, "WINDOW", 30)
    monkeypatch.setattr(windows, "LEAD", 10)
    monkeypatch.setattr(windows, "SHORT_LEAD", 5)
    text = bytes(range(32, 127)) + bytes(range(32, 97))
    (tmp_path / "a.txt").write_bytes(text)
    config = PatchCorpusConfig((str(tmp_path),), "unused", target_patch_size=4.5)
    (file,) = find_inputs(config.input).files
    splits = plan_file(file, "text", 1 << 30).splits
    tokens_T, _ = encode_documents([text])

    def pieces(byte, context):
        (window,) = windows.Places(splits, config, context).at(np.array([byte / len(text)]))
        counted = sum(len(p.tokens_T) - p.first for p in window.pieces)
        of_text = sum(int((p.tokens_T[p.first :] >= 4).sum()) for p in window.pieces)
        assert window.weight == pytest.approx(1 / of_text)  # however few count, for as much text
        return [(p.tokens_T.tolist(), p.first) for p in window.pieces], counted

    assert pieces(84, None) == ([(tokens_T[80:115].tolist(), 5)], 30)
    cut = [(tokens_T[75:100].tolist(), 10), (tokens_T[100:115].tolist(), 2)]
    assert pieces(84, 100) == (cut, 28)
    around = [(tokens_T[145:162].tolist(), 5), (tokens_T[:20].tolist(), 0)]
    assert pieces(149 + 0.5, None) == (around, 32)
    # Text that is no longer is taken whole, and counts for as much as it is.
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"short"))
    short = whole_file(find_inputs([str(path)]).files[0], "text")
    window, same = windows.Places([short], config, None).at(np.array([0.2, 0.7]))
    (piece,) = window.pieces
    assert same.weight == window.weight
    assert (piece.tokens_T.tolist(), piece.first) == (encode_documents([b"short"])[0].tolist(), 0)
    assert window.weight * 5 * short.size == pytest.approx(5)


@pytest.mark.parametrize("most", [1 << 30, 20_000])
def test_stored_entropies_give_the_threshold_that_their_model_gives(tmp_path, ngram_model, most):
    texts = [text.encode() for _, text in topics()]
    h_D = [Scorer(ngram_model, Patcher(0.0)).score([text]).entropies_T for text in texts]
    columns = {"text": [text.decode() for text in texts], "entropies": h_D}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    flags = {"target_patch_size": 4.5, "calibration_bytes": most}
    config = AdoptShardsConfig((str(tmp_path),), "unused", **flags)
    (file,) = find_inputs(config.input).files
    splits = plan_file(file, "parquet", 50_000).splits
    found = [
        calibrate(scorer, splits, config, 4.5, most)
        for scorer in (StoredScorer(Patcher(0.0)), Scorer(ngram_model, Patcher(0.0)))
    ]
    assert found[0] == found[1]


def test_records_that_are_no_documents_do_not_draw_windows_to_beginnings(tmp_path, monkeypatch):
    """Each byte of text is in a window as likely as any other, whatever lies between documents."""
    monkeypatch.setattr(windows, "READ_BYTES", 1 << 14)
    monkeypatch.setattr(windows, "WINDOW", 50)
    lengths = np.random.default_rng(0).integers(200, 600, 150).tolist()
    texts = [{"text": "a" * length + "b" * length} for length in lengths]
    broken = [{"text": None, "of no use": "x" * length} for length in lengths[::-1]]
    records = [record for pair in zip(texts, broken, strict=True) for record in pair]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = PatchCorpusConfig((str(tmp_path),), "unused", target_patch_size=4.5)
    (file,) = find_inputs(config.input).files
    splits = plan_file(file, "jsonl", 3000).splits
    found = windows.Places(splits, config, None).at((0.5 + np.arange(300)) / 300)
    pieces = [
        (piece.tokens_T[piece.first :], window) for window in found for piece in window.pieces
    ]
    a, b = (sum(w.weight * int((t == ord(x) + 4).sum()) for t, w in pieces) for x in "ab")
    assert 0.45 < a / (a + b) < 0.55
    # Those at the end of a split go on behind it, and those in broken records count.
    counted = [w.weight * sum(len(t) for t, of in pieces if of is w) for w in found]
    assert len(splits) > 30 and sum(c > 0.5 for c in counted) > 290
    bytes_W = [sum(int((t >= 4).sum()) for t, of in pieces if of is w) for w in found]
    assert bytes_W[:-1] == [50] * (len(found) - 1)


def test_an_unreachable_target_gives_the_nearest(planned, ngram_model):
    config, splits = planned
    scorer = Scorer(ngram_model, Patcher(0.0, max_patch_length=4))
    found = calibrate(scorer, splits, config, 100.0, 1 << 30)
    lengths = replace(scorer, patcher=found.patcher).score(sample_documents(splits, config, 50_000))
    lengths = lengths.patch_lengths_P
    assert set(np.unique(lengths[lengths > 1])) <= {2, 3, 4}
    assert (lengths == 4).mean() > 0.9 and found.patch_size < 4


def test_no_text_is_told(tmp_path, ngram_model):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\nnothing\n')
    config = PatchCorpusConfig((str(tmp_path),), "unused", target_patch_size=4.5)
    (file,) = find_inputs(config.input).files
    splits = plan_file(file, "jsonl", 1 << 30).splits
    with pytest.raises(PipelineError, match="--target-patch-size: no text"):
        calibrate(Scorer(ngram_model, Patcher(0.0)), splits, config, 4.5, 1 << 20)
    gone = replace(splits[0], file=replace(file, url=str(tmp_path / "gone.jsonl")))
    with pytest.raises(PipelineError, match=r"no text [^\n]*\n  [^\n]*gone\.jsonl: [^\n]*$"):
        calibrate(Scorer(ngram_model, Patcher(0.0)), [*splits, gone], config, 4.5, 1 << 20)


def test_packing_batches_and_newline_resets(small_model):
    """What is stored for a document does not depend on its neighbours beyond rounding."""
    texts = [text[:3000].encode() for _, text in topics()[:12]] + [b"", b"\n\n", b"x"]
    for reset in (False, True):
        scorer = Scorer(small_model, Patcher(2.0), reset)
        together = scorer.score(texts)
        alone = np.concatenate([scorer.score([text]).entropies_T for text in texts])
        # One float16 step at the largest entropies.
        np.testing.assert_allclose(together.entropies_T, alone, atol=4e-3)
    # After a newline the model knows nothing: a line gets what it gets elsewhere.
    h = Scorer(small_model, Patcher(2.0), True).score([b"same line\nsame line\n"]).entropies_T
    fresh = Scorer(small_model, Patcher(2.0), True).score([b"one\nsame line\n"]).entropies_T
    np.testing.assert_allclose(h[11:21], fresh[5:15], atol=4e-3)
