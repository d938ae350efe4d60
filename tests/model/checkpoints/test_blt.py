"""Every layout of a BLT, from every place; what is wrong with a checkpoint is said by name."""

import json
import os
import random
import stat
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import loopback_hub
from support.blt_cases import random_lengths, random_tokens, rows_of, sharp_blt, tiny
from support.tiny import CONFIG
from support.weights import Malicious
from torch import Tensor

from model import BLT, Patcher, load_blt, save_blt, save_entropy_model
from model.checkpoints.blt_entropy_model import load_entropy_model_of
from model.checkpoints.blt_published import (
    FIXED_ARGS,
    IGNORED_ARGS,
    UNSEEN,
    from_published_args,
)
from model.checkpoints.entropy_model import fingerprint
from model.checkpoints.files import CheckpointError, _apart
from model.provenance import EntropyModelIdentity, PatchProvenance

SHAPE = tiny(
    hidden_dim_local_encoder=64,
    hidden_dim_local_decoder=64,
    hidden_dim_global=96,
    n_kv_heads_global=1,
    encoder_hash_byte_group_size=(3, 5),
    encoder_hash_byte_group_nb_functions=2,
    cross_attn_window_decoder=2,
    local_attention_window_len=20,
    rope_theta=1000.0,
    hash_across_documents=True,
    cross_attn_across_documents=True,
    last_reads_last_patch=True,
)
ARGS = {
    "dim_global": 32,
    "n_layers_global": 2,
    "n_heads_global": 2,
    "n_kv_heads_global": 1,
    "dim_local_encoder": 16,
    "n_layers_local_encoder": 1,
    "n_heads_local_encoder": 2,
    "dim_local_decoder": 16,
    "n_layers_local_decoder": 2,
    "n_heads_local_decoder": 2,
    "cross_attn_k": 2,
    "cross_attn_nheads": 2,
    "cross_attn_all_layers_encoder": False,
    "cross_attn_all_layers_decoder": True,
    "cross_attn_init_by_pooling": True,
    "cross_attn_window_encoder": None,
    "cross_attn_window_decoder": 2,
    "encoder_hash_byte_group_size": [3, 5],
    "encoder_hash_byte_group_vocab": 61,
    "encoder_hash_byte_group_nb_functions": 2,
    "local_attention_window_len": 20,
    "rope_theta": 1000.0,
    "norm_eps": 1e-5,
    "multiple_of": 32,
    "ffn_dim_multiplier": 1.1,
    "max_encoder_seq_length": 512,
    "vocab_size": 260,
}
"""Feed-forward widths: int(1.1 int(8/3 of 16)) = 46, of 32: 93; both up to a multiple of 32."""

TOKENS = rows_of([random_tokens(random.Random(0), 60), random_tokens(random.Random(1), 41)], -1)
LENGTHS = rows_of([random_lengths(random.Random(2), 61), random_lengths(random.Random(3), 42)], 0)

Weights = dict[str, Tensor]
Write = Callable[[Path, dict[str, Any], Weights], None]


@pytest.fixture(scope="module")
def blt() -> BLT:
    return sharp_blt(SHAPE)


@torch.no_grad()
def logits(model: BLT) -> Tensor:
    return model(TOKENS, LENGTHS)[TOKENS != -1]


def consolidated(directory: Path, args: dict[str, Any], weights: Weights) -> None:
    params = {"model": args, "entropy_model": {"unrelated": 1}, "seed": 7}
    (directory / "params.json").write_text(json.dumps(params))
    torch.save({"model": weights, "step": 3}, directory / "consolidated.pth")


def hub_layout(directory: Path, args: dict[str, Any], weights: Weights) -> None:
    (directory / "config.json").write_text(json.dumps({"args": args}))
    save_file(weights, directory / "model.safetensors")


def own(directory: Path, args: dict[str, Any], weights: Weights) -> None:
    save_blt(BLT(SHAPE), directory)
    save_file(weights, directory / "model.safetensors")


LAYOUTS = [own, consolidated, hub_layout]


@pytest.mark.parametrize("write", LAYOUTS)
def test_layouts(blt, tmp_path, write: Write):
    write(tmp_path, ARGS, blt.state_dict())
    loaded = load_blt(tmp_path, device="cpu")
    assert loaded.config == SHAPE
    assert torch.equal(logits(loaded), logits(blt))
    assert not loaded.training
    assert load_blt(tmp_path, dtype=torch.bfloat16).local_decoder.output.weight.dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize("layout", ["own", "published", "transformers"])
