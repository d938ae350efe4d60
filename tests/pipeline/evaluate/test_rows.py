"""Windows, and how they are packed into rows of one size."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.texts import topics
from torch import fx
from torch.nn.attention import flex_attention

from model import Patcher
from model.layers import attention, tree_attention
from model.tokenizer import BOS_ID, EOS_ID, encode_documents
from pipeline.evaluate import likelihood, reading
from pipeline.evaluate.answers import Questions
from pipeline.evaluate.likelihood import Predictor
from pipeline.evaluate.row_sizes import RowSizes
from pipeline.evaluate.rows import RowSize, Windows, cut_windows, fill_rows, plan_rows


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(2, 20))
@settings(max_examples=200)
def test_windows_predict_each_token_once_with_half_a_context(sizes, context):
    lengths_D = np.array(sizes) + 2
    windows = cut_windows(lengths_D, context)
    seen = np.zeros(lengths_D.sum(), int)
    first_T = np.repeat(lengths_D.cumsum() - lengths_D, lengths_D)
    for start, length, known in zip(*windows, strict=True):
        assert 2 <= length <= context + 1
        assert (first_T[start : start + length] == first_T[start]).all()
        for token in range(start + known + 1, start + length):
            seen[token] += 1
            # Position `start` is read as BOS: what is known is after it.
            assert token - start - 1 >= min(context // 2, token - first_T[token] - 1)
    starts = seen[first_T == np.arange(len(seen))]
    assert (starts == 0).all() and seen.sum() == len(seen) - len(starts) and seen.max() == 1


SIZE = RowSize(100, 26)


@given(st.lists(st.tuples(st.integers(2, 240), st.floats(0.1, 1)), max_size=60))
@settings(max_examples=200)
def test_rows_hold_each_window_once_and_no_more_than_fits(windows):
    tokens_W = np.array([tokens for tokens, _ in windows], np.int64)
    patches_W = np.array([max(int(t * share), 2) for t, share in windows], np.int64)
    plan = plan_rows(tokens_W, patches_W, SIZE)
    assert plan.computed == plan.times_R.sum()
    seen = []
    for window_W, row_W, times in plan.groups(3):
        assert row_W[0] == 0 and (np.diff(row_W) >= 0).all() and np.diff(row_W).max(initial=0) <= 1
        assert times * (row_W[-1] + 1) <= 3 or row_W[-1] == 0
        assert (np.bincount(row_W, tokens_W[window_W]) <= times * SIZE.tokens).all()
        assert (np.bincount(row_W, patches_W[window_W]) < times * SIZE.patches).all()
        seen += window_W.tolist()
    assert sorted(seen) == list(range(len(windows)))
    alone = (tokens_W > SIZE.tokens) | (patches_W >= SIZE.patches)
    assert (np.bincount(plan.row_W, minlength=len(plan.times_R))[plan.row_W[alone]] == 1).all()
    # First fit: no two rows would fit into one.
    if windows:
        sums = zip(*(np.bincount(plan.row_W, x) for x in (tokens_W, patches_W)), strict=True)
        for (tokens, patches), (more, most) in pairwise(sorted(sums)):
            assert tokens + more > SIZE.tokens or patches + most >= SIZE.patches


def test_dense_and_sparse_windows_share_rows():
    tokens_W, patches_W = np.array([50, 48, 50, 49]), np.array([16, 15, 9, 8])
    plan = plan_rows(tokens_W, patches_W, SIZE)
    assert plan.row_W[[0, 2]].tolist() == [0, 0] and plan.row_W[[1, 3]].tolist() == [1, 1]


def test_rows_are_documents_with_their_patches():
    """Two windows of one document and a short one, worked out by hand."""
    tokens_T, lengths_D = encode_documents([b"abcdefgh", b"xy"])
    starts_T = np.isin(np.arange(14), [0, 1, 4, 6, 9, 10, 11])
    windows = cut_windows(lengths_D, 6)
    assert [x.tolist() for x in windows] == [[0, 3, 10], [7, 7, 4], [0, 3, 0]]
    first_P = np.array([0, 1, 4, 6, 9, 10, 11])
    assert windows.patches(first_P).tolist() == [4, 4, 2]
    order = [1, 0, 2]
    part = Windows(*(x[order] for x in windows))
    rows = fill_rows(part, np.array([0, 1, 1]), RowSize(12, 7), tokens_T, starts_T)
    a = 4 + ord("a")
    # The second window begins with BOS in place of "c", and "d" starts a patch.
    assert rows.tokens_RT.tolist() == [
        [BOS_ID, *range(a + 3, a + 8), EOS_ID, *[-1] * 5],
        [BOS_ID, *range(a, a + 5), EOS_ID, BOS_ID, a + 23, a + 24, EOS_ID, -1],
    ]
    assert rows.patch_lengths_RP.tolist() == [[1, 2, 3, 1, 0, 0, 0], [1, 3, 2, 1, 1, 3, 0]]
    assert rows.at_N.tolist() == [6, 7, 8, 0, 1, 2, 3, 4, 5, 10, 11, 12]
    assert rows.place_N.tolist() == [3, 4, 5, 12, 13, 14, 15, 16, 17, 19, 20, 21]
    tight = fill_rows(part, np.array([0, 1, 1]), None, tokens_T, starts_T)
    assert tight.tokens_RT.shape == (2, 11) and tight.patch_lengths_RP.shape == (2, 6)


def requests(count: int, per_patch: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and patches of texts as a multiple-choice task has them."""
    random = np.random.default_rng(seed)
    tokens_W = random.integers(100, 500, count)
    return tokens_W, np.maximum(tokens_W / random.normal(per_patch, 0.4, count), 2).astype(int)


