"""Training on from weights of any layout, sharded or not, and saving such weights."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from support import titan
from support.titan import LAYOUTS, SHAPES, TOKENS, manager, output, trained, write
from torch.distributed.fsdp import fully_shard
from transformers.models.blt.modeling_blt import BltForCausalLM, BltPatcher

from model import load_blt, load_entropy_model, save_blt, save_entropy_model
from model.blt_config import ROW_READING
from model.checkpoints.files import CheckpointError
from train.checkpoints.model_json import write_model_description
from train.checkpoints.state_dict_adapter import WeightsAdapter, read_weights
from train.checkpoints.steps import read_step


def loaded(directory: Path) -> titan.Model:
    """By the loaders of :mod:`model`."""
    text = (directory / "config.json").read_text()
    return (load_entropy_model if "entropy-model" in text else load_blt)(directory, device="cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SHAPES)
def test_training_begins_with_the_weights(kind, layout, tmp_path):
    model = trained(kind)
    write(model, tmp_path / "weights", layout)
    begun = titan.load(tmp_path / "weights", SHAPES[kind], tmp_path)
    assert torch.equal(output(begun), output(model))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in begun.parameters())


@torch.no_grad()
def test_training_begins_with_what_transformers_computes(tmp_path):
    blt, entropy_model = trained("blt"), trained("entropy")
    save_blt(blt, tmp_path / "both", layout="transformers", entropy_model=entropy_model)
    theirs = BltForCausalLM.from_pretrained(tmp_path / "both").eval()
    # Saved again by transformers itself, in many files.
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    begun = titan.load(tmp_path / "theirs", SHAPES["blt"], tmp_path)
    expected = theirs(TOKENS, patch_lengths=titan.LENGTHS, use_cache=False).logits
    torch.testing.assert_close(output(begun), expected, rtol=0, atol=2e-4)
    for directory in ("both", "theirs"):
        begun = titan.load(tmp_path / directory, SHAPES["entropy"], tmp_path)
        assert torch.equal(output(begun), output(entropy_model))
    h, _, _ = theirs.model.patcher(TOKENS, use_cache=False)
    torch.testing.assert_close(begun.entropies(TOKENS), h, rtol=0, atol=2e-4)


def test_other_dtypes_become_the_models(tmp_path):
    model = trained("blt").to(torch.bfloat16)
    write(model, tmp_path / "weights", "transformers")
    begun = titan.load(tmp_path / "weights", SHAPES["blt"], tmp_path)
    assert torch.equal(output(begun), output(model.float()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_are_mapped_not_read(kind, layout, tmp_path):
    write(trained(kind), tmp_path / "weights", layout)
    weights = read_weights(tmp_path / "weights", SHAPES[kind])
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    mapped = [line[0].split("-") for line in lines if line[-1].startswith(str(tmp_path))]
    ranges = [range(int(start, 16), int(end, 16)) for start, end in mapped]
    assert weights and ranges
    assert all(any(w.data_ptr() in r for r in ranges) for w in weights.values())


def of_rank(rank: int, kind: str, outputs: Path) -> None:
    """Load all layouts into a sharded model, compare, and save what was loaded."""
    torch.set_num_threads(1)
    store = f"file://{outputs}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    shape, expected = SHAPES[kind], trained(kind)
    for layout in LAYOUTS:
        model = titan.fresh(shape).eval()
        latent = model.global_transformer.layers if kind == "blt" else model.layers
        for block in latent:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        source = {"initial_load_path": str(outputs / layout), "initial_load_in_hf": True}
        managing = manager(model, shape, outputs / "run", **source, last_save_in_hf=True)
        assert managing.load()
        for name, weight in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name].full_tensor(), weight), name
        if kind == "blt":
            torch.testing.assert_close(output(model), output(expected))
            model.reshard()
    assert any(len(p) % 2 for p in model.parameters()), "nothing was sharded unevenly"
    dcp.save(model.state_dict(), checkpoint_id=str(outputs / "checkpoint" / "step-7"))
    managing.save(8, last_step=True)
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.slow
def test_sharded(kind, tmp_path):
    model = trained(kind)
    for layout in LAYOUTS:
        write(model, tmp_path / layout, layout)
    for folder in (tmp_path / "checkpoint", tmp_path / "run" / "checkpoint"):
        write_model_description(str(folder), SHAPES[kind])
    torch.multiprocessing.spawn(of_rank, (kind, tmp_path), nprocs=2)
    safetensors = tmp_path / "run" / "checkpoint" / "step-8"
    for saved in (read_step(str(tmp_path / "checkpoint" / "step-7")), loaded(safetensors)):
        assert saved.config == SHAPES[kind]
        assert torch.equal(output(saved), output(model))


@pytest.mark.parametrize("kind", SHAPES)
def test_weights_of_the_last_step(kind, tmp_path):
    model = trained(kind)
    saving = {"last_save_in_hf": True, "export_dtype": "bfloat16"}
    folder = tmp_path / "checkpoint"
    write_model_description(str(folder), SHAPES[kind])
    assert manager(model, SHAPES[kind], tmp_path, **saving).save(3, last_step=True)
    assert torch.equal(output(loaded(folder / "step-3")), output(model.bfloat16().float()))
    begun = titan.load(folder / "step-3", SHAPES[kind], tmp_path / "next")
    assert torch.equal(output(begun), output(model))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("blt", {"rope_theta": 2000.0}, "rope_theta is 1000.0 there and 2000.0 here"),
        (
            "blt",
            {"norm_eps": 1e-6, "local_attention_window_len": None},
            "local_attention_window_len is 512 there and None here, norm_eps is 1e-05 there",
        ),
        ("blt", {"cross_attn_k": 1}, "cross_attn_k is 2 there and 1 here"),
        ("blt", {"n_heads_global": 1, "n_kv_heads_global": 1}, "n_heads_global is 2 there and 1"),
        (
            "blt",
            {"encoder_hash_byte_group_size": (5, 3)},
            "encoder_hash_byte_group_size is (3, 5) there and (5, 3) here",
        ),
        ("blt", {"cross_attn_window_decoder": 3}, "cross_attn_window_decoder is 1 there and 3"),
        ("entropy", {"n_heads": 5, "n_kv_heads": 5}, "n_heads is 3 there and 5 here"),
        ("entropy", {"window": 64}, "window is 512 there and 64 here"),
        ("entropy", {"rope_theta": 1e4}, "rope_theta is 500.0 there and 10000.0 here"),
    ],
)
def test_weights_of_another_model(kind, change, message, layout, tmp_path):
    write(trained(kind), tmp_path / "weights", layout)
    message = f"{tmp_path}/weights: is of another model than the one that is trained: {message}"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        titan.load(tmp_path / "weights", replace(SHAPES[kind], **change), tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_log_says_how_rows_are_read(layout, tmp_path, caplog):
    """The training's way counts, also where the weights were trained otherwise."""
    caplog.set_level(logging.INFO)
    published = replace(SHAPES["blt"], **dict.fromkeys(ROW_READING, True))
    write(trained("blt"), tmp_path / "weights", layout)
    # A consolidated directory has no place for our own way: it is read as published.
    there = layout == "consolidated"
    for shape, here in ((SHAPES["blt"], False), (published, True)):
        caplog.clear()
        begun = titan.load(tmp_path / "weights", shape, tmp_path)
        assert begun.config == shape
        said = [r for r in caplog.records if any(name in r.message for name in ROW_READING)]
        assert [r.levelname for r in said] == ["INFO" if here == there else "WARNING"] * 3
        for record, name in zip(said, ROW_READING, strict=True):
            assert f"{name} is {here}" in record.message
            flag = f"--shape.{name.replace('_', '-')} {there} goes on as before"
            assert (flag in record.message) == (here != there)


