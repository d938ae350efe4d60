"""``model.json``: what it says is what was trained, and steps of two models don't mix."""

import json
from dataclasses import replace
from typing import Any

import fsspec
import pytest

from model import BLT, BLT_SIZES, EntropyModelConfig, Patcher, load_blt, save_blt
from model.checkpoints.files import CheckpointError
from model.initialisation import INITIALISATION
from model.provenance import EntropyModelIdentity, PatchProvenance
from train.checkpoints.kinds import Shape
from train.checkpoints.model_json import (
    complete_safetensors,
    config_json,
    model_description,
    read_model_description,
    steps_in,
    write_model_description,
)

BLT_SHAPE = replace(BLT_SIZES["debug"], patcher=Patcher(1.5, "combined", 0.5, published=True))
MODEL = EntropyModelIdentity("small", "a" * 64, "cpu float32", False)
ONE = PatchProvenance(Patcher(1.5), MODEL, ("one",))
OTHER = PatchProvenance(Patcher(1.5), replace(MODEL, fingerprint="b" * 64), ("other",))
RECORDED = replace(BLT_SHAPE, patcher=None, patch_provenance=(ONE, OTHER))
SHAPES = [
    RECORDED,
    BLT_SHAPE,
    replace(BLT_SHAPE, patcher=None),
    EntropyModelConfig(dim=30, n_heads=3),
]


def describe(folder: str, shape: Shape, **given: Any) -> None:
    """Do what a run does that begins to train."""
    write_model_description(folder, model_description(folder, shape, **given))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
def test_there_and_back(shape, remote, tmp_path):
    folder = f"memory://{tmp_path.name}/checkpoint" if remote else str(tmp_path / "a" / "b: c")
    describe(folder, shape)
    for step in (f"{folder}/step-10", f"{folder}/step-10/", folder):
        assert read_model_description(step) == shape
    filesystem, path = fsspec.core.url_to_fs(folder)
    assert [name.rsplit("/")[-1] for name in filesystem.ls(path, detail=False)] == ["model.json"]
    with pytest.raises(CheckpointError, match=r"no model\.json, in it or in the directory above"):
        read_model_description(f"{folder}/deeper/step-10")


def test_steps_of_another_model_are_not_added(tmp_path):
    folder = str(tmp_path / "checkpoint")
    describe(folder, BLT_SHAPE)
    other = replace(BLT_SHAPE, rope_theta=7.0)
    describe(folder, other)  # nothing was saved so far
    (tmp_path / "checkpoint" / "step-3").mkdir()
    with pytest.raises(CheckpointError, match=r"rope_theta is 7\.0 there and 500000\.0 here"):
        describe(folder, BLT_SHAPE)
    with pytest.raises(CheckpointError, match="it is a BLT there and an entropy model here"):
        describe(folder, EntropyModelConfig())
    changed = replace(other, patcher=Patcher(2.0))
    describe(folder, changed)
    assert read_model_description(f"{folder}/step-3") == changed


def test_patches_of_all_runs_are_recorded(tmp_path):
    folder = tmp_path / "checkpoint"
    one = replace(BLT_SHAPE, patcher=ONE.patcher, patch_provenance=(ONE,))
    other = replace(one, patch_provenance=(OTHER,))
    describe(str(folder), other)
    describe(str(folder), one)  # nothing was saved so far
    assert read_model_description(str(folder)) == one
    (folder / "step-3").mkdir()
    message = f"{folder}: was trained on other patches: the entropy model of the weights is small "
    message += r"\(fingerprint aaaaaaaaaaaa\), that of the shards is small \(fingerprint bbbbb.*; "
    message += r"train on .* \(--dataloader.allow-mixed-patches\)"
    with pytest.raises(CheckpointError, match=message):
        describe(str(folder), other)
    rule = replace(one, patch_provenance=(replace(ONE, patcher=Patcher(2.0)),))
    with pytest.raises(CheckpointError, match=r"rule of the weights is global \(threshold 1\.5\)"):
        describe(str(folder), rule)
    assert read_model_description(str(folder)) == one
    # Further sets of the same patches, and other patches where that is allowed, are added.
    more = replace(ONE, sets=("more",))
    describe(str(folder), replace(one, patch_provenance=(more,)))
    describe(str(folder), other, allow_mixed_patches=True)
    kept = read_model_description(str(folder)).patch_provenance
    assert kept == (OTHER, replace(ONE, sets=("more", "one")))
    describe(str(folder), one)
    assert set(read_model_description(str(folder)).patch_provenance) == {
        OTHER,
        replace(ONE, sets=("one", "more")),
    }


