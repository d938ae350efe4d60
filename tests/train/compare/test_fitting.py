"""Widths at which models cost the same."""

import pytest
import torch
from support.counted_flops import counting

from model import BLT, BLT_SIZES, EntropyModel, EntropyModelConfig
from model.token_transformer import TokenTransformer, TokenTransformerConfig
from model.widths import resized
from pipeline.errors import ConfigError
from train.compare.fitting import TOLERANCE, Rows, fitted

ROWS = Rows(patch_size=4.5, bytes_per_batch=8000, seq_len=1024)
SHAPES = {
    "blt": resized(BLT_SIZES["debug"], {"n_layers_global": 12}),
    "blt-1b": BLT_SIZES["1b"],
    "tokens": TokenTransformerConfig(dim=128, n_layers=4, n_heads=4, vocab_size=4096),
    "bytes": EntropyModelConfig(dim=128, n_layers=4, n_heads=4),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("factor", [0.7, 0.93, 1.1, 1.6, 3.0])
def test_any_cost_is_met(name, factor):
    shape = SHAPES[name]
    target = factor * sum(ROWS.flops_per_byte(shape).values())
    changes = fitted(shape, ROWS, target)
    other = resized(shape, changes)
    assert sum(ROWS.flops_per_byte(other).values()) == pytest.approx(target, rel=TOLERANCE)
    end = "_global" if name.startswith("blt") else ""
    ratios = [getattr(s, f"hidden_dim{end}") / getattr(s, f"dim{end}") for s in (shape, other)]
    assert 0.4 < ratios[1] / ratios[0] < 2.5
    heads = [getattr(s, f"dim{end}") // getattr(s, f"n_heads{end}") for s in (shape, other)]
    assert heads[0] == heads[1]


def test_what_costs_as_much_stays_as_it_is():
    shape = SHAPES["blt"]
    assert fitted(shape, ROWS, 1.009 * sum(ROWS.flops_per_byte(shape).values())) == {}


def test_what_cannot_be():
    shape = SHAPES["blt"]
    with pytest.raises(ConfigError, match="no width comes within 1% of 1,000 FLOPs per byte; at"):
        fitted(shape, ROWS, 1000)
    with pytest.raises(ConfigError, match="n_kv_heads_global: shared heads cannot be fitted"):
        fitted(resized(shape, {"n_kv_heads_global": 2}), ROWS, 1e7)


def test_longer_patches_pay_for_a_wider_latent_transformer():
    shape = SHAPES["blt"]
    long = Rows(patch_size=8, bytes_per_batch=8000, seq_len=1024)
    changes = fitted(shape, long, sum(ROWS.flops_per_byte(shape).values()))
    assert changes["dim_global"] > shape.dim_global


def test_arms_cost_the_same_by_torchs_counter(monkeypatch):
    """Patches of 4 and of 8 bytes, tokens of 3 bytes, and bytes: a row of each, counted."""
    counted = counting(monkeypatch)
    tokens = 49
    ids = torch.randint(4, 260, (1, tokens))

    def lengths(patch: int) -> torch.Tensor:
        return torch.tensor([[1, *[patch] * ((tokens - 1) // patch)]])

    def rows(size: float) -> Rows:
        return Rows(patch_size=size, bytes_per_batch=tokens, seq_len=tokens)

    first = SHAPES["blt"]
    short, long = (tokens / lengths(patch).shape[1] for patch in (4, 8))
    target = sum(rows(short).flops_per_byte(first).values())
    arms = [
        (BLT, first, short, (lengths(4),), tokens),
        (BLT, first, long, (lengths(8),), tokens),
        (TokenTransformer, SHAPES["tokens"], 3, (), 3 * tokens),
        (EntropyModel, SHAPES["bytes"], 1, (), tokens),
    ]
    costs = [
        counted(kind(resized(shape, fitted(shape, rows(size), target))), ids, *patches) / text
        for kind, shape, size, patches, text in arms
    ]
    assert costs[0] == pytest.approx(target, rel=0.01)
    assert costs == pytest.approx([costs[0]] * len(arms), rel=0.015)