def test_other_kinds_of_models(ngram_model, tmp_path):
    for layout in LAYOUTS:
        write(trained("blt"), tmp_path / f"blt-{layout}", layout)
        write(trained("entropy"), tmp_path / f"entropy-{layout}", layout)
        for of, wanted in (("blt", "entropy"), ("entropy", "blt")):
            with pytest.raises(CheckpointError, match=f"{of}-{layout}"):
                titan.load(tmp_path / f"{of}-{layout}", SHAPES[wanted], tmp_path)
    save_entropy_model(ngram_model, tmp_path / "ngram")
    with pytest.raises(CheckpointError, match="ngram: is an n-gram model; give a transformer"):
        titan.load(tmp_path / "ngram", SHAPES["entropy"], tmp_path)
    adapter = WeightsAdapter(type("Config", (), {"shape": SHAPES["blt"]}), None)
    with pytest.raises(CheckpointError, match="in_hf_quantized: no layout"):
        adapter.get_hf_storage_reader(str(tmp_path / "blt-own"), from_quantized=True)


@pytest.mark.parametrize("layout", ["own", "transformers", "published"])
def test_damaged_files(layout, tmp_path):
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=f"{tmp_path}/weights.*{message}"):
            titan.load(tmp_path / "weights", SHAPES["blt"], tmp_path)

    write(trained("blt"), tmp_path / "weights", layout)
    path, config = tmp_path / "weights" / "model.safetensors", tmp_path / "weights" / "config.json"
    # Copies: what is mapped must not lose its file.
    whole, good = path.read_bytes(), {name: w.clone() for name, w in load_file(path).items()}
    for size in (len(whole) - 1, 1000, 0):
        path.write_bytes(whole[:size])
        refused("model.safetensors: is no whole safetensors file")
    name = next(name for name in good if "global_transformer.layers.1" in name)
    for weights, message in (
        ({n: w for n, w in good.items() if n != name}, "lacks weights: global_transformer.layers"),
        ({**good, "x.y": torch.ones(1)}, r"unknown weights: x\.y"),
        ({**good, name: good[name][:-1].contiguous()}, "has shape"),
        ({**good, name: good[name].int()}, "has dtype torch.int32"),
    ):
        save_file(weights, path)
        refused(message)
    path.write_bytes(whole)
    config_values = json.loads(config.read_text())
    config.write_text(
        json.dumps({**config_values, "format": "other", "model_type": "other", "args": {}})
    )
    refused("")
    config.unlink()
    refused("no BLT in a known layout")


def test_a_patcher_alone(tmp_path):
    write(trained("entropy"), tmp_path / "weights", "transformers")
    BltPatcher.from_pretrained(tmp_path / "weights").save_pretrained(tmp_path / "theirs")
    begun = titan.load(tmp_path / "theirs", SHAPES["entropy"], tmp_path)
    assert torch.equal(output(begun), output(trained("entropy")))