def test_steps_of_an_earlier_release_have_no_record(tmp_path, caplog):
    folder = tmp_path / "checkpoint"
    (folder / "step-3").mkdir(parents=True)
    describe(str(folder), replace(BLT_SHAPE, patcher=ONE.patcher))
    assert "patch_provenance" not in (folder / "model.json").read_text()
    now = replace(BLT_SHAPE, patcher=ONE.patcher, patch_provenance=(ONE,))
    with pytest.raises(CheckpointError, match="the rule of the weights is global"):
        other = replace(ONE, patcher=Patcher(2.0))
        describe(str(folder), replace(now, patch_provenance=(other,)))
    describe(str(folder), now)
    record = read_model_description(str(folder)).patch_provenance
    assert record == (ONE, PatchProvenance(ONE.patcher))
    # Those that do not name a rule either are trained on, with a warning.
    (tmp_path / "older" / "step-3").mkdir(parents=True)
    describe(str(tmp_path / "older"), replace(BLT_SHAPE, patcher=None))
    describe(str(tmp_path / "older"), now)
    assert read_model_description(str(tmp_path / "older")).patch_provenance == (ONE,)
    assert f"{tmp_path}/older: does not say which patches it was trained on" in caplog.text


def test_initial_weights_of_other_patches(tmp_path):
    now = replace(BLT_SHAPE, patcher=OTHER.patcher, patch_provenance=(OTHER,))
    before = replace(BLT_SHAPE, patcher=ONE.patcher, patch_provenance=(ONE,))
    save_blt(BLT(before), tmp_path / "weights", layout="own")
    describe(str(tmp_path / "run"), before)
    (tmp_path / "run" / "step-9").mkdir()
    for initial in (tmp_path / "weights", tmp_path / "run" / "step-9"):
        folder = str(tmp_path / f"of-{initial.name}")
        with pytest.raises(CheckpointError, match=f"{initial}: was trained on other patches"):
            describe(folder, now, initial=str(initial))
        describe(folder, now, initial=str(initial), allow_mixed_patches=True)
        assert read_model_description(folder).patch_provenance == (OTHER, ONE)
    # Loading says what is wrong with a directory; and steps count more than initial weights.
    describe(str(tmp_path / "new"), now, initial=str(tmp_path / "none"))
    (tmp_path / "new" / "step-1").mkdir()
    describe(str(tmp_path / "new"), now, initial=str(tmp_path / "weights"))
    assert read_model_description(str(tmp_path / "new")) == now


@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda shape: type(shape).__name__)
def test_initialisation_is_no_part_of_a_trained_model(shape, tmp_path):
    """Descriptions that earlier releases wrote lack it, and steps go on whatever it is."""
    earlier = {k: v for k, v in config_json(shape).items() if k not in INITIALISATION}
    (tmp_path / "model.json").write_text(json.dumps(earlier))
    (tmp_path / "step-3").mkdir()
    assert read_model_description(str(tmp_path / "step-3")) == shape
    other = replace(shape, init_std_factor="global_depth", init_base_std=0.02)
    describe(str(tmp_path), other)
    assert read_model_description(str(tmp_path)) == other
    damaged = {**config_json(other), "init_base_std": "0.02"}
    (tmp_path / "model.json").write_text(json.dumps(damaged))
    with pytest.raises(CheckpointError, match=r"init_base_std: '0\.02' is not of the right type"):
        read_model_description(str(tmp_path))


def test_steps_in(tmp_path):
    for name in ("step-9", "step-10", "step-11", "step-x", "step-", "step-8", "model.json"):
        (tmp_path / name).mkdir()
    assert steps_in(f"{tmp_path}/") == [f"{tmp_path}/step-{n}" for n in (11, 10, 9, 8)]
    assert steps_in(f"{tmp_path}/none") == []


def test_safetensors_are_completed(tmp_path):
    step, model = tmp_path / "checkpoint" / "step-4", BLT(BLT_SHAPE)
    save_blt(model, step)
    written = (step / "config.json").read_bytes()
    (step / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.json"):
        complete_safetensors(str(step))
    describe(str(step.parent), BLT_SHAPE)
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
    recorded = config_json(RECORDED)
    first, *others = recorded["patch_provenance"]
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
        (json.dumps({**recorded, "patch_provenance": 3}), f"{file}: patch_provenance: 3 is not of"),
        (json.dumps({**recorded, "patch_provenance": [{}]}), f"{file}: lacks patcher, entropy_mod"),
        (
            json.dumps({**recorded, "patch_provenance": [first | {"sets": [3]}, *others]}),
            rf"{file}: sets: \[3\] is not of the right type",
        ),
        (
            json.dumps({**blt, "patcher": {**blt["patcher"], "rule": "none"}}),
            "rule: 'none' is not one of",
        ),
    ):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=message) as raised:
            read_model_description(str(tmp_path / "step-1"))
        assert str(file) in str(raised.value) and "\n" not in str(raised.value)
