"""The paper's sizes: what they weigh and what they cost."""

from dataclasses import replace

import pytest
import torch
from support.blt_cases import ABLATIONS, ablated, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model import BLT, BLT_SIZES, BLTConfig, EntropyModelConfig
from model.flops import flops_per_byte, transformer_flops
from model.layers.hash_embedding import PRIMES
from model.widths import resized

PAPER = {
    "400m": (470e6, 7e6, 50e6),
    "1b": (1.26e9, 12e6, 113e6),
    "2b": (2e9, 12e6, 113e6),
    "4b": (4.1e9, 12e6, 113e6),
    "8b": (6.4e9, 20e6, 120e6),
}
"""Parameters of latent transformer, encoder, decoder, as the paper's table rounds them."""


def parameters(layers: nn.ModuleList) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())


@pytest.mark.parametrize("size", PAPER)
def test_parameters_of_the_papers_sizes(size):
    config = BLT_SIZES[size]
    with torch.device("meta"):
        model = BLT(config)
    parts = (model.global_transformer, model.local_encoder, model.local_decoder)
    dims = (config.dim_global, config.dim_local, config.dim_local)
    for part, dim, papers in zip(parts, dims, PAPER[size], strict=True):
        counted = parameters(part.layers)
        assert counted == pytest.approx(12 * len(part.layers) * dim**2, rel=0.1)
        assert counted == pytest.approx(papers, rel=0.1)
    counts = model.parameter_counts()
    assert sum(counts.values()) == parameters(model)
    assert counts["encoder_hash_tok_embedding"] == 6 * 500_002 * config.dim_local
    crossing = parameters(model.local_decoder.cross_attn_layers)
    of_one = 4 * config.dim_local**2
    assert crossing == pytest.approx(config.n_layers_local_decoder * of_one, rel=0.02)


def test_published_1b_is_the_default():
    assert BLT_SIZES["1b"] == BLTConfig()
    assert BLTConfig().hidden_dim_global == 5632
    assert BLTConfig().hidden_dim_local_encoder == 2816
    with torch.device("meta"):
        model = BLT(BLTConfig())
    # Twice 1024 is the latent width: nothing is projected.
    assert not list(model.global_transformer.token_embedding_projection.parameters())


def test_flops_worked_out_by_hand():
    """Every number below is from the paper's formulas, for one byte."""
    config = BLTConfig(
        dim_local=8,
        n_heads_local_encoder=2,
        n_layers_local_decoder=3,
        n_heads_local_decoder=2,
        dim_global=16,
        n_layers_global=5,
        n_heads_global=2,
        cross_attn_nheads=2,
        local_attention_window_len=7,
    )
    # feed-forward 2 * l * 2 * h * 4h, projections 4 * 2 * l * h^2, attention 4 * l * h * (m + 1)/2
    latent = 2 * 5 * 2 * 16 * 64 + 4 * 2 * 5 * 16 * 16 + 4 * 5 * 16 * (25 + 1) / 2
    encoder = 2 * 1 * 2 * 8 * 32 + 4 * 2 * 1 * 8 * 8 + 4 * 1 * 8 * (7 + 1) / 2
    decoder = 2 * 3 * 2 * 8 * 32 + 4 * 2 * 3 * 8 * 8 + 4 * 3 * 8 * (7 + 1) / 2 + 2 * 8 * 260
    # k = 2 queries a patch of 4 bytes; 2 bytes' keys a query
    gather = (4 * 8 * (4 + 1) / 2 + (2 * 2 + 2) * 2 * 8 * 8) * 2 / 4
    # 3 layers in which a byte reads k = 2 keys; half a patch's key a byte
    read = 4 * 3 * 8 * (2 + 1) / 2 + (0.5 * 2 + 2) * 2 * 3 * 8 * 8
    forward = latent / 4 + encoder + decoder + gather + read
    assert flops_per_byte(config, patch_size=4, context=100) == forward
    assert flops_per_byte(config, patch_size=4, context=100, training=True) == 3 * forward
    assert transformer_flops(5, 16, 25) == latent


