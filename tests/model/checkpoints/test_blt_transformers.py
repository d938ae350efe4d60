"""What transformers writes is read, and what is written for it gives it the same model."""

import contextlib
import json
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.blt_cases import random_config, random_lengths, rows_of, sharp_blt, tiny
from support.blt_dense import DenseBLT
from support.weights import sharpen
from transformers import AutoTokenizer
from transformers.models.blt.configuration_blt import (
    BltConfig,
    BltGlobalTransformerConfig,
    BltLocalDecoderConfig,
    BltLocalEncoderConfig,
    BltPatcherConfig,
)
from transformers.models.blt.modeling_blt import BltForCausalLM

from model import (
    BLT,
    ByteTokenizer,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
    load_blt,
    load_entropy_model,
    save_blt,
)
from model.blt_config import ROW_READING
from model.checkpoints.blt_entropy_model import own_entropy_model
from model.checkpoints.blt_transformers import to_transformers_config, to_transformers_weights
from model.checkpoints.entropy_model import fingerprint
from model.checkpoints.files import CheckpointError
from model.tokenizer import BOS_ID, EOS_ID, VOCAB_SIZE

PARTS = {
    "encoder_config": BltLocalEncoderConfig,
    "decoder_config": BltLocalDecoderConfig,
    "global_config": BltGlobalTransformerConfig,
    "patcher_config": BltPatcherConfig,
}
SHAPES = {
    "published": tiny(),
    "other": tiny(
        cross_attn_k=3,
        dim_global=24,
        n_layers_local_encoder=2,
        n_kv_heads_local_encoder=1,
        n_kv_heads_local_decoder=1,
        n_kv_heads_global=1,
        cross_attn_all_layers_decoder=False,
        encoder_hash_byte_group_size=(5, 2),
        encoder_hash_byte_group_nb_functions=2,
        local_attention_window_len=16,
        rope_theta=1000.0,
        norm_eps=1e-4,
        patcher=Patcher(5.0),
    ),
    "one-layer": tiny(cross_attn_all_layers_encoder=True, patcher=Patcher(5.0, max_patch_length=4)),
}


@pytest.fixture(scope="module")
def entropy_model() -> EntropyModel:
    torch.manual_seed(0)
    config = EntropyModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=64, window=30, context_length=2048
    )
    model = EntropyModel(config).eval()
    sharpen(model, 2)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rng = random.Random(0)
    tokens = torch.tensor([[1, *rng.choices(range(4, 260), k=69)] for _ in range(3)])
    return tokens, rows_of([random_lengths(rng, 71) for _ in tokens], 0)


def theirs_from(directory: Path) -> BltForCausalLM:
    theirs, loading = BltForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    return theirs.eval()


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_entropy_model", [True, False], ids=["with-entropy-model", "alone"])
@torch.no_grad()
def test_there_and_back(shape, with_entropy_model, entropy_model, tmp_path):
    config, (tokens, lengths) = SHAPES[shape], batch()
    ours = sharp_blt(config)
    save_blt(
        ours,
        tmp_path / "ours",
        layout="transformers",
        entropy_model=entropy_model if with_entropy_model else None,
    )
    theirs = theirs_from(tmp_path / "ours")
    logits = ours(tokens, lengths)
    close(theirs(tokens, patch_lengths=lengths, use_cache=False).logits, logits)
    if with_entropy_model:
        h, _, _ = theirs.model.patcher(tokens, use_cache=False)
        close(h, entropy_model.entropies(tokens))

    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    for directory in ("ours", "theirs"):
        back = load_blt(tmp_path / directory, device="cpu")
        assert back.config == config
        assert torch.equal(back(tokens, lengths), logits)
        if with_entropy_model:
            back = load_entropy_model(tmp_path / directory, device="cpu")
            assert fingerprint(back) == fingerprint(entropy_model)
    # Whoever gives lengths switches the patcher off; it goes along as long as it is there.
    values = json.loads((tmp_path / "theirs" / "config.json").read_text())
    off = json.dumps({**values, "patch_in_forward": False})
    (tmp_path / "theirs" / "config.json").write_text(off)
    held = tmp_path / "theirs" if with_entropy_model else None
    assert own_entropy_model(tmp_path / "theirs") == held


@torch.no_grad()
def test_transformers_makes_the_same_patches(entropy_model, tmp_path):
    tokens, _ = batch()
    entropies = entropy_model.entropies(tokens)
    patcher = Patcher(entropies.median().item())
    ours = sharp_blt(tiny(patcher=patcher))
    save_blt(ours, tmp_path, layout="transformers", entropy_model=entropy_model)
    lengths = patcher.patch_lengths(entropies, include_next_token=True)
    assert 20 < lengths.shape[1] < 50
    close(theirs_from(tmp_path)(tokens, use_cache=False).logits, ours(tokens, lengths))