def test_weights_as_other_programs_keep_them_are_written(tmp_path, layout):
    """Both tables are one, the hash tables are slices of one, as in files of pickles. Slices that
    do not overlap are not copied."""
    blt = sharp_blt(replace(SHAPE, cross_attn_window_decoder=1, patcher=None))
    stored = blt.state_dict()
    tables = [name for name in stored if name.startswith("encoder_hash_tok_embedding")]
    whole = torch.cat([stored[name] for name in tables])
    stored |= zip(tables, whole.split(len(stored[tables[0]])), strict=True)
    stored["local_decoder.output.weight"] = stored["local_encoder.tok_embeddings.weight"]
    blt.load_state_dict(stored, assign=True)
    apart = _apart(blt.state_dict())
    assert all(apart[name].data_ptr() == stored[name].data_ptr() for name in tables)
    save_blt(blt, tmp_path, layout=layout)
    read = load_blt(tmp_path, device="cpu", dtype="stored").state_dict()
    assert all(torch.equal(read[name], weight) for name, weight in stored.items())


def test_own_layout_keeps_everything(tmp_path):
    rules = Patcher(1.5, "combined", 0.2, max_patch_length=9, published=True), None
    for patcher in rules:
        config = replace(
            SHAPE,
            n_layers_local_encoder=2,
            cross_attn_all_layers_encoder=True,
            projects_equal_widths=False,
            patcher=patcher,
        )
        model = sharp_blt(config)
        save_blt(model, tmp_path / "new" / "directory")
        loaded = load_blt(tmp_path / "new" / "directory", device="cpu")
        assert loaded.config == config
        assert torch.equal(logits(loaded), logits(model))


def test_published_arguments_that_may_be_ignored(blt, tmp_path):
    harmless = dict.fromkeys(IGNORED_ARGS, 3) | {
        name: values[0] for name, values in FIXED_ARGS.items()
    }
    harmless |= {"n_kv_heads": 2, "encoder_hash_byte_group_size": "3,5", "monotonicity": True}
    off = {"weight_tying": False, "dropout": 0.0, "cross_attn_something": None, "moe_experts": 0}
    extra = {"local_encoder.rope.freqs_cis": torch.ones(8, 2)}
    hub_layout(tmp_path, {**ARGS, **harmless, **off}, {**blt.state_dict(), **extra})
    assert torch.equal(logits(load_blt(tmp_path, device="cpu")), logits(blt))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *(({name: "other"}, f"argument {name}='other' is not supported") for name in FIXED_ARGS),
        ({"dim_local_decoder": 32}, "dim_local_decoder=32 is not supported: the encoder is 16"),
        ({"weight_tying": True}, "argument weight_tying=True is not supported"),
        ({"encoder_enable_byte_ngrams": True}, "encoder_enable_byte_ngrams=True is not supported"),
        ({"n_heads_global": 3}, "n_heads_global: 3 heads do not divide 32 features"),
        ({"encoder_hash_byte_group_size": [0]}, "encoder_hash_byte_group_size"),
        (
            {"cross_attn_encoder": False, "downsampling_by_pooling": None},
            "cross_attn_encoder=False is not supported with downsampling_by_pooling=None",
        ),
        ({"n_kv_heads": 1}, "argument n_kv_heads=1 is not supported"),
        (
            {"encoder_hash_byte_group_nb_functions": 12},
            "encoder_hash_byte_group_nb_functions: at most 11",
        ),
        ({"dim_global": "32"}, "is no number"),
        ({"multiple_of": 0}, "multiple_of: must be 1 or more, got 0"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier: inf is no number"),
        ({"monotonicity": "false"}, "argument monotonicity='false' is neither true nor false"),
        (
            {"cross_attn_all_layers_decoder": "false"},
            "cross_attn_all_layers_decoder: 'false' is neither true nor false",
        ),
        ({"eos_id": 7}, "argument eos_id=7 is not supported"),
        *(({name: None}, f"argument {name} is missing") for name in UNSEEN),
    ],
)
def test_published_arguments_that_are_refused(blt, tmp_path, more, message):
    hub_layout(tmp_path, {**ARGS, **more}, blt.state_dict())
    with pytest.raises(CheckpointError, match=message):
        load_blt(tmp_path)


