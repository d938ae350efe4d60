"""What forward promises: nothing from the future, no waiting, one shape, errors that name a row."""

import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.blt_cases import (
    random_batch,
    random_config,
    random_lengths,
    random_tokens,
    rows_of,
    sharp_blt,
    tiny,
)
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from model import BLT, BLT_SIZES, EntropyModel, Patcher
from model.blt_config import ROW_READING
from model.layers.attention import BLOCK, Attend, attend_flex, window_block_mask
from model.layers.patch_layout import PatchLayout

RULES = {
    "global": Patcher(4.28),
    "global-limited": Patcher(4.28, max_patch_length=3),
    "monotonic": Patcher(0.0, "monotonic"),
    "monotonic-published": Patcher(0.0, "monotonic", published=True),
    "combined": Patcher(4.2, "combined", 0.0),
    "combined-published": Patcher(4.2, "combined", 0.0, max_patch_length=5, published=True),
    "space": Patcher(rule="space"),
    "bpe": Patcher(rule="bpe"),
    "static": Patcher(rule="static", patch_size=4.5),
    "byte": Patcher(rule="byte"),
    "longest": Patcher(rule="bpe", max_patch_length=7),
}
"""All but top-k, which looks at the whole document by its definition."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_no_token_changes_what_is_said_before_it(small_model: EntropyModel, rule: str, seed: int):
    """Row t of a batch has its token t changed; entropies and patches are made anew."""
    rng = random.Random(seed)
    model = sharp_blt(random_config(rng), seed)
    tokens = torch.tensor([1, *random_tokens(rng, 47, eos=0.06)])
    n = len(tokens)
    rows = tokens.expand(n + 1, n).clone()  # the last row is left as it is
    for t in range(n):
        others = [x for x in (2, 3, 36, rng.randrange(260)) if x != tokens[t]]
        rows[t, t] = rng.choice(others)
    h = small_model.entropies(rows)
    lengths = RULES[rule].patch_lengths(h, rows, include_next_token=True)
    logits = model(rows, lengths)
    changed = (logits[:n] - logits[n]).abs().amax(-1)
    row, column = torch.arange(n)[:, None], torch.arange(n)
    assert changed[column < row].max() < 2e-5  # measured: 3e-6
    assert (changed[column == row] > 1e-3).all()
    if rule == "global":
        assert (lengths[:n] != lengths[n]).any(1).sum() > n / 4  # patches moved as well


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([[1, 5], [1, 5]], [[1, 1], [1, 3]], "do not sum to the row's tokens.*row 1.*sum 4"),
        ([[1, 5, 5], [1, 5, 5]], [[1, 1], [1, 2]], "do not sum.*row 0: 3 tokens.*sum 2"),
        ([[1, 5], [1, 5]], [[1, 1], [2, 0]], r"the first is not 1 \(row 1"),
        ([[1, 5]], [[0, 2]], r"the first is not 1 \(row 0"),
        ([[-1, -1], [1, 5]], [[0, 0], [1, 1]], r"the first is not 1 \(row 0"),
        ([[1, 5, 6]], [[1, 0, 2]], r"0 stands before a patch \(row 0"),
        ([[1, 5, 6]], [[1, 3, -1]], r"one is negative \(row 0"),
        ([[1, 5], [-1, 5]], [[1, 1], [1, 1]], r"padding stands before a token \(row 1"),
        ([[1, 5]], [[1, 1], [1, 1]], "2 rows for 1 rows of tokens"),
        ([1, 5], [[1, 1]], r"\[batch, seq\] and \[batch, patches\], got \[2\] and \[1, 2\]"),
        ([[1, 5]], [[1.0, 1.0]], "patch_lengths: must be integers"),
        ([[1.0, 5.0]], [[1, 1]], "tokens: must be integers"),
        ([[1, 5]], [[]], "patch_lengths: "),
        ([[1, 5], [1, 260]], [[1, 1], [1, 1]], r"got 260 \(row 1, column 1\)"),
        ([[-2, 5]], [[1, 1]], r"ids must be -1 \(padding\) or 0 to 259, got -2"),
    ],
)
def test_batches_that_make_no_sense(tokens, lengths, message):
    with pytest.raises(ValueError, match=message):
        BLT(tiny())(torch.tensor(tokens), torch.tensor(lengths))


def attention_of_a_gpu(position_T: Tensor, window: int | None) -> Attend:
    """In the place of our attention on a CPU, which asks for values when it makes its blocks."""
    tokens = len(position_T)
    padding = -tokens % BLOCK
    mask = window_block_mask(F.pad(position_T, (0, padding)), window or tokens + padding)

    def attend(*qkv: Tensor) -> Tensor:
        return attend_flex(*(F.pad(x, (0, 0, 0, 0, 0, padding)) for x in qkv), mask)[:tokens]

    return attend


def batches(patches: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Of one shape and nothing else in common: documents, patches, padding."""
    rng, made = random.Random(0), []
    for padding in (0, 1, 20):
        tokens = torch.tensor([random_tokens(rng, 48) for _ in range(2)])
        tokens[1, 48 - padding :] = -1
        lengths = torch.zeros(2, patches, dtype=torch.int64)
        for row, n in enumerate((48, 48 - padding)):
            drawn = [1]
            while sum(drawn) < n + 1:
                drawn.append(min(rng.randint(3, 9), n + 1 - sum(drawn)))
            lengths[row, : len(drawn)] = torch.tensor(drawn)
        made.append((tokens, lengths))
    return made


