"""Every value of a model's shape is a flag, and can come from a file."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shard_sets import real_texts, write_shards
from support.trainings import ROWS, tiny, train
from torchtitan.config import ConfigManager

from model import BLT, BLT_SIZES, BLTConfig, EntropyModelConfig, Patcher, generate
from model.checkpoints.blt import other_reading, own_config
from model.checkpoints.blt_published import AS_PUBLISHED, to_published_args
from model.checkpoints.blt_transformers import to_transformers_config
from model.checkpoints.entropy_layouts import to_published_args as entropy_model_args
from model.checkpoints.entropy_model import own_config as own_entropy_config
from model.training_flops import training_flops
from pipeline.errors import ConfigError
from train.checkpoints.model_json import read_model_description
from train.checkpoints.steps import read_step
from train.cluster.checks import absolute_paths, parse_config
from train.flags.field_docstrings import field_docstrings
from train.model_spec import ENTROPY_SIZES
from train.shape_flags import NOT_FLAGS

Shape = BLTConfig | EntropyModelConfig


def shape_of(config: str, flags: str = "", file: Path | None = None) -> Any:
    """The shape that a command line trains."""
    from_file = ["--shape.file", str(file)] if file else []
    arguments = ["--module", "train", "--config", config, *from_file, *flags.split()]
    return ConfigManager().parse_args(arguments).model_spec.model.shape


def test_flags_change_the_shape():
    flags = "--shape.dim-global 1024 --shape.encoder-hash-byte-group-size 3 4 5"
    assert shape_of("blt_1b", flags) == BLTConfig(
        dim_global=1024, encoder_hash_byte_group_size=(3, 4, 5)
    )
    # Nothing is left of another command line, or of the feed-forward width of the size.
    assert shape_of("blt_1b") == BLT_SIZES["1b"]
    assert shape_of("entropy_debug", "--shape.dim 128").hidden_dim == 512
    assert shape_of("entropy_debug", "--shape.n-heads 8").hidden_dim == 128
    given = shape_of("blt_debug", "--shape.dim-local 32 --shape.hidden-dim-local-decoder 48")
    assert (given.hidden_dim_local_encoder, given.hidden_dim_local_decoder) == (256, 48)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("local-attention-window-len none", None),
        ("encoder-hash-byte-group-size none", ()),
        ("encoder-hash-byte-group-size", ()),
        ("cross-attn-decoder false", False),
        ("cross-attn-all-layers-encoder True", True),
        ("rope-theta 1e4", 10_000.0),
        ("norm_eps 1e-6", 1e-6),
        ("rope-scaling-global 8 1 4 8192", (8, 1, 4, 8192)),
        ("hidden-dim-global none", 512),
    ],
)
def test_values_of_every_type(flag, value):
    name = flag.split()[0].replace("-", "_")
    assert getattr(shape_of("blt_debug", f"--shape.{flag}"), name) == value


@pytest.mark.parametrize(("config", "cls"), [("blt_1b", BLTConfig), ("entropy_1m", Shape)])
def test_help_shows_every_value(config, cls, capsys):
    with pytest.raises(SystemExit) as left:
        ConfigManager().parse_args(["--module", "train", "--config", config, "--help"])
    assert left.value.code == 0
    shape = BLT_SIZES["1b"] if cls is BLTConfig else ENTROPY_SIZES["1m"]
    shown = " ".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    texts = field_docstrings(type(shape))
    for field in fields(shape):
        flag = f"--shape.{field.name.replace('_', '-')} "
        if field.name in NOT_FLAGS:
            assert flag not in shown
            continue
        value = getattr(shape, field.name)
        default = " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
        _, _, after = shown.partition(flag)
        assert texts[field.name] and f" {texts[field.name]} (default: {default})" in after[:400]


FILES = {
    "model.json": own_config,
    "config.json": lambda shape: {
        "args": to_published_args(shape),
        **other_reading(shape, "published"),
    },
    "params.json": lambda shape: {
        "model": to_published_args(shape),
        "entropy_model": entropy_model_args(EntropyModelConfig(dim=64, n_heads=4)),
        "data": {},
    },
    "transformers.json": lambda shape: {
        **to_transformers_config(shape, None),
        **other_reading(shape, "transformers"),
    },
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_gives_the_shape_and_flags_count_more(name, tmp_path):
    there = replace(BLT_SIZES["debug"], cross_attn_k=3, patcher=Patcher(1.5))
    file = tmp_path / name
    file.write_text(json.dumps(FILES[name](there)))
    if name == "params.json":  # has no place for another way to read rows than the published one
        there = replace(there, **AS_PUBLISHED)
    assert shape_of("blt_1b", file=file) == replace(there, patcher=None)
    # Also a flag with the value of the named configuration.
    given = shape_of("blt_1b", "--shape.dim-global 2048 --shape.cross-attn-k 2", file)
    assert given == BLTConfig(**{**asdict(there), "dim_global": 2048, "cross_attn_k": 2,
                                 "hidden_dim_global": None, "patcher": None})  # fmt: skip
    if name == "params.json":
        assert shape_of("entropy_1m", file=file).dim == 64
    if name != "transformers.json":
        assert shape_of("blt_1b", file=tmp_path) == replace(there, patcher=None)


def test_a_file_with_some_values_changes_the_configuration(tmp_path):
    file = tmp_path / "shape.json"
    file.write_text(json.dumps({"dim_global": 256, "encoder_hash_byte_group_size": [3, 4]}))
    assert shape_of("blt_debug", file=file).hidden_dim_global == 768
    assert shape_of("blt_debug", file=file).encoder_hash_byte_group_size == (3, 4)
    assert shape_of("blt_debug", "--shape.dim-global 128", file).hidden_dim_global == 512


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, "", "--shape.file: FILE: there is no such file, and no directory with model.json"),
        ("{", "", "--shape.file: cannot read the shape in FILE: JSONDecode"),
        ("[]", "", "--shape.file: FILE: not a JSON object"),
        ({"dim_globl": 3}, "", "--shape.file: FILE: dim_globl: is no value of this model's shape"),
        ({"patcher": None}, "", "--shape.file: FILE: patcher: is no value of"),
        ({"dim_global": "3"}, "", "--shape.file: FILE: dim_global: '3' is not of the right type"),
        ({"dim_global": 0}, "", "--shape.file: FILE: dim_global: must be positive"),
        ({**own_config(BLT_SIZES["debug"]), "dim": 3}, "", "--shape.file: FILE: config.json: unkn"),
        (
            {"args": {**to_published_args(BLT_SIZES["debug"]), "weight_tying": True}},
            *("", "--shape.file: FILE: argument weight_tying=True is not supported"),
        ),
        (
            own_entropy_config(ENTROPY_SIZES["1m"]),
            *("", "--shape.file: FILE: describes an entropy model, and the configuration trains a"),
        ),
        (
            {"n_heads_global": 8},
            "--shape.dim-global 100",
            "--shape.n-heads-global: 8 heads do not divide 100 features into pairs (with the other",
        ),
        ("", "--shape.dim-global 100 --shape.n-heads-global 3", "--shape.n-heads-global: 3 heads"),
        ("", "--shape.n-layers-global 10000000", "--shape.n-layers-global: at most 1,000, got"),
        (
            "",
            "--shape.cross-attn-nheads 3 --shape.n-kv-heads-local-encoder 1",
            "--shape.cross-attn-nheads: 3 heads cannot share keys and values in groups of 4, as "
            "the encoder's 4 heads do (--shape.n-kv-heads-local-encoder is 1)",
        ),
        (
            "",
            "--shape.cross-attn-encoder False --shape.cross-attn-window-encoder 2",
            "--shape.cross-attn-window-encoder: needs --shape.cross-attn-encoder, which is",
        ),
        (
            "",
            "--shape.n-kv-heads-global 1 --parallelism.tensor-parallel-degree 2",
            "--parallelism.tensor-parallel-degree: 2 ranks cannot share the 1 attention heads",
        ),
    ],
)
def test_shapes_that_are_refused(content, flags, message, tmp_path):
    """In one sentence that names the flag, before anything is built."""
    file = tmp_path / "shape.json"
    if content:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError) as raised:
        shape_of("blt_debug", flags, None if content == "" else file)
    assert str(raised.value).replace(str(file), "FILE").startswith(message)
    assert "\n" not in str(raised.value)


def test_the_driver_of_ray_checks_the_shape(tmp_path, monkeypatch):
    """Before any worker starts; each worker has a directory of its own, so paths are absolute."""
    monkeypatch.chdir(tmp_path)
    Path("shape.json").write_text('{"dim_global": 256}')
    arguments = absolute_paths(["--shape.file", "shape.json", "--shape.dim-local", "32"])
    assert str(tmp_path / "shape.json") in arguments
    shape = parse_config(["--config", "blt_debug", *arguments]).model_spec.model.shape
    assert (shape.dim_global, shape.dim_local) == (256, 32)
    with pytest.raises(ConfigError, match=r"^--shape\.dim-local: must be positive, got 0$"):
        parse_config(["--config", "blt_debug", "--shape.dim-local", "0"])
    with pytest.raises(ConfigError, match=r"--shape\.dim-local: wide is not INT$"):
        parse_config(["--config", "blt_debug", "--shape.dim-local", "wide"])


@pytest.mark.slow
def test_an_ablation_is_trained_written_and_read(tmp_path):
    """Everything that reads the shape has that of the flags."""
    write_shards(str(tmp_path / "shards"), real_texts(20))
    flags = ["--shape.encoder-hash-byte-group-size", "none", "--shape.cross-attn-encoder", "False"]
    flags += ["--shape.cross-attn-decoder", "False", "--shape.dim-global", 96]
    arguments = tiny("blt_debug", tmp_path / "shards", rows=ROWS, steps=2)
    run = train(tmp_path / "run", *arguments, *flags)
    assert "Building blt debug, changed by --shape" in run.output
    step = str(run.folder / "checkpoint" / "step-2")
    shape = read_model_description(step)
    assert isinstance(shape, BLTConfig) and shape.dim_global == 96 and not shape.cross_attn_encoder
    parts = training_flops(shape, patch_size=run.metrics[2]["patch_length(bytes)"], context=128)
    found = [v for name, v in run.metrics[2].items() if name.startswith("flops_per_byte/")]
    assert sum(found) == pytest.approx(sum(parts.values()), rel=1e-6)
    model = read_step(step)
    assert isinstance(model, BLT) and not len(model.encoder_hash_tok_embedding)
    assert run.losses[2] < 5.6 and torch.isfinite(model.local_decoder.output.weight).all()
    assert (
        len(generate(model.eval(), None, ["a"], patcher=Patcher(rule="space"), max_new_bytes=5)[0])
        <= 5
    )
    # The shape is the file's where another run begins with it.
    assert shape_of("blt_1b", file=run.folder / "checkpoint" / "model.json").dim_global == 96