ENTROPY = {"patching_mode": "entropy", "threshold": 1.25, "monotonicity": False}
RULES = [
    (ENTROPY, Patcher(1.25)),
    ({**ENTROPY, "max_patch_length": 12}, Patcher(1.25, max_patch_length=12)),
    (
        {**ENTROPY, "monotonicity": True, "threshold_add": 0.5},
        Patcher(1.25, "monotonic", published=True),
    ),
    (
        {**ENTROPY, "threshold_add": 0.5, "max_patch_length": 12},
        Patcher(1.25, "combined", 0.5, max_patch_length=12, published=True),
    ),
    ({"patching_mode": "space", "threshold": 1.25}, Patcher(rule="space")),
    ({"patching_mode": "byte", "patch_size": 4.5}, Patcher(rule="byte")),
    (
        {"patching_mode": "static", "patch_size": 4},
        Patcher(rule="static", patch_size=4),
    ),
    ({"patching_mode": "entropy", "threshold": None}, None),
    ({"patching_mode": "static"}, None),
    ({"patching_mode": "something new"}, None),
]


@pytest.mark.parametrize(("patching", "patcher"), RULES, ids=str)
def test_boundary_rule(blt, tmp_path, patching, patcher):
    other = {"patching_mode": "entropy", "patching_threshold": 9.0}
    hub_layout(tmp_path, {**ARGS, **other}, blt.state_dict())
    train = {"data": {"patcher_args": {**patching, "realtime_patching": False}}, "steps": 9}
    (tmp_path / "train_args.json").write_text(json.dumps(train))
    assert load_blt(tmp_path).config == replace(SHAPE, patcher=patcher)


@pytest.mark.parametrize("stated", [{}, {"hash_across_documents": True}])
def test_published_layouts_of_earlier_releases_are_read_as_they_were(blt, tmp_path, stated):
    """Earlier releases wrote no longest row, without which the published code builds no model, and
    an argument that it does not know."""
    args = {k: v for k, v in ARGS.items() if k != "max_encoder_seq_length"} | stated
    hub_layout(tmp_path, args, blt.state_dict())
    plain = {"cross_attn_across_documents": False, "last_reads_last_patch": False}
    reading = {"hash_across_documents": bool(stated)} | plain
    assert load_blt(tmp_path, device="cpu").config == replace(SHAPE, **reading)
    narrow = {**args, "dim_global": 16, "cross_attn_k": 1}
    assert from_published_args(narrow, {}).projects_equal_widths
    assert not from_published_args(narrow | {"max_encoder_seq_length": 9}, {}).projects_equal_widths


def test_arguments_without_a_value_are_those_of_every_published_model(blt, tmp_path):
    unset = {"rope_theta": None, "norm_eps": None, "cross_attn_window_decoder": None}
    hub_layout(tmp_path, {**ARGS, **unset}, blt.state_dict())
    config = load_blt(tmp_path).config
    assert (config.rope_theta, config.norm_eps) == (500_000.0, 1e-5)


@pytest.mark.parametrize("place", ["blt/entropy_model", "entropy_model", "blt-entropy"])
def test_entropy_model_below_or_beside(blt, small_model, tmp_path, monkeypatch, place):
    save_blt(blt, tmp_path / "blt")
    with pytest.raises(CheckpointError, match="holds no entropy model, and there is none beside"):
        load_entropy_model_of(tmp_path / "blt")
    save_entropy_model(small_model, tmp_path / place)
    monkeypatch.chdir(tmp_path / "blt")
    for source in (tmp_path / "blt", f"{tmp_path}/blt/", "."):
        found = load_entropy_model_of(source, device="cpu")
        assert fingerprint(found) == fingerprint(small_model)


def test_boundary_rule_of_the_models_own_arguments(blt, tmp_path):
    rule = {"patching_mode": "entropy", "patching_threshold": 1.5, "patching_threshold_add": 0.25}
    args = {**ARGS, **rule, "max_patch_length": 8}
    expected = Patcher(1.5, "combined", 0.25, max_patch_length=8, published=True)
    consolidated(tmp_path, args, blt.state_dict())
    assert load_blt(tmp_path).config.patcher == expected
    (tmp_path / "params.json").unlink()
    hub_layout(tmp_path, args, blt.state_dict())
    assert load_blt(tmp_path).config.patcher == expected
    (tmp_path / "train_args.json").write_text(json.dumps({"data": {"patcher_args": None}}))
    assert load_blt(tmp_path).config.patcher == expected


