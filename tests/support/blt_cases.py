"""Tiny BLTs and awkward batches: seeded, and sharp enough to tell right from wrong."""

import random
from dataclasses import replace

import torch
from torch import Tensor

from model import BLT, BLTConfig
from support.weights import sharpen

EOS = 2


def tiny(**changes: object) -> BLTConfig:
    shape: dict = {
        "dim_local": 16,
        "n_heads_local_encoder": 2,
        "n_layers_local_decoder": 2,
        "n_heads_local_decoder": 2,
        "hidden_dim_local_encoder": 32,
        "hidden_dim_local_decoder": 32,
        "dim_global": 32,
        "n_layers_global": 2,
        "n_heads_global": 2,
        "hidden_dim_global": 48,
        "cross_attn_nheads": 2,
        "encoder_hash_byte_group_vocab": 61,
    }
    return BLTConfig(**{**shape, **changes})


def sharp_blt(config: BLTConfig, seed: int = 0, factor: float = 1.5) -> BLT:
    torch.manual_seed(seed)
    model = BLT(config).eval()
    model.init_weights()
    sharpen(model, factor, seed)
    return model


def random_config(rng: random.Random) -> BLTConfig:
    """Any mixture of what a BLT can be."""
    k, heads = rng.choice([1, 2, 3]), rng.choice([2, 4])
    all_layers = rng.random() < 0.5
    config = tiny(
        cross_attn_k=k,
        dim_global=rng.choice([16 * k, 24]),
        n_layers_local_encoder=rng.choice([1, 2, 3]),
        n_layers_local_decoder=rng.choice([1, 3]),
        n_heads_local_encoder=heads,
        n_heads_local_decoder=heads,
        n_kv_heads_local_encoder=rng.choice([1, heads]),
        n_kv_heads_local_decoder=rng.choice([2, heads]),
        n_kv_heads_global=rng.choice([1, 2]),
        cross_attn_nheads=heads,
        cross_attn_all_layers_encoder=all_layers,
        cross_attn_all_layers_decoder=rng.random() < 0.5,
        cross_attn_window_encoder=rng.choice([1, 1, 2, 5]),
        cross_attn_window_decoder=rng.choice([1, 1, 2, 5]),
        encoder_hash_byte_group_size=tuple(rng.sample(range(1, 10), rng.choice([1, 3]))),
        encoder_hash_byte_group_nb_functions=rng.choice([1, 2, 3]),
        hash_across_documents=rng.random() < 0.3,
        local_attention_window_len=rng.choice([None, 1, 4, 512]),
        rope_theta=rng.choice([100.0, 500_000.0]),
    )
    published = {name: rng.random() < 0.3 for name in PUBLISHED_READING}
    config = replace(config, projects_equal_widths=rng.random() < 0.5, **published)
    left_out = [name for name in ABLATIONS if rng.random() < 0.2]
    return ablated(config, *left_out)


PUBLISHED_READING = ("cross_attn_across_documents", "last_reads_last_patch")
"""Fields in which the published code reads otherwise than our own models do by default; it also
hashes n-grams across documents."""

ABLATIONS: dict[str, dict[str, object]] = {
    "cross attention of the encoder": {
        "cross_attn_encoder": False,
        "cross_attn_all_layers_encoder": False,
        "cross_attn_window_encoder": 1,
    },
    "cross attention of the decoder": {"cross_attn_decoder": False, "cross_attn_window_decoder": 1},
    "hash embeddings": {"encoder_hash_byte_group_size": ()},
}
"""What a BLT can do without."""


def ablated(config: BLTConfig, *left_out: str) -> BLTConfig:
    return replace(config, **{k: v for name in left_out for k, v in ABLATIONS[name].items()})


def random_lengths(rng: random.Random, slots: int) -> list[int]:
    """Patches of ``slots`` tokens: all short, of any length, or a single long one."""
    mean, lengths = rng.choice([1, 3, 8, 10_000]), [1]
    while sum(lengths) < slots:
        drawn = 1 if mean == 1 else 1 + int(rng.expovariate(1 / mean))
        lengths.append(min(drawn, slots - sum(lengths)))
    return lengths


def random_tokens(rng: random.Random, n: int, eos: float = 0.1) -> list[int]:
    return [EOS if rng.random() < eos else rng.randrange(260) for _ in range(n)]


def rows_of(rows: list[list[int]], padding: int) -> Tensor:
    """Rows of unequal lengths as one tensor."""
    width = max(map(len, rows))
    return torch.tensor([row + [padding] * (width - len(row)) for row in rows])


def random_batch(rng: random.Random, longest: int = 40) -> tuple[Tensor, Tensor]:
    """Tokens and patch lengths; patches know nothing of documents, and rows differ in length."""
    tokens = [random_tokens(rng, rng.randint(1, longest)) for _ in range(rng.randint(1, 3))]
    lengths = [random_lengths(rng, len(row) + rng.randint(0, 1)) for row in tokens]
    return rows_of(tokens, -1), rows_of(lengths, 0)
