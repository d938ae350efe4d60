"""What is written in the published layout, and alone of an entropy model, is read as the same."""

import contextlib
import json
import random
import re
from dataclasses import asdict, replace

import pytest
import torch
from support.blt_cases import random_batch, random_config, sharp_blt, tiny
from support.blt_dense import DenseBLT
from support.published_format import (
    blt_weights,
    check_published_blt,
    check_published_entropy_model,
    wrong_blt_arguments,
)
from support.weights import sharpen
from transformers.models.blt.modeling_blt import BltPatcher

from model import (
    BLT,
    BLT_SIZES,
    BLTConfig,
    EntropyModel,
    EntropyModelConfig,
    Patcher,
    load_blt,
    load_entropy_model,
    save_blt,
    save_entropy_model,
)
from model.blt_config import PARTS
from model.checkpoints import entropy_layouts
from model.checkpoints.blt_entropy_model import load_entropy_model_of
from model.checkpoints.blt_published import (
    AS_PUBLISHED,
    from_published_args,
    to_published_args,
)
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
    blt = sharp_blt(tiny(patcher=patcher, norm_eps=1e-4, **AS_PUBLISHED))
    save_blt(blt, tmp_path, layout="published")
    assert json.loads((tmp_path / "config.json").read_text()).keys() == {"args"}
    check_published_blt(tmp_path)
    by_them = patcher is not None and patcher.rule in ("global", "monotonic", "combined", "space")
    assert (tmp_path / "train_args.json").exists() == by_them
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
    assert none == replace(blt, init_base_std=None, **AS_PUBLISHED)
    with pytest.raises(ValueError, match="init_std_factor: 'deep' is not one of"):
        from_published_args({**args, "init_std_factor": "deep"}, {})


def nearer(config: BLTConfig, rng: random.Random) -> BLTConfig:
    """The shape with heads and widths that published arguments can state."""
    multiplier, multiple_of = rng.uniform(0.5, 3), rng.choice([1, 16])
    widths = {
        f"hidden_dim_{part}": default_hidden_dim(config.dim_of(part), multiplier, multiple_of)
        for part in PARTS
    }
    heads = {f"n_kv_heads_local_{s}": config.n_heads_local_encoder for s in ("encoder", "decoder")}
    return replace(config, **widths, **heads)


def test_any_shape_is_written_as_required_and_read_as_it_was_or_refused():
    rng, held = random.Random(0), []
    random_ones = [random_config(rng) for _ in range(60)]
    random_ones += [nearer(random_config(rng), rng) for _ in range(120)]
    for config in (*BLT_SIZES.values(), *random_ones):
        try:
            args = json.loads(json.dumps(to_published_args(config)))
        except CheckpointError as error:
            reasons = "n_kv_heads_local_|hidden_dim_|local_attention_window|projects_|cross_attn_k:"
            assert re.search(f"; ({reasons})", str(error))
        else:
            held.append(config)
            assert from_published_args(args, {}) == replace(config, **AS_PUBLISHED)
            assert not wrong_blt_arguments(args)
            with torch.device("meta"):
                weights = BLT(config).state_dict()
            assert {k: tuple(w.shape) for k, w in weights.items()} == blt_weights(args)
    assert len(held) > 60  # of the others, widths, heads or windows have no arguments
    for variant in (
        {"projects_equal_widths": False, "dim_global": 16, "cross_attn_k": 1},
        {"cross_attn_encoder": False, "cross_attn_decoder": True},
        {"cross_attn_encoder": True, "cross_attn_decoder": False},
        {"cross_attn_window_encoder": 5},
        {"cross_attn_all_layers_encoder": True, "n_layers_local_encoder": 3},
        {"encoder_hash_byte_group_size": ()},
        {"n_kv_heads_global": 1},
    ):
        assert any(variant.items() <= asdict(config).items() for config in held), variant


def test_the_description_of_what_is_required_tells_wrong_arguments():
    """The arguments of earlier releases, which the published code refused, among them."""
    args = to_published_args(tiny())
    assert not wrong_blt_arguments(args)
    for change, problem in (
        ({"ffn_dim_multiplier": None}, "ffn_dim_multiplier: None"),
        ({"hash_across_documents": True}, "hash_across_documents: unknown"),
        ({"patch_size": None}, "patch_size: needed"),
        ({"max_encoder_seq_length": None}, "max_encoder_seq_length: needed"),
        ({"patching_mode": None}, "patching_mode: needed"),
        ({"dim_global": 16.5}, "dim_global: 16.5"),
        ({"dim_global": True}, "dim_global: True"),
        ({"monotonicity": 1}, "monotonicity: 1"),
        ({"attn_impl": "sdpa"}, "attn_impl: not 'xformers'"),
        ({"init_std_factor": "deep"}, "init_std_factor: 'deep'"),
    ):
        assert problem in wrong_blt_arguments({**args, **change})


