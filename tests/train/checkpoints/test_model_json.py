"""``model.json``: what it says is what was trained, and steps of two models don't mix."""

import json
from dataclasses import replace

import fsspec
import pytest

from model import BLT, BLT_SIZES, EntropyModelConfig, Patcher, load_blt, save_blt
from model.checkpoints.files import CheckpointError
from train.checkpoints.model_json import (
    complete_safetensors,
    config_json,
    read_model_description,
    steps_in,
    write_model_description,
)

BLT_SHAPE = replace(BLT_SIZES["debug"], patcher=Patcher(1.5, "combined", 0.5, published=True))
SHAPES = [BLT_SHAPE, replace(BLT_SHAPE, patcher=None), EntropyModelConfig(dim=30, n_heads=3)]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_there_and_back(shape, remote, tmp_path):
    folder = f"memory://{tmp_path.name}/checkpoint" if remote else str(tmp_path / "a" / "b: c")
    write_model_description(folder, shape)
    for step in (f"{folder}/step-10", f"{folder}/step-10/", folder):
        assert read_model_description(step) == shape
    filesystem, path = fsspec.core.url_to_fs(folder)
    assert [name.rsplit("/")[-1] for name in filesystem.ls(path, detail=False)] == ["model.json"]
    with pytest.raises(CheckpointError, match=r"no model\.json, in it or in the directory above"):
        read_model_description(f"{folder}/deeper/step-10")


def test_steps_of_another_model_are_not_added(tmp_path):
    folder = str(tmp_path / "checkpoint")
    write_model_description(folder, BLT_SHAPE)
    other = replace(BLT_SHAPE, rope_theta=7.0)
    write_model_description(folder, other)  # nothing was saved so far
    (tmp_path / "checkpoint" / "step-3").mkdir()
    with pytest.raises(CheckpointError, match=r"rope_theta is 7\.0 there and 500000\.0 here"):
        write_model_description(folder, BLT_SHAPE)
    with pytest.raises(CheckpointError, match="it is a BLT there and an entropy model here"):
        write_model_description(folder, EntropyModelConfig())
    changed = replace(other, patcher=Patcher(2.0))
    write_model_description(folder, changed)
    assert read_model_description(f"{folder}/step-3") == changed


def test_steps_in(tmp_path):
    for name in ("step-9", "step-10", "step-x", "step-", "other", "model.json"):
        (tmp_path / name).mkdir()
    assert steps_in(f"{tmp_path}/") == [f"{tmp_path}/step-10", f"{tmp_path}/step-9"]
    assert steps_in(f"{tmp_path}/none") == []


def test_safetensors_are_completed(tmp_path):
    step, model = tmp_path / "checkpoint" / "step-4", BLT(BLT_SHAPE)
    save_blt(model, step)
    written = (step / "config.json").read_bytes()
    (step / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        complete_safetensors(str(step))
    write_model_description(str(step.parent), BLT_SHAPE)
    complete_safetensors(str(step))
    assert (step / "config.json").read_bytes() == written
    assert load_blt(step).config == BLT_SHAPE


def test_a_description_of_before_an_ablation_could_be_said(tmp_path):
    """Every BLT had cross attention then."""
    config = config_json(BLT_SHAPE)
    del config["cross_attn_encoder"], config["cross_attn_decoder"]
    (tmp_path / "model.json").write_text(json.dumps(config))
    assert read_model_description(str(tmp_path / "step-1")) == BLT_SHAPE
    wrong = {**config, "cross_attn_encoder": 1}
    (tmp_path / "model.json").write_text(json.dumps(wrong))
    with pytest.raises(CheckpointError, match="cross_attn_encoder: 1 is not of the right type"):
        read_model_description(str(tmp_path / "step-1"))


def test_a_damaged_description_is_named_in_one_sentence(tmp_path):
    file = tmp_path / "model.json"
    blt, entropy = config_json(BLT_SHAPE), config_json(EntropyModelConfig())
    without_width = {name: value for name, value in blt.items() if name != "dim_global"}
    for content, message in (
        ("[]", f"{file}: not a JSON object"),
        ("{}", f"{file}: format: None is not known"),
        ("{", f"cannot read the model description in {file}"),
        (json.dumps({"format": entropy["format"]}), f"{file}: lacks dim, n_layers, "),
        (json.dumps(without_width), f"{file}: lacks dim_global; restore it"),
        (json.dumps({**blt, "n_heads_global": 7}), "n_heads_global: 7 heads do not divide 128"),
        (json.dumps({**blt, "n_layers_global": "2"}), f"{file}: n_layers_global: '2' is not of"),
        (json.dumps({**blt, "dim_local": float("inf")}), f"{file}: dim_local: inf is not of"),
        (json.dumps({**entropy, "n_layers": True}), f"{file}: n_layers: True is not of"),
        (json.dumps({**blt, "patcher": {}}), f"{file}: lacks threshold, rule, "),
        (json.dumps({**blt, "patcher": []}), rf"{file}: patcher: \[\] is not of"),
        (
            json.dumps({**blt, "patcher": {**blt["patcher"], "rule": "none"}}),
            "rule: 'none' is not one of",
        ),
    ):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=message) as raised:
            read_model_description(str(tmp_path / "step-1"))
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)
