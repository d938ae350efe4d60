"""Reading and writing BLTs: four layouts, from a directory, a URL or the hub.

* own: ``config.json`` with ``"format"`` + ``model.safetensors``;
* published, hub: ``config.json`` = ``{"args": {...}}`` + ``model.safetensors``; boundary rule in
  ``train_args.json``;
* published, consolidated: ``params.json`` (key ``model``) + ``consolidated.pth`` (key ``model``);
* transformers: ``config.json`` with ``"model_type": "blt"`` + safetensors; the entropy model, which
  :func:`model.load_entropy_model` reads, may lie in the same files.

A ``config.json`` that we write has keys beside those of its layout. Other programs pass over them:

* ``patch_provenance``: how the patches were made that the weights were trained with
  (:class:`model.provenance.PatchProvenance`), if it is known;
* ``latent_origin``: the model that the latent transformer began with
  (:class:`model.provenance.LatentOrigin`), if it began with one;
* the fields of :data:`model.blt_config.ROW_READING` in which the model differs from the programs
  that the layout belongs to. Without them, a published layout is read as the published code does.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from model.blt import BLT
from model.blt_config import ROW_READING, BLTConfig
from model.checkpoints.blt_published import (
    AS_PUBLISHED,
    from_published_args,
    to_published_args,
)
from model.checkpoints.blt_transformers import (
    AS_TRANSFORMERS,
    from_transformers_config,
    from_transformers_weights,
    to_transformers_config,
    to_transformers_weights,
)
from model.checkpoints.building import Dtype, build, ready
from model.checkpoints.byte_tokenizer import save_byte_tokenizer
from model.checkpoints.entropy_model import save_entropy_model
from model.checkpoints.files import (
    CheckpointError,
    JsonObject,
    own_arguments,
    read_consolidated,
    read_json,
    read_safetensors,
    reading,
    write_safetensors,
)
from model.checkpoints.names import Layout
from model.checkpoints.places import local_directory
from model.checkpoints.published_patching import published_patcher_args
from model.checkpoints.refusals import (
    refuse_other_format,
    refuse_steps,
    refuse_token_transformer,
)
from model.entropy_model import EntropyModel
from model.patcher import Patcher
from model.provenance import LatentOrigin, PatchProvenance
from model.short_context import ShortContextModel

FORMAT = "blt-titan/blt/1"
TRAIN_ARGS = "train_args.json"
"""The file of a published BLT that says how its data was patched."""
READING = {"published": AS_PUBLISHED, "transformers": AS_TRANSFORMERS}
"""How programs read rows, by the layout that belongs to them."""
PROVENANCE, ORIGIN = "patch_provenance", "latent_origin"
ENTROPY_MODEL = "entropy_model"
"""Directory of the entropy model, below a BLT of ours or beside a published one."""


def load_blt(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
) -> BLT:
    """A BLT, ready to run.

    Args:
        source: a directory, a URL that fsspec knows, or a hub id (``owner/name``).
        device: a GPU if there is one, by default.
        dtype: of weights and computation; :func:`model.device.fast_dtype` by default; as the
            checkpoint has them with ``"stored"``.

    Raises:
        CheckpointError: it cannot be read; names the file, argument or weight.
    """
    with local_directory("BLT", str(source)) as directory, reading("BLT", str(source)):
        return ready(_load(directory), device, dtype)


def read_blt(directory: Path) -> tuple[BLTConfig, dict[str, Tensor]]:
    """The shape of a BLT in a local directory, and its weights under the published names. Weights
    are mapped from their files: only what is used is read.

    Raises:
        CheckpointError: it cannot be read; names the file, argument or weight.
    """
    with reading("BLT", str(directory)):
        return _read(directory)


def save_blt(
    model: BLT,
    directory: str | Path,
    *,
    layout: Layout = "own",
    entropy_model: EntropyModel | ShortContextModel | None = None,
) -> None:
    """Write ``model`` to ``directory``, which is made if need be.

    Args:
        entropy_model: the model that places the boundaries. It goes into the same files in
            transformers' layout, and into a directory below in the others.

    Raises:
        CheckpointError: the layout cannot hold the model; says why.
    """
    if layout not in get_args(Layout):
        raise CheckpointError(f"layout: {layout!r} is not one of {', '.join(get_args(Layout))}")
    if layout != "own" and isinstance(entropy_model, ShortContextModel):
        raise CheckpointError(f"the {layout} layout cannot hold {entropy_model.title}")
    weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
    config: JsonObject
    if layout == "own":
        config = own_config(model.config)
    elif layout == "published":
        config = {"args": to_published_args(model.config)}
    else:
        assert not isinstance(entropy_model, ShortContextModel)
        config = {**to_transformers_config(model.config, entropy_model)}
        weights = to_transformers_weights(weights, entropy_model)
    if layout != "own":
        config |= other_reading(model.config, layout) | _provenance_entry(model.config)
    target = Path(directory)
    if layout != "transformers" and entropy_model is not None:
        save_entropy_model(entropy_model, target / ENTROPY_MODEL, layout=layout)
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if layout == "transformers":
        save_byte_tokenizer(target)
    patcher_args = published_patcher_args(model.config.patcher)
    if layout == "published" and patcher_args is not None:
        data = {"patcher_args": patcher_args, "tokenizer_args": {"name": "blt"}}
        (target / TRAIN_ARGS).write_text(json.dumps({"data": data}, indent=2) + "\n")


def own_config(shape: BLTConfig) -> JsonObject:
    """The ``config.json`` of a BLT in our own layout."""
    shape_alone = {k: v for k, v in asdict(shape).items() if k not in (PROVENANCE, ORIGIN)}
    return {"format": FORMAT, **shape_alone, **_provenance_entry(shape)}


def from_own_config(config: JsonObject) -> BLTConfig:
    """The shape of a BLT, from the ``config.json`` of our own layout.

    Raises:
        ValueError: it holds an unknown argument, or values that do not fit together.
    """
    values = own_arguments(config, BLTConfig)
    rule = values.get("patcher")
    if not isinstance(rule, dict | None):
        raise ValueError(f"config.json: patcher: {rule!r:.80} is no JSON object")
    if rule is not None:
        values["patcher"] = Patcher.from_json(values["patcher"])
    values.pop(PROVENANCE, None)
    values.pop(ORIGIN, None)
    return _with_provenance(BLTConfig(**values), config)


def other_reading(shape: BLTConfig, layout: Layout) -> dict[str, bool]:
    """The fields of :data:`model.blt_config.ROW_READING` in which a model differs from the programs
    that a layout belongs to; none for our own layout."""
    theirs = READING.get(layout, {})
    return {
        name: getattr(shape, name)
        for name, value in theirs.items()
        if getattr(shape, name) != value
    }


def with_own_reading(shape: BLTConfig, config: JsonObject) -> BLTConfig:
    """The shape of another layout's ``config.json``, with what :func:`other_reading` put there.

    Raises:
        ValueError: a value is neither true nor false; names it.
    """
    stated = {name: config[name] for name in ROW_READING if name in config}
    for name, value in stated.items():
        if not isinstance(value, bool):
            raise ValueError(f"config.json: {name}: {value!r:.80} is neither true nor false")
    return replace(shape, **stated)


def _provenance_entry(shape: BLTConfig) -> JsonObject:
    """The keys of ``config.json`` that hold how the training's patches were made and what the
    latent transformer began with, in every layout; other programs pass over them."""
    entry = [asdict(each) for each in shape.patch_provenance]
    origin = {} if shape.latent_origin is None else {ORIGIN: asdict(shape.latent_origin)}
    return {**({PROVENANCE: entry} if entry else {}), **origin}


def _with_provenance(shape: BLTConfig, config: JsonObject) -> BLTConfig:
    """
    Raises:
        ValueError: the entry is damaged; says where.
    """
    origin = None if config.get(ORIGIN) is None else LatentOrigin.from_json(config[ORIGIN])
    return replace(shape, patch_provenance=recorded_patches(config), latent_origin=origin)


def recorded_patches(config: JsonObject) -> tuple[PatchProvenance, ...]:
    """How the patches were made that the weights were trained with, as a ``config.json`` tells.

    Raises:
        ValueError: the entry is damaged; says where.
    """
    entry = config.get(PROVENANCE, [])
    if not isinstance(entry, list):
        raise ValueError(f"{PROVENANCE}: {entry!r:.80} is no list")
    return tuple(map(PatchProvenance.from_json, entry))


def _load(directory: Path) -> BLT:
    shape, weights = _read(directory)
    return build(lambda: BLT(shape), weights)


def _read(directory: Path) -> tuple[BLTConfig, dict[str, Tensor]]:
    config = read_json(directory / "config.json")
    refuse_token_transformer(config)
    if config.get("format") == FORMAT:
        return from_own_config(config), read_safetensors(directory)
    if config.get("model_type") == "blt":
        shape = with_own_reading(from_transformers_config(config), config)
        shape = _with_provenance(shape, config)
        tied = bool(config.get("tie_word_embeddings"))
        return shape, from_transformers_weights(shape, read_safetensors(directory), tied=tied)
    if "args" in config:
        train = read_json(directory / TRAIN_ARGS)
        patching = train.get("data", {}).get("patcher_args") or {}
        shape = with_own_reading(from_published_args(config["args"], patching), config)
        shape = _with_provenance(shape, config)
        return shape, read_safetensors(directory)
    refuse_other_format(config, "a BLT", FORMAT)
    params = read_json(directory / "params.json")
    if "dim_global" in (params.get("model") or {}):
        patching = params.get("data", {}).get("patcher_args") or {}
        return from_published_args(params["model"], patching), read_consolidated(directory)
    refuse_steps(directory)
    raise ValueError(
        "no BLT in a known layout: expected config.json with model.safetensors, or params.json "
        "(key 'model') with consolidated.pth"
    )
