"""FLOPs of training, against those that PyTorch counts, for each kind of models."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.blt_cases import ABLATIONS, ablated
from support.counted_flops import counting
from torch import Tensor

from model import BLT, BLT_SIZES, EntropyModel, EntropyModelConfig
from model.flops import flops_per_byte
from model.token_transformer import TokenTransformer, TokenTransformerConfig
from model.training_flops import training_flops

ROWS, TOKENS, PATCH = 1, 49, 4


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    return counting(monkeypatch)


def tokens(vocab_size: int) -> Tensor:
    return torch.randint(4, vocab_size, (ROWS, TOKENS))


DEBUG = BLT_SIZES["debug"]
BLTS = {
    "debug": DEBUG,
    # Widths that the paper's formula rounds, shared keys and values, and a projection into patches.
    "odd": replace(
        DEBUG,
        dim_global=96,
        hidden_dim_global=200,
        n_kv_heads_global=2,
        n_layers_local_encoder=2,
        cross_attn_all_layers_encoder=True,
        hidden_dim_local_decoder=96,
        n_kv_heads_local_decoder=2,
        cross_attn_k=3,
        local_attention_window_len=20,
    ),
    **{
        "without " + " ".join(names): ablated(DEBUG, *names)
        for names in (*((name,) for name in ABLATIONS), tuple(ABLATIONS))
    },
}


@pytest.mark.parametrize("name", BLTS)
def test_blts(counted, name):
    shape = BLTS[name]
    lengths = torch.tensor([[1, *[PATCH] * (TOKENS // PATCH)]] * ROWS)
    total = counted(BLT(shape), tokens(260), lengths)
    size = TOKENS / lengths.shape[1]
    formula = sum(training_flops(shape, patch_size=size, context=TOKENS).values())
    assert total / (ROWS * TOKENS) == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize("window", [512, 16])
def test_byte_transformers(counted, window):
    shape = EntropyModelConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, window=window)
    total = counted(EntropyModel(shape), tokens(260))
    formula = sum(training_flops(shape, patch_size=1, context=TOKENS).values())
    assert total / (ROWS * TOKENS) == pytest.approx(formula, rel=1e-3)


def test_token_transformers(counted):
    """Per byte, at 3 bytes per token."""
    shape = TokenTransformerConfig(dim=64, n_layers=2, n_heads=4, n_kv_heads=1, vocab_size=512)
    total = counted(TokenTransformer(shape), tokens(512))
    formula = sum(training_flops(shape, patch_size=3, context=TOKENS).values())
    assert total / (ROWS * TOKENS * 3) == pytest.approx(formula, rel=1e-3)


def test_the_papers_formula_is_near_for_its_own_sizes():
    """It rounds widths and windows, and leaves out projections in and out of patches."""
    for name, shape in BLT_SIZES.items():
        if name != "debug":
            exact = sum(training_flops(shape, patch_size=4.5, context=8192).values())
            paper = flops_per_byte(shape, patch_size=4.5, context=8192, training=True)
            assert paper == pytest.approx(exact, rel=0.12)