@pytest.mark.parametrize("write", LAYOUTS)
def test_weights_that_do_not_fit(blt, tmp_path, write: Write):
    name, good = "global_transformer.layers.1.attention.wq.weight", blt.state_dict()
    table = "encoder_hash_tok_embedding.3.weight"
    for weights, message in (
        ({k: w for k, w in good.items() if k != name}, f"lacks weights: {name}$"),
        ({k: w for k, w in good.items() if "decoder" not in k}, "lacks weights: .* and 28 more"),
        ({**good, "x.y": torch.ones(1)}, r"unknown weights: x\.y"),
        ({**good, table: torch.ones(60, 16)}, rf"{table} has shape \(60, 16\).*\(61, 16\)"),
        ({**good, name: good[name].int()}, f"{name} has dtype torch.int32"),
    ):
        for path in tmp_path.iterdir():
            path.unlink()
        write(tmp_path, ARGS, weights)
        with pytest.raises(CheckpointError, match=message):
            load_blt(tmp_path)


def test_code_in_a_pickle_is_not_run(blt, tmp_path):
    target = tmp_path / "owned"
    consolidated(tmp_path, ARGS, {})
    torch.save({"model": blt.state_dict(), "x": Malicious(target)}, tmp_path / "consolidated.pth")
    with pytest.raises(CheckpointError, match=r"cannot read the BLT.*never run"):
        load_blt(tmp_path)
    assert not target.exists()


