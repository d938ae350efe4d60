"""A latent transformer with a Llama's blocks computes what transformers computes with them."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support import llamas
from support.llamas import PLAIN, SCALED, SHAPE, save
from transformers.models.blt.modeling_blt import BltForCausalLM

from model import BLT, BLTConfig, load_blt, save_blt
from model.checkpoints.files import CheckpointError
from model.checkpoints.llama import latent_origin, read_latent
from model.layers.attention import segment_attention
from model.layers.transformer import run_blocks
from model.provenance import LatentOrigin


def with_llama(directory: Path, shape: BLTConfig = SHAPE) -> BLT:
    """A BLT whose latent transformer has the blocks in a directory."""
    theirs, (weights, orders, _) = read_latent(directory, shape)
    assert theirs == shape
    torch.manual_seed(5)
    model = BLT(shape).eval()
    model.init_weights()
    own = {name: w[orders[name]] if name in orders else w for name, w in weights.items()}
    assert not model.load_state_dict(own, strict=False).unexpected_keys
    return model


@pytest.mark.parametrize("rope", [PLAIN, SCALED])
@pytest.mark.parametrize("settings", [{}, {"max_shard_size": "40KB"}])
@torch.no_grad()
def test_hidden_states_are_those_of_transformers(rope, settings, tmp_path):
    llama = llamas.llama(rope=rope)
    save(llama, tmp_path, **settings)
    assert len(list(tmp_path.glob("*.safetensors"))) > bool(settings)
    shape = SHAPE if rope is SCALED else replace(SHAPE, rope_scaling_global=())
    latent = with_llama(tmp_path, shape).global_transformer
    x_TD = torch.randn(150, shape.dim_global)
    expected = llama.model(inputs_embeds=x_TD[None]).last_hidden_state[0]
    position_T = torch.arange(len(x_TD))
    attends = [segment_attention(position_T, None)] * shape.n_layers_global
    found = run_blocks(latent.layers, x_TD, latent.rotary(position_T), attends)
    normed = F.rms_norm(found, found.shape[-1:], llama.model.norm.weight, shape.norm_eps)
    torch.testing.assert_close(normed, expected, rtol=0, atol=1e-4)
    other = run_blocks(latent.layers, x_TD, latent.rotary(position_T // 2), attends)
    assert not torch.allclose(found, other, atol=1e-2)  # positions matter


def test_frequencies_are_those_of_transformers():
    for factor, length in ((8.0, 8192), (32.0, 8192), (4.0, 64)):
        rope = {**SCALED, "factor": factor, "original_max_position_embeddings": length}
        theirs = llamas.llama(rope=rope).model.rotary_emb.inv_freq
        ours = BLT(replace(SHAPE, rope_scaling_global=(factor, 1.0, 4.0, length)))
        found = ours.global_transformer.rotary.bits_F.view(torch.float32)
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=0)
        plain = ours.local_decoder.rotary.bits_F.view(torch.float32)
        assert plain[-1] == torch.tensor(1000.0) ** -(14 / 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type='qwen2': a latent transformer can begin with"),
        ({"attention_bias": True}, "argument attention_bias=True is not supported"),
        ({"mlp_bias": True}, "argument mlp_bias=True is not supported"),
        ({"head_dim": 16}, "argument head_dim=16 is not supported"),
        ({"sliding_window": 4096}, "argument sliding_window=4096 is not supported"),
        ({"hidden_act": "gelu"}, "argument hidden_act='gelu' is not supported"),
        ({"quantization_config": {}}, "argument quantization_config={} is not supported"),
        (
            {"rope_parameters": {**SCALED, "rope_type": "yarn"}},
            "argument rope_type='yarn' is not supported",
        ),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}},
            "argument rope_type='linear' is not supported",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "argument rope_type='llama3' needs factor, which is no number",
        ),
        (
            {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
            "argument partial_rotary_factor=0.5 is not supported",
        ),
        ({"hidden_size": None}, "argument hidden_size=None is no positive number"),
        ({"rope_parameters": "x"}, "argument rope_parameters='x' is not supported"),
        ({"rms_norm_eps": "x"}, "norm_eps: 'x' is no number"),
        ({"rms_norm_eps": None}, "norm_eps: None is no number"),
        ({"num_key_value_heads": "2"}, "n_kv_heads_global: '2' is no whole number"),
        ({"num_attention_heads": 5}, "head_dim"),
        ({"num_attention_heads": 5, "head_dim": None}, "n_heads_global: 5 heads do not divide"),
    ],
)
def test_what_our_blocks_lack_is_refused(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**llamas.llama().config.to_dict(), **change}))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        read_latent(tmp_path, SHAPE)


def test_weights_that_do_not_fit(tmp_path):
    file = save(llamas.llama(), tmp_path) / "model.safetensors"
    good = {name: w.clone() for name, w in load_file(file).items()}
    q, up = "model.layers.1.self_attn.q_proj", "model.layers.2.mlp.up_proj.weight"
    for weights, message in (
        ({**good, f"{q}.bias": torch.zeros(48)}, r"has unknown weights: layers.1.*q_proj.bias"),
        ({n: w for n, w in good.items() if n != up}, "lacks weights"),
        (
            {**good, up: good[up][1:].clone()},
            r"w3.weight has shape \(511, 48",
        ),
        ({**good, up: good[up].to(torch.int8)}, "has dtype torch.int8, not a float"),
        ({**good, up.removeprefix("model."): good[up] + 1}, r"up_proj.weight: is there twice, as"),
    ):
        save_file(weights, file)
        with pytest.raises(CheckpointError, match=message):
            read_latent(tmp_path, SHAPE)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        read_latent(tmp_path, SHAPE)
    save(llamas.llama(), tmp_path, max_shard_size="40KB")
    stray = tmp_path / "consolidated.safetensors"  # that the index does not list
    save_file({"layers.0.attention.wq.weight": torch.ones(1)}, stray)
    assert len(read_latent(tmp_path, SHAPE)[1].weights) == 27
    sorted(tmp_path.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-.*: is listed in .* is not there"):
        read_latent(tmp_path, SHAPE)


def test_tied_embeddings_a_base_model_and_bfloat16(tmp_path):
    tied = llamas.llama(tie_word_embeddings=True).bfloat16()
    _, latent = read_latent(save(tied, tmp_path / "tied"), SHAPE)
    assert sorted(latent.left_out) == ["embed_tokens.weight", "norm.weight"]
    assert {weight.dtype for weight in latent.weights.values()} == {torch.bfloat16}
    _, base = read_latent(save(tied.model, tmp_path / "base"), SHAPE)
    assert all(torch.equal(base.weights[name], w) for name, w in latent.weights.items())


def test_origin(tmp_path):
    llama = llamas.llama()
    one = save(llama, tmp_path / "one")
    cached = tmp_path / "models--owner--a-llama" / "snapshots" / "0123abc"
    in_parts = save(llama, cached, max_shard_size="40KB")
    origin = latent_origin(one)
    assert (origin.source, origin.revision) == ("one", None)
    assert latent_origin(in_parts) == LatentOrigin("owner/a-llama", "0123abc", origin.fingerprint)
    with torch.no_grad():
        llama.model.layers[2].mlp.down_proj.weight[0, 0] += 0.01
    assert latent_origin(save(llama, one)).fingerprint != origin.fingerprint


@torch.no_grad()
def test_every_layout_keeps_positions_and_origin_or_refuses(tmp_path):
    origin = LatentOrigin("owner/name", None, "0" * 64)
    shape = replace(SHAPE, latent_origin=origin)
    model = with_llama(save(llamas.llama(), tmp_path / "llama"), shape)
    tokens = torch.randint(4, 260, (1, 200))
    lengths = torch.tensor([[1, *[2] * 100]])
    expected = model(tokens, lengths)
    for layout in ("own", "transformers"):
        save_blt(model, tmp_path / layout, layout=layout)
        read = load_blt(tmp_path / layout, device="cpu")
        assert (read.config.latent_origin, read.config) == (origin, shape)
        assert torch.equal(read(tokens, lengths), expected)
    theirs = BltForCausalLM.from_pretrained(tmp_path / "transformers").eval()
    found = theirs(tokens, patch_lengths=lengths, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    with pytest.raises(CheckpointError, match=r"rope_scaling_global: .* would be read as"):
        save_blt(model, tmp_path / "published", layout="published")
    plain = BLT(replace(shape, rope_scaling_global=()))
    save_blt(plain, tmp_path / "published", layout="published")
    assert load_blt(tmp_path / "published", device="cpu").config == plain.config
    assert not torch.allclose(plain(tokens, lengths), expected, atol=1e-3)
    for damaged in ([], {**asdict(origin), "source": 3}, {"source": "x"}):
        config = json.loads((tmp_path / "own" / "config.json").read_text())
        file = tmp_path / "own" / "config.json"
        file.write_text(json.dumps({**config, "latent_origin": damaged}))
        with pytest.raises(CheckpointError, match="latent_origin: "):
            load_blt(tmp_path / "own")


@pytest.mark.parametrize("scaling", [(8.0,), (8.0, 4.0, 1.0, 64.0), (0.0, 1.0, 4.0, 64.0)])
def test_scalings_without_meaning(scaling):
    with pytest.raises(ValueError, match="rope_scaling_global: "):
        replace(SHAPE, rope_scaling_global=scaling)