@torch.no_grad()
def test_how_rows_are_read_stands_beside_the_arguments(tmp_path):
    """Each way on its own: it changes logits, and comes back with the file."""
    documents = torch.tensor([[1, 70, 71, 2, 1, 72, 73]])
    lengths = torch.tensor([[1, 2, 1, 1, 1, 1]])
    windows = {"cross_attn_window_encoder": 3, "cross_attn_window_decoder": 3}
    published = sharp_blt(tiny(**windows, **AS_PUBLISHED))
    for name in AS_PUBLISHED:
        blt = BLT(replace(published.config, **{name: False})).eval()
        blt.load_state_dict(published.state_dict())
        logits = blt(documents, lengths)
        assert (logits - published(documents, lengths)).abs().max() > 0.01, name
        directory = tmp_path / name
        save_blt(blt, directory, layout="published")
        check_published_blt(directory)
        config = json.loads((directory / "config.json").read_text())
        assert config.keys() == {"args", name} and config[name] is False
        loaded = load_blt(directory, device="cpu")
        assert loaded.config == blt.config
        assert torch.equal(loaded(documents, lengths), logits)
        (directory / "config.json").write_text(json.dumps(config | {name: "no"}))
        with pytest.raises(CheckpointError, match=f"{name}: 'no' is neither true nor false"):
            load_blt(directory, device="cpu")


@torch.no_grad()
def test_packed_rows_of_published_layouts_are_the_definition():
    """EOS anywhere, lengths with and without the next token; nothing but the arguments says how."""
    rng, read = random.Random(1), 0
    while read < 8:
        config = nearer(random_config(rng), rng)
        with contextlib.suppress(CheckpointError):
            shape = from_published_args(to_published_args(config), {})
            assert AS_PUBLISHED.items() <= asdict(shape).items()
            model, (tokens, lengths) = sharp_blt(shape, read), random_batch(rng)
            expected = DenseBLT(shape, model.state_dict())(tokens, lengths)
            logits, inside = model(tokens, lengths), tokens != -1
            torch.testing.assert_close(logits[inside], expected[inside], rtol=0, atol=1e-4)
            read += 1


@torch.no_grad()
def test_latent_states_that_are_not_projected(tmp_path):
    """As published where the latent transformer is as wide as the local models and k is 1."""
    narrow = tiny(dim_global=16, cross_attn_k=1, hidden_dim_global=32, **AS_PUBLISHED)
    blt = sharp_blt(replace(narrow, projects_equal_widths=False))
    assert "local_decoder.patch_embedding_projection.weight" not in blt.state_dict()
    save_blt(blt, tmp_path, layout="published")
    check_published_blt(tmp_path)
    loaded = load_blt(tmp_path, device="cpu")
    assert loaded.config == blt.config
    tokens, lengths = torch.tensor([[1, 5, 6, 7]]), torch.tensor([[1, 1, 3]])
    assert torch.equal(loaded(tokens, lengths), blt(tokens, lengths))


def test_sizes_of_ngrams_as_published_arguments_state_them():
    args = to_published_args(tiny())
    sizes = "encoder_hash_byte_group_size"
    for stated, expected in (
        ([4, 7], (4, 7)),
        ("4,7", (4, 7)),
        ("4,7,", (4, 7)),
        ("", ()),
        ([], ()),
        (None, ()),
    ):
        read = from_published_args({**args, sizes: stated}, {})
        assert read.encoder_hash_byte_group_size == expected
    del args[sizes]  # their default is none
    assert from_published_args(args, {}).encoder_hash_byte_group_size == ()


@torch.no_grad()
def test_no_hash_embeddings(tmp_path):
    """The published arguments call them None."""
    none = {"encoder_hash_byte_group_size": (), "hidden_dim_global": 32}
    blt = sharp_blt(tiny(**none, **AS_PUBLISHED))
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
        ({"local_attention_window_len": None}, "local_attention_window_len: the published local"),
        (
            {"dim_global": 16, "cross_attn_k": 1, "hidden_dim_global": 32},
            "projects_equal_widths: True would be read as False",
        ),
        (
            {"dim_global": 16, "hidden_dim_global": 32},
            "cross_attn_k: where dim_global equals dim_local, bytes read one vector",
        ),
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
    if layout == "published":
        check_published_entropy_model(tmp_path)
    if layout == "transformers":
        theirs, loading = BltPatcher.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(loading[what] for what in ("missing_keys", "unexpected_keys"))
        h, _, _ = theirs.eval()(TOKENS, use_cache=False)
        torch.testing.assert_close(h, entropy_model.entropies(TOKENS), rtol=0, atol=2e-4)
    if layout != "own":
        with pytest.raises(CheckpointError, match="cannot hold an n-gram model"):
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
    check_published_blt(tmp_path)
    check_published_entropy_model(tmp_path / "entropy_model")
    found = load_entropy_model_of(tmp_path, device="cpu")
    assert fingerprint(found) == fingerprint(entropy_model)