def test_files_that_cannot_be_read(blt, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_blt(tmp_path)

    refused("no BLT in a known layout")
    (tmp_path / "step-3").mkdir()
    for path, message in (("step-3/.metadata", "holds steps"), (".metadata", "is a step")):
        (tmp_path / path).touch()
        refused(f"{message} of a training; python jobs/convert_checkpoint.py")
    # A directory may hold weights beside those of the trainer.
    consolidated(tmp_path, ARGS, blt.state_dict())
    load_blt(tmp_path)
    for path in ("step-3/.metadata", ".metadata"):
        (tmp_path / path).unlink()
    (tmp_path / "params.json").write_text(json.dumps({"entropy_model": ARGS}))
    refused("no BLT in a known layout")
    consolidated(tmp_path, ARGS, blt.state_dict())
    pth = tmp_path / "consolidated.pth"
    whole = pth.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:100], b"", b"no pickle"):
        pth.write_bytes(broken)
        refused("consolidated.pth: is no whole file of torch.save; copy or download it again")
    torch.save({"weights": {}}, pth)
    refused("consolidated.pth: has no weights by their names")
    pth.unlink()
    refused("consolidated.pth")
    (tmp_path / "params.json").unlink()

    save_blt(blt, tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, good = weights.read_bytes(), json.loads(config.read_text())
    for kept in (len(whole) - 1, 1000, 4, 0):
        weights.write_bytes(whole[:kept])
        refused("model.safetensors: is no whole safetensors file")
    weights.unlink()
    refused("no .safetensors file$")
    (tmp_path / "pytorch_model.bin").touch()
    refused("no .safetensors file; pytorch_model.bin is a pickle: save the model anew")
    weights.write_bytes(whole)
    config.write_text(json.dumps({**good, "experts": 8}))
    refused("unknown argument 'experts'")
    for wrong in ({"encoder_hash_byte_group_size": 3}, {"hidden_dim_global": "256"}):
        config.write_text(json.dumps({**good, **wrong}))
        refused(f"{next(iter(wrong))}: .* is no (list|whole number)")
    for rule in ({}, [], "global"):
        config.write_text(json.dumps({**good, "patcher": rule}))
        refused("patcher|threshold")
    config.write_text(json.dumps({k: v for k, v in good.items() if k != "norm_eps"}))
    refused("config.json: lacks norm_eps; restore it from a copy")
    config.write_text(json.dumps({"args": {**ARGS, "dim_local_encoder": None}}))
    refused("dim_local")
    for text in ("{", "[]", json.dumps({"args": {}})):
        config.write_text(text)
        refused(str(tmp_path))
    for content in (b"", b"{", b"\xef\xbb\xbf{}", b"\xff\xfe{}"):
        config.write_bytes(content)
        refused("config.json: is no JSON")
    for wrong in ({"rope_theta": "500000"}, {"n_layers_global": True}, {"dim_local": "16"}):
        config.write_text(json.dumps({**good, **wrong}))
        refused(f"{next(iter(wrong))}: .* is no (whole )?number")
    config.write_text(json.dumps({**good, "format": "blt-titan/blt/2"}))
    refused("format 'blt-titan/blt/2' is not that of a BLT .* or of a later release")


def test_two_sets_of_weights_are_told(blt, tmp_path):
    save_blt(blt, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    first = min(weights)
    save_file({first: weights[first]}, tmp_path / "model-2.safetensors")
    message = f"weight {first}: is in model-2.safetensors and in model.safetensors; remove"
    with pytest.raises(CheckpointError, match=message):
        load_blt(tmp_path)
    index = {"weight_map": dict.fromkeys(weights, "model-2.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model.safetensors: lies beside .*two sets of wei"):
        load_blt(tmp_path)
    index = {"weight_map": dict.fromkeys(weights, "model.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    load_blt(tmp_path)


@pytest.mark.parametrize("layout", ["own", "published"])
def test_weights_may_be_read_by_whoever_reads_the_rest(blt, layout, tmp_path):
    umask = os.umask(0o027)
    try:
        save_blt(blt, tmp_path / "out", layout=layout)
    finally:
        os.umask(umask)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {0o640}


def test_urls(blt, tmp_path):
    save_blt(blt, tmp_path / "saved")
    fsspec.filesystem("memory").put(str(tmp_path / "saved"), "/bucket/blt", recursive=True)
    for url in ("memory://bucket/blt", f"file://{tmp_path}/saved"):
        assert torch.equal(logits(load_blt(url, device="cpu")), logits(blt))
    for missing in ("memory://bucket/no", "nosuchprotocol://x/y", str(tmp_path / "no"), "./a/b"):
        with pytest.raises(CheckpointError, match=missing.partition(":")[0]):
            load_blt(missing)


def test_strangers_beside_a_temporary_copy_are_not_read(blt, small_model, tmp_path, monkeypatch):
    """Everybody may write an entropy_model into the directory of temporary files."""
    save_blt(blt, tmp_path / "saved")
    save_entropy_model(small_model, tmp_path / "temporary" / "entropy_model")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(CheckpointError, match="holds no entropy model, and there is none beside"):
        load_entropy_model_of(f"file://{tmp_path}/saved")


def test_hub(blt, tmp_path):
    def write(directory: Path) -> None:
        hub_layout(directory, ARGS, blt.state_dict())
        train = {"data": {"patcher_args": {"patching_mode": "entropy", "threshold": 1.25}}}
        (directory / "train_args.json").write_text(json.dumps(train))

    names = [
        "someone/model",
        "hf://someone/model",
        "gated/listed",
        "gated/closed",
        "no/such",
        "drops/it",
    ]
    summary = "(lambda m: [m.config.patcher.threshold, m.local_decoder.output.weight.sum().item()])"
    with loopback_hub.serve() as hub:
        hub.publish_models(tmp_path / "files", write)
        loaded, again, *refusals = loopback_hub.load_from_hub(
            hub,
            tmp_path / "home",
            names,
            "from model import load_blt",
            f"{summary}(load_blt(source, device='cpu'))",
        )
    assert loaded == again == [1.25, pytest.approx(blt.local_decoder.output.weight.sum().item())]
    for name, message in zip(names[2:4], refusals[:2], strict=True):
        assert message.startswith(f"{name} is gated: accept its licence")
    assert refusals[2].startswith("no/such: no such directory, and no such model on the hub")
    assert refusals[3].startswith("drops/it: cannot be downloaded from the hub")
    assert not hub.asked("photo")


@pytest.mark.parametrize("layout", ["own", "published", "transformers"])
def test_the_record_of_patches_is_kept(small_model, layout, tmp_path):
    identity = EntropyModelIdentity("small", fingerprint(small_model), "cuda bfloat16", True)
    record = (
        PatchProvenance(Patcher(1.5, max_patch_length=8), identity, ("a", "b")),
        PatchProvenance(Patcher(rule="space"), None, ("c",)),
    )
    model = BLT(replace(CONFIG, patcher=None, patch_provenance=record))
    save_blt(model, tmp_path, layout=layout, entropy_model=small_model)
    loaded = load_blt(tmp_path, device="cpu")
    assert loaded.config.patch_provenance == record and loaded.config.patcher is None
    # The weights of another layout are the same entropy model.
    assert fingerprint(load_entropy_model_of(tmp_path, device="cpu")) == identity.fingerprint
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for damage, message in (
        ("all", "patch_provenance: 'all' is no list"),
        ([{}], "patch_provenance: {} has no boundary rule"),
        ([{"patcher": {"rule": "byte"}, "sets": [3]}], "patch_provenance: sets: "),
    ):
        path.write_text(json.dumps(config | {"patch_provenance": damage}))
        with pytest.raises(CheckpointError, match=f"{tmp_path}: {message}") as raised:
            load_blt(tmp_path, device="cpu")
        assert "\n" not in str(raised.value)
    del config["patch_provenance"]  # as earlier releases wrote it
    path.write_text(json.dumps(config))
    assert load_blt(tmp_path, device="cpu").config.patch_provenance == ()