@torch.no_grad()
@pytest.mark.parametrize("text", ["né 中文 👩‍👩‍👧 <|blt_titan_eos|>\x00\r\n", "  a  b ", ""])
def test_transformers_makes_the_ids_of_text(text, tmp_path):
    save_blt(sharp_blt(tiny()), tmp_path, layout="transformers")
    theirs = AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    ids = theirs(text).input_ids
    assert ids == ByteTokenizer().encode(text, eos=False)
    assert theirs.decode(ids, skip_special_tokens=True) == text
    config = BltForCausalLM.from_pretrained(tmp_path).generation_config
    assert (config.bos_token_id, config.eos_token_id) == (BOS_ID, EOS_ID)
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (BOS_ID, EOS_ID, VOCAB_SIZE)
    assert theirs.convert_tokens_to_ids(theirs.all_special_tokens) == [BOS_ID, EOS_ID]


def test_how_rows_are_read_is_remembered(tmp_path):
    """Transformers hashes n-grams across documents; what differs stands in its configuration, which
    it keeps."""
    tokens, lengths = batch()
    tokens[:, 30] = 2
    for number, stated in enumerate((True, False)):
        config = tiny(hash_across_documents=stated, last_reads_last_patch=stated)
        ours, directory = sharp_blt(config), tmp_path / str(number)
        save_blt(ours, directory, layout="transformers")
        written = json.loads((directory / "config.json").read_text())
        differs = {"last_reads_last_patch": True} if stated else {"hash_across_documents": False}
        assert {k: v for k, v in written.items() if k in ROW_READING} == differs
        theirs_from(directory).save_pretrained(directory / "again")
        for each in (directory, directory / "again"):
            back = load_blt(each, device="cpu")
            assert back.config == config
            assert torch.equal(back(tokens, lengths), ours(tokens, lengths))
    del written["hash_across_documents"]  # as transformers writes its own
    (directory / "config.json").write_text(json.dumps(written))
    back = load_blt(directory, device="cpu")
    assert back.config == replace(config, hash_across_documents=True)
    expected = DenseBLT(back.config, back.state_dict())(tokens, lengths)
    close(back(tokens, lengths), expected)
    assert (ours(tokens, lengths) - expected).abs().max() > 0.01


@torch.no_grad()
def test_what_transformers_alone_writes(entropy_model, tmp_path):
    """Tied embeddings, of which it stores one, and an entropy model without a window."""
    theirs = to_transformers_config(tiny(patcher=Patcher(5.0)), entropy_model)
    theirs["patcher_config"]["sliding_window"] = None
    torch.manual_seed(0)
    theirs = BltForCausalLM(BltConfig(**theirs, tie_word_embeddings=True)).eval()
    for weight in theirs.parameters():
        weight.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path)
    assert "model.local_encoder.embed_tokens.weight" not in load_file(
        tmp_path / "model.safetensors"
    )
    tokens, lengths = batch()
    expected = theirs(tokens, patch_lengths=lengths, use_cache=False).logits
    close(load_blt(tmp_path, device="cpu")(tokens, lengths), expected)
    # Its earlier releases store the other one of the two.
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.local_encoder.embed_tokens.weight"] = weights.pop("lm_head.weight").clone()
    save_file(weights, tmp_path / "model.safetensors")
    close(load_blt(tmp_path, device="cpu")(tokens, lengths), expected)
    h, _, _ = theirs.model.patcher(tokens, use_cache=False)
    close(load_entropy_model(tmp_path, device="cpu").entropies(tokens), h)
    # Under our own name and theirs, one of the two would be lost.
    weights["local_encoder.tok_embeddings.weight"] = (
        weights["model.local_encoder.embed_tokens.weight"] + 1
    )
    weights["model.patcher.tok_embeddings.weight"] = (
        weights["model.patcher.embed_tokens.weight"] + 1
    )
    save_file(weights, tmp_path / "model.safetensors")
    for load in (load_blt, load_entropy_model):
        with pytest.raises(CheckpointError, match=r"tok_embeddings.weight: is there twice, as"):
            load(tmp_path, device="cpu")