def needed(tokens_W: np.ndarray, patches_W: np.ndarray) -> int:
    return int(tokens_W.sum() + 4 * patches_W.sum())


def test_little_is_padding_and_sizes_are_few():
    """One size for data of one kind; another one where patches become much shorter."""
    sizes = RowSizes(32768, 1, 4)
    computed = wanted = 0
    for seed in range(5):
        batch = requests(9000, 4.5, seed)
        size, plan = sizes.plan(*batch)
        computed += plan.computed * (size.tokens + 4 * size.patches)
        wanted += needed(*batch)
    assert len(sizes.used) == 1 and sizes.used[0].patches % attention.BLOCK == 0
    assert computed / wanted < 1.05
    sizes.plan(*requests(20, 1.5, 9))  # a few do not matter
    assert len(sizes.used) == 1
    for per_patch in (2.0, 4.4, 2.1, 9.0, 1.2, 14.0, 3.1):
        batch = requests(9000, per_patch, 7)
        size, plan = sizes.plan(*batch)
        if len(sizes.used) < 4:
            assert plan.computed * (size.tokens + 4 * size.patches) / needed(*batch) < 1.2
    assert len(sizes.used) == 4
    empty = np.zeros(0, np.int64)
    assert len(sizes.plan(empty, empty)[1].row_W) == 0


def test_long_windows_leave_little_padding():
    """Three of 8 KB to a row: dense ones share rows with sparse ones."""
    random = np.random.default_rng(1)
    tokens_W = np.full(400, 8193)
    patches_W = (8193 / random.normal(4.5, 0.5, 400)).astype(int)
    sizes = RowSizes(likelihood._row_width(8192), 1, 4)
    size, plan = sizes.plan(tokens_W, patches_W)
    assert plan.computed <= 136
    assert plan.computed * (size.tokens + 4 * size.patches) / needed(tokens_W, patches_W) < 1.06


