"""The deviation of every initial weight, from the published table, at two widths and in depth."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from model import BLT, BLTConfig, EntropyModel, EntropyModelConfig
from model.initialisation import InitStdFactor
from model.layers.initializers import initializers

CUT = 0.98658
"""The deviation of a normal distribution with deviation 1 that is cut off at -3 and 3."""
FACTORS = {
    "disabled": lambda layer, layers, dim: 1,
    "current_depth": lambda layer, layers, dim: math.sqrt(2 * (layer + 1)),
    "global_depth": lambda layer, layers, dim: math.sqrt(2 * (layers + 1)),
    "dim_ratio": lambda layer, layers, dim: dim / 4096,
}


def blt_of(width: int, factor: InitStdFactor, base_std: float | None = None) -> BLT:
    """A BLT that has every kind of tensor: cross attention after each of two encoder layers, whose
    heads leave a remainder of the width, and a projection to the latent width."""
    config = BLTConfig(
        dim_local=width,
        n_layers_local_encoder=2,
        n_heads_local_encoder=3,
        n_layers_local_decoder=3,
        n_heads_local_decoder=3,
        dim_global=width * 4 // 3,
        n_layers_global=2,
        n_heads_global=4,
        cross_attn_k=2,
        cross_attn_nheads=9,
        cross_attn_all_layers_encoder=True,
        encoder_hash_byte_group_size=(3, 5),
        encoder_hash_byte_group_vocab=300,
        init_std_factor=factor,
        init_base_std=base_std,
    )
    return BLT(config)


def entropy_of(width: int, factor: InitStdFactor, base_std: float | None = None) -> EntropyModel:
    config = EntropyModelConfig(
        dim=width, n_layers=3, n_heads=3, init_std_factor=factor, init_base_std=base_std
    )
    return EntropyModel(config)


def blt_table(model: BLT) -> dict[str, tuple[int, int, float]]:
    """Patterns of names, with the width whose power of -1/2 is the deviation, the layers of a stack
    (0: no factor) and the width that the factor asks for."""
    c = model.config
    local, latent = c.dim_local, c.dim_global
    found = {
        r"local_encoder\.tok_embeddings": (local, 0, 0),
        r"encoder_hash_tok_embedding\.[01]": (local, 0, 0),
        r"local_encoder\.patch_embedding_projection": (local, 0, 0),
        r"global_transformer\.token_embedding_projection": (c.cross_attn_k * local, 0, 0),
        r"local_decoder\.patch_embedding_projection": (latent, 0, 0),
        r"local_decoder\.output": (local, 0, 0),
    }
    for part, dim, layers, hidden in (
        ("local_encoder", local, 2, c.hidden_dim_local_encoder),
        ("global_transformer", latent, 2, c.hidden_dim_global),
        ("local_decoder", local, 3, c.hidden_dim_local_decoder),
    ):
        found[rf"{part}\.layers\.\d\.(attention\.w[qkvo]|feed_forward\.w[13])"] = (dim, layers, dim)
        found[rf"{part}\.layers\.\d\.feed_forward\.w2"] = (hidden, layers, dim)
        found[rf"{part}\.cross_attn_layers\.\d\.w[qkvo]"] = (dim, layers, dim)
    return found


def entropy_table(model: EntropyModel) -> dict[str, tuple[int, int, float]]:
    """As :func:`blt_table`."""
    c = model.config
    return {
        r"tok_embeddings|output": (c.dim, 0, 0),
        r"layers\.\d\.(attention\.w[qkvo]|feed_forward\.w[13])": (c.dim, c.n_layers, c.dim),
        r"layers\.\d\.feed_forward\.w2": (c.hidden_dim, c.n_layers, c.dim),
    }


TABLES = {blt_of: blt_table, entropy_of: entropy_table}


def expected(name: str, table: dict[str, tuple[int, int, float]], factor: InitStdFactor) -> float:
    """From the one row of the table that the name belongs to."""
    ((width, layers, dim),) = (
        row for pattern, row in table.items() if re.fullmatch(rf"({pattern})\.weight", name)
    )
    if not layers:
        return width**-0.5
    layer = int(re.findall(r"layers\.(\d)", name)[0])
    return width**-0.5 / FACTORS[factor](layer, layers, dim)


def check(name: str, parameter: nn.Parameter, deviation: float) -> None:
    """The sampled deviation, within what chance allows for so many numbers."""
    allowed = 4.5 / math.sqrt(2 * parameter.numel())
    assert allowed < 0.06
    assert float(parameter.detach().std()) == pytest.approx(CUT * deviation, rel=allowed), name
    assert abs(float(parameter.detach().mean())) < 5 * deviation / parameter.numel() ** 0.5, name
    assert 2.5 * deviation < float(parameter.detach().abs().max()) <= 3.0001 * deviation, name


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("width", [60, 120])
@pytest.mark.parametrize("make", [blt_of, entropy_of])
def test_every_deviation(make, width, factor):
    torch.manual_seed(0)
    model = make(width, factor)
    model.init_weights()
    table = TABLES[make](model)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            check(name, parameter, expected(name, table, factor))


@pytest.mark.parametrize("factor", ["disabled", "current_depth"])
@pytest.mark.parametrize("make", [blt_of, entropy_of])
def test_base_std(make, factor):
    """It counts for the latent transformer's layers and those of the entropy model, without a
    factor, and nowhere else."""
    torch.manual_seed(1)
    model = make(60, factor, 0.02)
    model.init_weights()
    table = TABLES[make](model)
    of_base = r"(global_transformer\.)?layers\..*"
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            based = re.fullmatch(of_base, name)
            check(name, parameter, 0.02 if based else expected(name, table, factor))


def test_a_tensor_without_a_rule_is_named():
    model = entropy_of(60, "disabled")
    model.layers[0].attention.wx = nn.Linear(4, 4, bias=False)
    with pytest.raises(ValueError, match=r"layers\.0\.attention\.wx\.weight: no rule says"):
        initializers(model, "disabled", None)


@pytest.mark.parametrize("config", [BLTConfig(), EntropyModelConfig()], ids=["blt", "entropy"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_std_factor": "depth"}, "init_std_factor: 'depth' is not one of disabled, current_"),
        ({"init_base_std": 0.0}, "init_base_std: a positive deviation, or none, got 0.0"),
        ({"init_base_std": math.nan}, "init_base_std: .* got nan"),
        ({"init_base_std": math.inf}, "init_base_std: .* got inf"),
    ],
)
def test_settings_without_a_meaning_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)
