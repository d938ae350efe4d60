"""What is written in the published layout, and alone of an entropy model, is read as the same."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch
from support.blt_cases import random_config, sharp_blt, tiny
from support.weights import sharpen
from transformers.models.blt.modeling_blt import BltPatcher

from model import (
    BLT,
    BLT_SIZES,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
    load_blt,
    load_entropy_model,
    save_blt,
    save_entropy_model,
)
from model.checkpoints import entropy_layouts
from model.checkpoints.blt import load_entropy_model_of
from model.checkpoints.blt_published import from_published_args, to_published_args
from model.checkpoints.entropy_model import fingerprint
from model.checkpoints.files import CheckpointError
from model.widths import default_hidden_dim, hidden_dim_arguments

TOKENS = torch.randint(4, 260, (2, 60), generator=torch.Generator().manual_seed(0))
PATCHERS = [
    None,
    Patcher(1.25),
    Patcher(1.25, max_patch_length=7),
    Patcher(0.5, "monotonic", published=True),
    Patcher(1.25, "combined", 0.5, published=True),
    Patcher(rule="space"),
    Patcher(rule="byte", max_patch_length=3),
    Patcher(rule="static", patch_size=4),
]


@pytest.fixture(scope="module")
def entropy_model() -> EntropyModel:
    torch.manual_seed(0)
    shape = EntropyModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=80)
    model = EntropyModel(replace(shape, context_length=2048, rope_theta=500.0)).eval()
    sharpen(model, 2)
    return model


@pytest.mark.parametrize("patcher", PATCHERS, ids=str)
def test_blt(patcher, tmp_path):
    blt = sharp_blt(tiny(patcher=patcher, hash_across_documents=True, norm_eps=1e-4))
    save_blt(blt, tmp_path, layout="published")
    assert json.loads((tmp_path / "config.json").read_text()).keys() == {"args"}
    loaded = load_blt(tmp_path, device="cpu")
    assert loaded.config == blt.config
    assert all(torch.equal(loaded.state_dict()[k], w) for k, w in blt.state_dict().items())


@pytest.mark.parametrize(("factor", "std"), [("disabled", None), ("dim_ratio", 0.02)])
def test_initialisation_is_stated(factor, std):
    stated = {"init_std_factor": factor, "init_base_std": std}
    blt, entropy_model = tiny(**stated), EntropyModelConfig(**stated)
    args = to_published_args(blt)
    assert stated.items() <= args.items()
    assert stated.items() <= entropy_layouts.to_published_args(entropy_model).items()
    none = from_published_args({**args, "init_base_std": 0.0}, {})  # as the published code reads it
    assert none == replace(blt, init_base_std=None)
    with pytest.raises(ValueError, match="init_std_factor: 'deep' is not one of"):
        from_published_args({**args, "init_std_factor": "deep"}, {})


def test_any_shape_is_read_as_it_was_or_refused():
    rng, held = random.Random(0), 0
    for config in (*BLT_SIZES.values(), *(random_config(rng) for _ in range(200))):
        try:
            args = to_published_args(config)
        except CheckpointError as error:
            assert re.search("; (n_kv_heads_local_|hidden_dim_|cross_attn_..coder:)", str(error))
        else:
            held += 1
            assert from_published_args(json.loads(json.dumps(args)), {}) == config
    assert held > 25  # of the others, widths or heads have no arguments


@torch.no_grad()
def test_no_hash_embeddings(tmp_path):
    """The published arguments call them None."""
    blt = sharp_blt(tiny(encoder_hash_byte_group_size=(), hidden_dim_global=32))
    save_blt(blt, tmp_path, layout="published")
    args = json.loads((tmp_path / "config.json").read_text())["args"]
    assert args["encoder_hash_byte_group_size"] is None
    tokens, lengths = torch.tensor([[1, 5, 6]]), torch.tensor([[1, 1, 2]])
    loaded = load_blt(tmp_path, device="cpu")
    assert loaded.config == blt.config
    assert torch.equal(loaded(tokens, lengths), blt(tokens, lengths))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_kv_heads_local_encoder": 1}, "n_kv_heads_local_encoder: 1 would be read as 2"),
        ({"hidden_dim_global": 4000}, "hidden_dim_"),
        ({"cross_attn_decoder": False}, "cross_attn_decoder: False would be read as True"),
        ({"patcher": Patcher(rule="top-k", patch_size=4)}, "patcher: .*top-k.* read as None"),
        ({"patcher": Patcher(0.5, "monotonic")}, "patcher: monotonic .* read as .*, published"),
    ],
)
def test_blts_that_it_cannot_hold(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=f"published layout cannot hold.* {message}"):
        save_blt(BLT(tiny(**change)), tmp_path / "new", layout="published")
    assert not (tmp_path / "new").exists()


def test_hidden_widths_have_arguments():
    rng = random.Random(0)
    for _ in range(300):
        dims = {rng.randrange(8, 4096, 8) for _ in range(rng.randint(1, 3))}
        multiplier, multiple_of = rng.uniform(0.3, 4), rng.choice([1, 32, 48, 256])
        widths = {(dim, default_hidden_dim(dim, multiplier, multiple_of)) for dim in dims}
        arguments = hidden_dim_arguments(widths)
        assert all(default_hidden_dim(dim, *arguments) == hidden for dim, hidden in widths)


@pytest.mark.parametrize("layout", ["own", "transformers", "published"])
def test_entropy_model(layout, entropy_model, ngram_model, tmp_path):
    save_entropy_model(entropy_model, tmp_path, layout=layout)
    assert fingerprint(load_entropy_model(tmp_path, device="cpu")) == fingerprint(entropy_model)
    if layout == "transformers":
        theirs, loading = BltPatcher.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading[what] for what in ("missing_keys", "unexpected_keys"))
        h, _, _ = theirs.eval()(TOKENS, use_cache=False)
        torch.testing.assert_close(h, entropy_model.entropies(TOKENS), rtol=0, atol=2e-4)
    if layout != "own":
        with pytest.raises(CheckpointError, match="cannot hold an n-gram entropy model"):
            save_entropy_model(ngram_model, tmp_path / "new", layout=layout)
        assert not (tmp_path / "new").exists()


def test_entropy_models_that_cannot_be_written(entropy_model, tmp_path):
    other = EntropyModel(replace(entropy_model.config, window=64))
    with pytest.raises(CheckpointError, match="window: 64 would be read as 512"):
        save_entropy_model(other, tmp_path / "new", layout="published")
    with pytest.raises(CheckpointError, match="window: 64 would be read as 512"):
        save_blt(BLT(tiny()), tmp_path / "new", layout="published", entropy_model=other)
    with pytest.raises(CheckpointError, match="layout: 'hf' is not one of own, transformers, pub"):
        save_entropy_model(entropy_model, tmp_path / "new", layout="hf")
    assert not (tmp_path / "new").exists()


def test_the_entropy_model_lies_below(entropy_model, tmp_path):
    save_blt(BLT(tiny()), tmp_path, layout="published", entropy_model=entropy_model)
    assert "args" in json.loads((tmp_path / "entropy_model" / "config.json").read_text())
    found = load_entropy_model_of(tmp_path, device="cpu")
    assert fingerprint(found) == fingerprint(entropy_model)