def alike(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokens_T, lengths_D = encode_documents(texts)
    rule = Patcher(rule="static", patch_size=4)
    lengths = torch.from_numpy(lengths_D)
    return (
        tokens_T,
        lengths_D,
        rule.patch_lengths_flat(torch.zeros(len(tokens_T)), lengths)[0].numpy(),
    )


TEXTS = [text.encode()[i : 60 + 37 * i] for i, (_, text) in enumerate(topics()[:30])]


def test_padded_rows_change_nothing_and_have_one_shape(monkeypatch):
    shapes = set()

    def recorded(tokens, patch_lengths):
        shapes.add((*tokens.shape, patch_lengths.shape[1]))
        return forward(tokens, patch_lengths)

    monkeypatch.setattr(likelihood, "GPU_TOKENS", 1500)
    model = tiny.blt()
    plain = Predictor(model, 512)
    forward = model.forward
    monkeypatch.setattr(model, "forward", recorded)
    padded = Predictor(model, 512, one_size=True)
    for texts in (TEXTS, TEXTS[::-2], TEXTS[:4]):
        for context in (512, 300):
            expected = plain(*alike(texts), context)
            found = padded(*alike(texts), context)
            np.testing.assert_allclose(found.nats_T, expected.nats_T, atol=2e-4)
            assert (found.greedy_T == expected.greedy_T).mean() > 0.999
    assert (
        shapes == {(1, *padded.sizes.used[0])} and plain.work.computed_tokens == plain.work.tokens
    )
    # A window of more than a row has a row of its own.
    long = alike([b"".join(TEXTS)[:4000]])
    found, expected = padded(*long, None), plain(*long, None)
    np.testing.assert_allclose(found.nats_T, expected.nats_T, atol=2e-4)
    tokens, patches = padded.sizes.used[0]
    assert shapes == {(1, tokens, patches), (1, tokens * 4, patches * 4)}


class Graphs:
    """A backend that counts what it is given and runs it as it is."""

    count = 0

    def __call__(self, graph: fx.GraphModule, inputs: list[object]) -> object:
        self.count += 1
        return graph.forward


def test_layers_compile_once_for_all_batches(monkeypatch):
    """As far as a CPU can show it: with the attention that GPUs use."""

    def of_gpus(position_T: torch.Tensor, window: int) -> attention.Attend:
        mask = attention.window_block_mask(position_T, window)
        return functools.partial(attention._compiled_flex(), mask=mask)

    def trees_of_gpus(*arguments: object) -> attention.Attend:
        mask = tree_attention.tree_block_mask(*arguments)
        return functools.partial(attention._compiled_flex(), mask=mask)

    model, graphs = tiny.blt(), Graphs()
    monkeypatch.setattr(likelihood, "GPU_TOKENS", 1500)
    first, second = alike(TEXTS[:20]), alike(TEXTS[5:])
    asked = Questions(np.arange(50), np.full(50, 99))
    plain = Predictor(model, 512)
    expected = [plain(*first, 512), plain(*second, 512)]
    expected += [plain.answer(*first, asked), plain.answer(*second, asked)]
    monkeypatch.setattr(attention, "BlockedAttention", of_gpus)
    monkeypatch.setattr(tree_attention, "_ListedBlocks", trees_of_gpus)
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiled(*a, **k, backend=graphs))
    monkeypatch.setattr(
        likelihood,
        "reading_alone",
        lambda model, compiled: reading.reading_alone(model, compiled=True),
    )
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    attention._compiled_flex.cache_clear()
    torch._dynamo.reset()
    try:
        predictor = Predictor(model, 512, one_size=True)
        found = []
        for read in (
            lambda documents: predictor(*documents, 512),
            lambda documents: predictor.answer(*documents, asked),
        ):
            before = graphs.count
            found.append(read(first))
            made = graphs.count
            assert 2 <= made - before < 8
            with torch._dynamo.config.patch(error_on_recompile=True):
                found.append(read(second))
            assert graphs.count == made
    finally:
        torch._dynamo.reset()
        attention._compiled_flex.cache_clear()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.nats_T, other.nats_T, atol=2e-4)
    # The model itself is not compiled: generation calls it with other shapes.
    assert not any(part._compiled_call_impl for part in model.modules())


def test_questions_are_answered_in_their_order():
    model = tiny.blt()
    tokens_T, lengths_D, patches_P = alike(TEXTS[:6])
    predictor = Predictor(model, None)
    every = predictor(tokens_T, lengths_D, patches_P, None)
    at_Q = np.array([90, 3, 200, 3, 3, 91])
    own = Questions(at_Q, tokens_T[at_Q + 1].astype(np.int64))
    found = predictor(tokens_T, lengths_D, patches_P, None, questions=own)
    assert found.nats_T.tolist() == every.nats_T[at_Q + 1].tolist()
    assert found.greedy_T.tolist() == every.greedy_T[at_Q + 1].tolist()
    other = Questions(at_Q, np.full(6, 99))
    others = predictor(tokens_T, lengths_D, patches_P, None, questions=other)
    assert (others.nats_T != found.nats_T).all() and others.nats_T[1] == others.nats_T[4]
    with pytest.raises(IndexError):
        predictor(tokens_T, lengths_D, patches_P, None, questions=Questions(at_Q, at_Q + 1000))
