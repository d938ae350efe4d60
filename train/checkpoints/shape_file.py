"""Files that describe the shape of a model: those of checkpoints, and a plain list of values."""

import functools
import json
import posixpath
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from model.blt_config import BLTConfig
from model.checkpoints.blt import with_own_reading
from model.checkpoints.blt_published import from_published_args
from model.checkpoints.blt_transformers import from_transformers_config
from model.checkpoints.entropy_layouts import from_published_args as from_entropy_model_args
from model.checkpoints.files import CheckpointError, reading
from model.checkpoints.llama import is_token_model, latent_values
from model.widths import resized
from train.checkpoints.kinds import Shape, kind_of
from train.checkpoints.model_json import check_types, checkpoint_filesystem, from_description

IN_CHECKPOINTS = ("model.json", "config.json", "params.json")
"""Files that describe the model of a checkpoint, in its directory."""
RECORDS = ("patcher", "latent_origin")
"""Fields that training records, and that no list of values gives."""


@functools.cache  # a configuration is built more than once
def read_shape_file(url: str, base: Shape) -> Shape:
    """The shape that a file describes, without a boundary rule and without what was trained before.

    Args:
        url: path or URL of a checkpoint's directory; of a ``model.json`` or ``config.json`` of
            ours, a published ``params.json`` or ``config.json``, or a ``config.json`` of
            transformers' BLT; of a Llama's ``config.json``, for the latent transformer alone; or of
            a JSON object with values of fields.
        base: the shape that a Llama, or a JSON object with values, changes; says which kind of
            model is wanted.

    Raises:
        CheckpointError: the file cannot be read, holds an unknown value, or describes another kind
            of model; names the file and the value.
    """
    filesystem, path = checkpoint_filesystem(url)
    with reading("shape", url):
        places = [path, *(posixpath.join(path, name) for name in IN_CHECKPOINTS)]
        file = next((place for place in places if filesystem.isfile(place)), None)
        if file is None:
            names = ", ".join(IN_CHECKPOINTS)
            raise CheckpointError(f"{url}: there is no such file, and no directory with {names}")
        config = json.loads(filesystem.cat_file(file))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        shape = _shape(config, base)
        if type(shape) is not type(base):
            kinds = [kind_of(each).name for each in (shape, base)]
            raise ValueError(
                f"describes {kinds[0]}, and the configuration trains {kinds[1]}; take "
                f"another --config, or the {posixpath.basename(file)} of {kinds[1]}"
            )
    if isinstance(shape, BLTConfig):
        return replace(shape, patcher=None, latent_origin=None)
    return shape


def _shape(config: dict[str, Any], base: Shape) -> Shape:
    if "format" in config:
        return from_description(config)
    if config.get("model_type") == "blt":
        return with_own_reading(from_transformers_config(config), config)
    if is_token_model(config) and isinstance(base, BLTConfig):
        return resized(base, latent_values(config))
    # A consolidated directory's params.json may hold the arguments of both models.
    key = "model" if isinstance(base, BLTConfig) else "entropy_model"
    published = config.get("args") or config.get(key)
    if isinstance(published, dict):
        if "dim_global" in published:
            return with_own_reading(from_published_args(published, {}), config)
        return from_entropy_model_args(published)
    return _changed(config, base)


def _changed(values: Mapping[str, Any], base: Shape) -> Shape:
    known = [field.name for field in fields(base) if field.name not in RECORDS]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(
            f"{unknown[0]}: is no value of this model's shape; known: {', '.join(known)}"
        )
    check_types(values, type(base))
    return resized(base, values)
