"""Tiny Llamas, made and saved by transformers itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model import BLTConfig
from support.tiny import CONFIG
from support.weights import sharpen

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
"""As Llama 3.1's positions, with a context so short that the tests' texts feel it."""
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
HEAD_DIM = 12
SHAPE = replace(
    CONFIG,
    dim_global=4 * HEAD_DIM,
    n_layers_global=3,
    n_heads_global=4,
    n_kv_heads_global=2,
    hidden_dim_global=512,
    rope_theta=1000.0,
    rope_scaling_global=(4.0, 1.0, 4.0, 64.0),
    norm_eps=1e-6,
    patcher=None,
)
"""A BLT whose latent transformer is such a Llama's."""


def llama(shape: BLTConfig = SHAPE, *, rope: dict[str, Any] = SCALED, **changes: Any) -> Any:
    """A Llama with the shape of a BLT's latent transformer, whose weights say something."""
    torch.manual_seed(4)
    config = LlamaConfig(
        hidden_size=shape.dim_global,
        num_hidden_layers=shape.n_layers_global,
        num_attention_heads=shape.n_heads_global,
        num_key_value_heads=shape.n_kv_heads_global,
        intermediate_size=shape.hidden_dim_global,
        rope_parameters=rope,
        rms_norm_eps=shape.norm_eps,
        vocab_size=300,
        **changes,
    )
    model = LlamaForCausalLM(config).eval()
    sharpen(model, 3)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def save(model: Any, directory: Path, **settings: Any) -> Path:
    model.save_pretrained(directory, **settings)
    return directory