@pytest.mark.parametrize("left_out", [(), *((name,) for name in ABLATIONS), tuple(ABLATIONS)])
def test_flops_against_those_that_torch_counts(left_out):
    """Of matrix products with weights, which are nearly all: attention the paper halves for its
    causal mask, which a counter of operations cannot know, so that there is as good as none here.
    The paper leaves out the projections in and out of patches. Measured: 1% apart."""
    config = tiny(
        dim_local=96,
        hidden_dim_local_encoder=256,
        hidden_dim_local_decoder=256,
        n_layers_local_decoder=3,
        dim_global=192,
        hidden_dim_global=512,
        n_layers_global=6,
        local_attention_window_len=1,
    )
    config = ablated(config, *left_out)
    rows, n, patch = 8, 17, 4
    lengths = torch.tensor([[1, *[patch] * (n // patch)]] * rows)
    tokens = torch.randint(4, 260, (rows, n))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        BLT(config)(tokens, lengths)
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm] / (rows * n)
    formula = flops_per_byte(config, patch_size=n / lengths.shape[1], context=n)
    assert counted == pytest.approx(formula, rel=0.1)


def test_configurations_that_do_not_fit():
    for message, wrong in {
        "n_heads_local_encoder": {"n_heads_local_encoder": 3},
        "n_heads_global: must be positive": {"n_heads_global": 0},
        # Heads of 3 features cannot be turned in pairs.
        "n_heads_global: 8 heads do not divide 24": {"dim_global": 24, "n_heads_global": 8},
        "n_kv_heads_global": {"n_kv_heads_global": 3},
        "cross_attn_nheads": {"n_kv_heads_local_encoder": 1, "cross_attn_nheads": 1},
        "cross_attn_nheads: 17": {"cross_attn_nheads": 17},
        "cross_attn_k": {"cross_attn_k": 0},
        "rope_theta: must be positive": {"rope_theta": -1.0},
        "rope_theta: must be positive, got inf": {"rope_theta": float("inf")},
        "encoder_hash_byte_group_size: lengths from 1": {"encoder_hash_byte_group_size": (0, 3)},
        "encoder_hash_byte_group_size: .* got 65": {"encoder_hash_byte_group_size": (65,)},
        "encoder_hash_byte_group_size: .* got 3.0": {"encoder_hash_byte_group_size": (3.0, 4)},
        "hash_across_documents: 'false' is neither": {"hash_across_documents": "false"},
        "encoder_hash_byte_group_size: 4 is there": {"encoder_hash_byte_group_size": (3, 4, 4)},
        "encoder_hash_byte_group_vocab: at most": {"encoder_hash_byte_group_vocab": 10**12},
        "encoder_hash_byte_group_nb_functions: at most 11": {
            "encoder_hash_byte_group_nb_functions": len(PRIMES) + 1
        },
        "vocab_size": {"vocab_size": 256},
        "local_attention_window_len": {"local_attention_window_len": 0},
        "n_layers_global: at most 1,000, got 10,000,000": {"n_layers_global": 10**7},
        "n_layers_local_encoder: must be positive": {"n_layers_local_encoder": 0},
        "dim_global: at most": {"dim_global": 10**9},
        "cross_attn_window_encoder: needs": {
            "cross_attn_encoder": False,
            "cross_attn_window_encoder": 2,
        },
        "cross_attn_window_decoder: needs": {
            "cross_attn_decoder": False,
            "cross_attn_window_decoder": 2,
        },
        "cross_attn_all_layers_encoder: needs": {
            "cross_attn_encoder": False,
            "cross_attn_all_layers_encoder": True,
        },
    }.items():
        with pytest.raises(ValueError, match=f"^{message}"):
            tiny(**wrong)
    assert BLTConfig().n_kv_heads_global == 16
    assert tiny(encoder_hash_byte_group_nb_functions=len(PRIMES))


def test_derived_widths_follow_what_they_are_derived_from():
    shape = BLT_SIZES["1b"]
    assert replace(shape, dim_global=1024).hidden_dim_global == shape.hidden_dim_global  # so not
    smaller = resized(shape, {"dim_global": 1024, "n_heads_local_encoder": 8})
    assert smaller.hidden_dim_global == 2816 and smaller.n_kv_heads_local_encoder == 8
    assert smaller.hidden_dim_local_encoder == 2816 and smaller.n_kv_heads_local_decoder == 16
    # What is given stays, and so does what does not change.
    wide = resized(smaller, {"dim_global": 512, "hidden_dim_global": 4096})
    assert wide.hidden_dim_global == 4096
    assert resized(wide, {"dim_global": 512, "cross_attn_k": 4}).hidden_dim_global == 4096
    assert resized(wide, {"dim_local": 512}).hidden_dim_local_decoder == 1536
    entropy = EntropyModelConfig(dim=64, n_heads=4, hidden_dim=128)
    assert resized(entropy, {"dim": 128}).hidden_dim == 512
    assert resized(entropy, {"n_heads": 8}).kv_heads == 8
