"""The sample, the threshold, and the n-gram model that come before a run."""

from dataclasses import replace

import numpy as np
import pytest
from support.texts import topics

from model import Patcher
from pipeline.corpus.inputs import find_inputs
from pipeline.corpus.splits import plan_file
from pipeline.errors import PipelineError
from pipeline.patch.calibrate import calibrate, fit_ngram, sample_documents
from pipeline.patch.config import PatchCorpusConfig
from pipeline.patch.scoring import Scorer


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


def test_unreadable_files_give_nothing_to_a_sample(planned, tmp_path):
    config, splits = planned
    gone = replace(splits[0], file=replace(splits[0].file, url=str(tmp_path / "gone.jsonl")))
    assert sample_documents([gone], config, 1000) == []
    with pytest.raises(PipelineError, match="--entropy-model ngram: no text"):
        fit_ngram([], config)


@pytest.mark.parametrize(
    "patcher",
    [
        Patcher(0.0),
        Patcher(0.0, "monotonic"),
        Patcher(0.0, "combined", threshold_add=-0.5),
        Patcher(0.0, max_patch_length=8),
    ],
    ids=lambda patcher: patcher.rule,
)
def test_the_threshold_meets_the_target(planned, ngram_model, patcher):
    config, splits = planned
    documents = sample_documents(splits, config, 200_000)
    found = calibrate(Scorer(ngram_model, patcher), documents, 4.5)
    scored = Scorer(ngram_model, found).score(documents)
    assert sum(map(len, documents)) / len(scored.patch_lengths_P) == pytest.approx(4.5, rel=0.02)
    assert replace(found, threshold=0.0) == patcher


def test_an_unreachable_target_gives_the_nearest(planned, ngram_model):
    config, splits = planned
    documents = sample_documents(splits, config, 50_000)
    found = calibrate(Scorer(ngram_model, Patcher(0.0, max_patch_length=4)), documents, 100.0)
    lengths = Scorer(ngram_model, found).score(documents).patch_lengths_P
    assert set(np.unique(lengths[lengths > 1])) <= {2, 3, 4}
    assert (lengths == 4).mean() > 0.9


def test_no_text_is_told(ngram_model):
    with pytest.raises(PipelineError, match="--target-patch-size: no text"):
        calibrate(Scorer(ngram_model, Patcher(0.0)), [b"", b""], 4.5)


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
