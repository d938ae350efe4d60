"""The n-gram model against Witten and Bell's definition, written out over all 260 tokens."""

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from support.texts import topics

from model import NGramEntropyModel, load_entropy_model, save_entropy_model
from model.ngram import NGramCounts
from model.tokenizer import VOCAB_SIZE, encode_documents

Batch = tuple[np.ndarray, np.ndarray]


def small_corpus(documents: int = 6, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    return [bytes(random.choice(list(b"aab\n"), random.integers(1, 25))) for _ in range(documents)]


def pieces(batch: Batch) -> list[list[int]]:
    return [part.tolist() for part in np.split(batch[0], np.cumsum(batch[1])[:-1])]


def context(tokens: list[int], length: int) -> tuple[int, ...]:
    """The last ``length`` tokens; 0 stands for those before the first."""
    return tuple(([0] * length + tokens)[len(tokens) :])


class Dense:
    """Distributions over the whole vocabulary, one context at a time."""

    def __init__(self, segments: list[list[int]], order: int, min_count: int = 1):
        self.order, self.min_count = order, min_count
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for tokens in segments:
            for i in range(1, len(tokens)):
                for k in range(order + 1):
                    self.counts[context(tokens[:i], k)][tokens[i]] += 1

    def p(self, c: tuple[int, ...]) -> np.ndarray:
        shorter = self.p(c[1:]) if c else np.full(VOCAB_SIZE, 1 / VOCAB_SIZE)
        if c not in self.counts:
            return shorter
        n = np.zeros(VOCAB_SIZE)
        for token, count in self.counts[c].items():
            n[token] = count
        distinct = np.count_nonzero(n)
        return (n + distinct * shorter) / (n.sum() + distinct)

    def entropy(self, c: tuple[int, ...]) -> float:
        p = self.p(c)
        return float(-(p * np.log(p)).sum())

    def known(self, c: tuple[int, ...]) -> bool:
        times = self.counts[c].total() if c in self.counts else 0
        return times >= (self.min_count if len(c) > 2 else 1)

    def entropies(self, tokens: list[int]) -> list[float]:
        h = []
        for i in range(1, len(tokens) + 1):
            contexts = (context(tokens[:i], k) for k in range(self.order, -1, -1))
            h.append(self.entropy(next(c for c in contexts if self.known(c))))
        return h


def packed(model: NGramEntropyModel, batch: Batch) -> torch.Tensor:
    return model.entropies_packed(torch.from_numpy(batch[0]), torch.from_numpy(batch[1]))


def entries(model: NGramEntropyModel) -> dict[int, int]:
    return {k: int((table != -1).sum()) for k, table in model.hashed.items()}


def assert_rounded(actual: torch.Tensor, expected: list[float]) -> None:
    """Equal but for the rounding to float16, to within half of a unit in the last place."""
    exact = np.array(expected)
    half_unit = np.spacing(exact.astype(np.float16)).astype(float) / 2
    assert (np.abs(actual.numpy() - exact) <= half_unit * 1.001).all()


@pytest.mark.parametrize("min_count", [1, 3])
@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_entropies_are_those_of_the_definition(order, min_count):
    batch = encode_documents(small_corpus())
    fitted = NGramEntropyModel.fit([batch], order=order, min_count=min_count)
    dense = Dense(pieces(batch), order, min_count)
    assert fitted.order == order
    # No two contexts share a slot here, so that none was dropped and all must be exact.
    kept = Counter(len(c) for c in list(dense.counts) if len(c) > 2 and dense.known(c))
    assert entries(fitted) == {k: kept[k] for k in range(3, order + 1)}
    # Seen text, and unseen text that falls back to contexts of every length.
    new = encode_documents([*small_corpus(8, seed=1), b"axaab", b"zz", b"", b"\n\n\n\n\n\n"])
    for text in (batch, new):
        assert_rounded(
            packed(fitted, text), [h for piece in pieces(text) for h in dense.entropies(piece)]
        )


def test_real_text_gets_its_longest_context_unless_a_slot_was_taken():
    batch = encode_documents([text.encode()[:3000] for _, text in topics()[:3]])
    fitted = NGramEntropyModel.fit([batch], order=4, min_count=1)
    dense = Dense(pieces(batch), 4)
    lookups = longest = 0
    for tokens, h in zip(
        pieces(batch), packed(fitted, batch).split(batch[1].tolist()), strict=True
    ):
        for i in range(0, len(tokens) - 1, 20):
            exact = [dense.entropy(context(tokens[: i + 1], k)) for k in (4, 3, 2)]
            near = [math.isclose(h[i].item(), e, rel_tol=5e-4, abs_tol=1e-6) for e in exact]
            assert any(near)
            lookups, longest = lookups + 1, longest + near[0]
    assert longest / lookups > 0.9


def test_batches_of_fit_may_be_cut_anywhere_between_documents():
    texts = [text.encode()[:2000] for _, text in topics()[:12]]
    whole = NGramEntropyModel.fit([encode_documents(texts)])
    parts = [texts[:1], texts[1:7], texts[7:]]
    for order in (parts, parts[::-1], [[text] for text in texts]):
        other = NGramEntropyModel.fit(encode_documents(part) for part in order)
        assert np.array_equal(other.direct.view(np.uint16), whole.direct.view(np.uint16))
        assert other.hashed.keys() == whole.hashed.keys()
        # Where contexts that are as frequent meet in a slot, the same one must win too.
        assert all(np.array_equal(other.hashed[k], whole.hashed[k]) for k in whole.hashed)


def test_contexts_stay_within_their_segment(ngram_model):
    a, b, c = (np.frombuffer(text, np.uint8) + 4 for text in (b"The re", b"s", b"ult of the"))
    tokens = np.concatenate([a, b, c]).astype(np.int32)
    apart = packed(ngram_model, (tokens, np.array([6, 1, 10])))
    alone = [packed(ngram_model, (x.astype(np.int32), np.array([len(x)]))) for x in (a, b, c)]
    assert torch.equal(apart, torch.cat(alone))
    assert not torch.equal(apart, packed(ngram_model, (tokens, np.array([17]))))
    # In a batch: rows, documents and padding likewise.
    rows = torch.full((2, 12), -1)
    rows[0, :6], rows[1, :10] = torch.from_numpy(a), torch.from_numpy(c)
    rows[1, 3] = 2  # EOS
    h = ngram_model.entropies(rows)
    assert torch.equal(h[0, :6], alone[0])
    assert torch.equal(h[1, 4:10], packed(ngram_model, (c[4:].astype(np.int32), np.array([6]))))
    assert not h[rows == -1].any()


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_blocks_change_nothing(ngram_model, monkeypatch, block):
    batch = encode_documents([b"a", *small_corpus(), b"", topics()[3][1].encode()[:500]])
    expected = packed(ngram_model, batch)
    monkeypatch.setattr(NGramEntropyModel, "block_tokens", block)
    assert torch.equal(packed(ngram_model, batch), expected)


@pytest.mark.parametrize("order", [2, 5])
def test_save_and_load(tmp_path: Path, order):
    batch = encode_documents([text.encode()[:2000] for _, text in topics()[:5]])
    fitted = NGramEntropyModel.fit([batch], order=order)
    save_entropy_model(fitted, tmp_path)
    loaded = load_entropy_model(tmp_path)
    assert isinstance(loaded, NGramEntropyModel)
    assert loaded.order == order
    assert np.array_equal(loaded.direct.view(np.uint16), fitted.direct.view(np.uint16))
    assert all(np.array_equal(loaded.hashed[k], fitted.hashed[k]) for k in fitted.hashed)
    assert torch.equal(packed(loaded, batch), packed(fitted, batch))


def test_counts_are_bounded_and_the_frequent_ones_stay():
    def counts(grams: dict[int, int]) -> NGramCounts:
        keys = sorted(grams)
        return NGramCounts(3, np.array(keys), np.array([grams[k] for k in keys]))

    one, two = counts({1: 5, 2: 1, 7: 2, 9: 1}), counts({1: 1, 2: 1, 3: 1, 8: 9})
    everything = one.merge(two, 6)
    assert everything.grams_G.tolist() == [1, 2, 3, 7, 8, 9]
    assert everything.counts_G.tolist() == [6, 2, 1, 2, 9, 1]
    assert one.merge(two, 5).grams_G.tolist() == [1, 2, 7, 8]  # those seen once go together
    assert one.merge(two, 3).grams_G.tolist() == [1, 8]

    batches = [encode_documents([text.encode()[:2000]]) for _, text in topics()[:6]]
    free, bounded = (NGramEntropyModel.fit(batches, max_grams=n) for n in (1 << 20, 1000))
    assert all(n > 1000 for k, n in entries(free).items() if k > 3)
    assert all(0 < n <= 1000 for n in entries(bounded).values())


def test_one_batch_is_bounded_too():
    batch = encode_documents([topics()[0][1].encode()[:3000]])
    bounded = NGramEntropyModel.fit([batch], max_grams=100, min_count=1)
    assert all(n <= 100 for n in entries(bounded).values())


def test_fit_refuses():
    batch = encode_documents([b"some text"])
    for order in (1, 7):
        with pytest.raises(ValueError, match=f"order: must be 2 to 6, got {order}"):
            NGramEntropyModel.fit([batch], order=order)
    single = (np.array([101], np.int32), np.array([1]))  # nothing follows its only token
    for batches in ([], [single], [encode_documents([])]):
        with pytest.raises(ValueError, match="no text"):
            NGramEntropyModel.fit(batches)
    with pytest.raises(ValueError, match="0 to 259"):
        NGramEntropyModel.fit([batch]).entropies(torch.tensor([[1, 260]]))