VARIANTS = {
    "published": tiny(),
    "all": tiny(
        n_layers_local_encoder=2,
        cross_attn_all_layers_encoder=True,
        cross_attn_window_encoder=2,
        cross_attn_window_decoder=3,
        **dict.fromkeys(ROW_READING, True),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_no_value_is_waited_for_and_no_shape_depends_on_one(variant, monkeypatch):
    """One graph without breaks, made once, with the attention and masks of a GPU: any look at a
    value would break it."""
    model = sharp_blt(VARIANTS[variant])
    expected = [model(*batch) for batch in batches()]
    monkeypatch.setattr("model.blt.segment_attention", attention_of_a_gpu)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for batch, logits in zip(batches(), expected, strict=True):
        inside = batch[0] != -1
        torch.testing.assert_close(compiled(*batch)[inside], logits[inside], rtol=0, atol=2e-5)
    assert counter.frame_count == 1


def test_layout_is_one_graph():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(PatchLayout.of, backend=counter, fullgraph=True, dynamic=False)
    for batch in batches():
        layout, expected = compiled(*batch, 2, 3), PatchLayout.of(*batch, 2, 3)
        for name, value in expected._asdict().items():
            assert torch.equal(getattr(layout, name), value), name
    assert counter.frame_count == 1


@pytest.mark.parametrize("last_reads_last", [False, True])
@pytest.mark.parametrize("across", [False, True])
def test_indices_never_fall(across, last_reads_last):
    """Sums over runs rely on it, on every device; so they do where there is no patch (``~i``)."""
    for seed in range(20):
        tokens, lengths = random_batch(random.Random(seed))
        layout = PatchLayout.of(
            tokens, lengths, 4, 4, across_documents=across, last_reads_last=last_reads_last
        )
        for index_TW in (layout.gathering_TW, layout.read_TW):
            patch_TW = torch.where(index_TW < 0, ~index_TW, index_TW)
            assert (patch_TW.diff(dim=0) >= 0).all()
            assert patch_TW.min() >= 0 and patch_TW.max() < lengths.numel()
        assert (layout.read_TW[:, 0] >= 0).all()


def test_compiled_on_a_cpu():
    """With our attention there, and so in several graphs; gradients too."""
    torch._dynamo.reset()
    model = sharp_blt(tiny(n_layers_global=1, n_layers_local_decoder=1))
    compiled = torch.compile(model, backend="aot_eager")
    for tokens, lengths in batches()[:2]:
        inside, found = tokens != -1, []
        for forward in (model, compiled):
            logits = forward(tokens, lengths)
            loss = logits[inside].logsumexp(-1).mean()
            found.append((logits[inside], *torch.autograd.grad(loss, model.parameters())))
        for actual, expected in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_bfloat16():
    for seed in range(5):
        rng = random.Random(seed)
        model = sharp_blt(random_config(rng), seed, factor=1.0)
        tokens, lengths = random_batch(rng)
        expected = model(tokens, lengths)
        logits = model.bfloat16()(tokens, lengths)
        assert logits.dtype == torch.float32
        error = (logits - expected)[tokens != -1]
        # Measured: 0.01 of the deviation.
        assert error.square().mean().sqrt() < 0.04 * expected[tokens != -1].std()


@pytest.mark.parametrize("all_layers", [False, True])
@torch.no_grad()
def test_initial_loss_is_that_of_knowing_nothing(all_layers):
    torch.manual_seed(0)
    config = replace(
        BLT_SIZES["debug"], n_layers_local_encoder=2, cross_attn_all_layers_encoder=all_layers
    )
    model = BLT(config)
    model.init_weights()
    rng = random.Random(0)
    tokens = torch.tensor([random_tokens(rng, 512) for _ in range(4)])
    logits = model(tokens, rows_of([random_lengths(rng, 512) for _ in range(4)], 0))
    loss = F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:]).item()
    assert math.log(260) - 0.1 < loss < math.log(260) + 0.7  # logits have a deviation of about 1
    for parameter in model.parameters():
        assert parameter.isfinite().all()


def test_weights_made_on_the_meta_device_are_as_good():
    """As a trainer makes a model too large to be made twice."""
    with torch.device("meta"):
        model = BLT(tiny())
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    torch.manual_seed(0)
    expected = BLT(tiny())
    torch.manual_seed(0)
    expected.init_weights()
    tokens, lengths = batches()[0]
    assert torch.equal(model(tokens, lengths), expected(tokens, lengths))