def test_every_argument_is_one_that_transformers_knows(entropy_model):
    """Its configurations take any name and pass over those that they do not know; values that they
    know are checked for their types."""
    rng, held = random.Random(0), 0
    nearer = {
        "cross_attn_encoder": True,
        "cross_attn_decoder": True,
        "cross_attn_window_encoder": 1,
        "cross_attn_window_decoder": 1,
        "cross_attn_all_layers_encoder": False,
        "encoder_hash_byte_group_size": (3, 5),
    }
    for seed in range(12):
        config = replace(random_config(rng), **nearer)
        with contextlib.suppress(CheckpointError):
            theirs = to_transformers_config(config, entropy_model if seed % 2 else None)
            held += 1
            assert theirs.keys() - {"model_type"} <= {f.name for f in fields(BltConfig)}
            for name, part in theirs.items():
                if name in PARTS:
                    assert part.keys() <= {f.name for f in fields(PARTS[name])}
            with torch.device("meta"):
                weights = BltForCausalLM(BltConfig(**theirs)).state_dict()
                ours = to_transformers_weights(
                    BLT(config).state_dict(), entropy_model if seed % 2 else None
                )
            assert {k: w.shape for k, w in weights.items()} == {k: w.shape for k, w in ours.items()}
    assert held > 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cross_attn_window_encoder": 2}, "cross_attn_window: it has no such windows"),
        ({"cross_attn_window_decoder": 2}, "cross_attn_window: it has no such windows"),
        (
            {"cross_attn_all_layers_encoder": True, "n_layers_local_encoder": 2},
            "cross_attn_all_layers_encoder: it pools anew",
        ),
        ({"cross_attn_encoder": False}, "cross_attn_decoder: it always has cross attention"),
        ({"encoder_hash_byte_group_size": ()}, "it always has hash embeddings"),
        ({"cross_attn_nheads": 4}, "n_heads: "),
        (
            {"dim_global": 16, "cross_attn_k": 1, "projects_equal_widths": False},
            "projects_equal_widths: it always projects latent states",
        ),
        ({"n_heads_local_encoder": 4, "n_kv_heads_local_encoder": 4}, "n_heads: "),
        ({"patcher": Patcher(rule="space")}, "patcher: it has the global rule only"),
        ({"patcher": Patcher(0.1, "monotonic")}, "patcher: it has the global rule only"),
    ],
)
def test_models_that_it_cannot_hold(change, message, tmp_path):
    model = BLT(replace(tiny(), **change))
    with pytest.raises(CheckpointError, match=message):
        save_blt(model, tmp_path / "new", layout="transformers")
    assert not (tmp_path / "new").exists()


def test_layouts_and_models_that_cannot_be_written(ngram_model, tmp_path):
    with pytest.raises(CheckpointError, match="cannot hold an n-gram model"):
        save_blt(BLT(tiny()), tmp_path, layout="transformers", entropy_model=ngram_model)
    with pytest.raises(CheckpointError, match="layout: 'hf' is not one of own, transformers"):
        save_blt(BLT(tiny()), tmp_path, layout="hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("encoder_config", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("global_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ("global_config", {"rope_parameters": {"rope_theta": 7.0}}, "rope_parameters: values that"),
        ("decoder_config", {"cross_attn_k": 3}, "cross_attn_k: values that differ"),
        ("decoder_config", {"hidden_size": 32}, "hidden_size: values that differ"),
        ("decoder_config", {"num_attention_heads": 4}, "num_attention_heads: values that differ"),
        ("decoder_config", {"rms_norm_eps": 1e-3}, "rms_norm_eps: values that differ"),
        (
            "encoder_config",
            {"cross_attn_all_layers": True, "num_hidden_layers": 2},
            "cross_attn_all_layers=True is not supported",
        ),
        (
            "decoder_config",
            {"cross_attn_all_layers": "false"},
            "cross_attn_all_layers_decoder: 'false' is neither true nor false",
        ),
    ],
)
def test_arguments_that_are_refused(part, change, message, tmp_path):
    save_blt(BLT(tiny()), tmp_path, layout="transformers")
    config = json.loads((tmp_path / "config.json").read_text())
    config[part] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_blt(tmp_path)


def test_weights_that_do_not_fit(tmp_path):
    save_blt(BLT(tiny()), tmp_path, layout="transformers")
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    tables = "model.encoder_hash_tok_embedding.weight"
    first = "encoder_hash_tok_embedding.0.weight"
    query = "model.global_transformer.layers.0.self_attn.q_proj.weight"
    for weights, message in (
        ({k: w for k, w in good.items() if k != query}, "lacks weights: global_transformer.layers"),
        ({k: w for k, w in good.items() if k != tables}, f"lacks weights: {first}"),
        ({**good, tables: good[tables][: 5 * 61]}, "lacks weights: encoder_hash_tok_embedding.5"),
        ({**good, tables: good[tables][:, :8]}, f"{first} has shape"),
        ({**good, "model.x": torch.ones(1)}, r"unknown weights: model\.x"),
    ):
        save_file({k: w.contiguous() for k, w in weights.items()}, path)
        with pytest.raises(CheckpointError, match=message):
            load_blt(tmp_path)
