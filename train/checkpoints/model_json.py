"""``model.json``: the description of the model whose steps lie in a folder.

torchtitan's steps (``<dump_folder>/<checkpoint.folder>/step-N``) hold tensors and nothing about the
model. ``model.json`` beside them holds what ``config.json`` holds in our own layout: the format's
name and every field of the model's shape. A copy of it makes a directory of safetensors complete.
"""

import json
import logging
import posixpath
import uuid
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from model.blt_config import BLTConfig
from model.checkpoints.blt import read_blt
from model.checkpoints.files import CheckpointError, differences, reading
from model.checkpoints.llama import holds_token_model, latent_origin
from model.initialisation import INITIALISATION
from model.provenance import closest, grouped
from model.widths import missing_fields
from pipeline.storage.places import filesystem_of
from train.checkpoints.kinds import KINDS, Shape, kind_of

DESCRIPTION_FILE = "model.json"

logger = logging.getLogger(__name__)


def model_description(
    folder: str, shape: Shape, *, initial: str | None = None, allow_mixed_patches: bool = False
) -> Shape:
    """Describe the model whose steps are, or will be, in ``folder``: the shape with the boundary
    rule of this run, how the patches of all runs were made, and what the latent transformer began
    with. Nothing is written: see :func:`write_model_description`.

    Args:
        folder: directory or URL of all steps.
        initial: directory or URL of weights that the first run begins with.
        allow_mixed_patches: earlier steps, or the initial weights, may have been trained on other
            patches than those of ``shape``.

    Raises:
        CheckpointError: the folder holds steps of another model, or trained on other patches; names
            what differs.
    """
    filesystem, path = checkpoint_filesystem(folder)
    target = posixpath.join(path, DESCRIPTION_FILE)
    before, where = None, folder
    if steps_in(folder):
        before = _read(filesystem, target) if filesystem.exists(target) else None
        differing = "" if before is None else argument_differences(before, shape)
        if differing:
            raise CheckpointError(
                f"{folder}: holds steps of another model: {differing}; train into another folder"
            )
    elif initial and isinstance(shape, BLTConfig):
        if Path(initial).is_dir() and holds_token_model(Path(initial)):
            shape = replace(shape, latent_origin=latent_origin(Path(initial)))
        else:
            before, where = _initial_shape(initial), initial
    if isinstance(shape, BLTConfig) and isinstance(before, BLTConfig):
        shape = replace(shape, latent_origin=before.latent_origin)
    return with_earlier_patches(shape, before, where, allowed=allow_mixed_patches)


def write_model_description(folder: str, description: Shape) -> None:
    """Write what the model of a folder of steps is, before the first of them is saved.

    Args:
        folder: directory or URL of all steps; created if need be.
        description: see :func:`model_description`.
    """
    filesystem, path = checkpoint_filesystem(folder)
    _write(filesystem, posixpath.join(path, DESCRIPTION_FILE), config_json(description))


def with_earlier_patches(shape: Shape, before: Shape | None, where: str, *, allowed: bool) -> Shape:
    """The shape with the patches that its weights were trained on before, after those of now.

    Args:
        before: the model whose weights are trained on; None if it is not known.
        where: the place of those weights, for errors.
        allowed: the patches may differ.

    Raises:
        CheckpointError: they differ; says in what.
    """
    if not isinstance(shape, BLTConfig) or not isinstance(before, BLTConfig):
        return shape
    earlier = before.known_patches
    if not earlier:
        logger.warning(f"{where}: does not say which patches it was trained on.")
    if not earlier or not shape.patch_provenance:
        return shape
    for given in shape.patch_provenance:
        differ = closest(earlier, given, ("the weights", "the shards"))
        if differ.boundaries and not allowed:
            raise CheckpointError(
                f"{where}: was trained on other patches: {differ.boundaries}; train on shards that "
                "were patched alike, or go on with both (--dataloader.allow-mixed-patches)"
            )
        for note in filter(None, differ):
            logger.warning(f"{where}: {note}.")
    return replace(shape, patch_provenance=grouped([*shape.patch_provenance, *earlier]))


def _initial_shape(initial: str) -> Shape | None:
    """The model of the weights to begin with; None if it cannot be read: loading them says why."""
    try:
        if any(Path(initial, name).exists() for name in ("config.json", "params.json")):
            return read_blt(Path(initial))[0]
        return read_model_description(initial)
    except (CheckpointError, OSError):
        logger.warning(f"{initial}: does not say which patches it was trained on.")
        return None


def read_model_description(step: str) -> Shape:
    """The model in a step, from ``model.json`` in the step's directory or the one above.

    Args:
        step: directory or URL.

    Raises:
        CheckpointError: there is no ``model.json``, or it is damaged; names the file and the key.
    """
    filesystem, target = _beside(step, DESCRIPTION_FILE, "to say what the model is")
    return _read(filesystem, target)


def read_beside(step: str, name: str, purpose: str) -> bytes:
    """The content of a file in a step's directory or in the one above.

    Args:
        step: directory or URL.
        purpose: what the file is there for, for the error.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    filesystem, target = _beside(step, name, purpose)
    with reading(name, target):
        content: bytes = filesystem.cat_file(target)
        return content


def _beside(step: str, name: str, purpose: str) -> tuple[AbstractFileSystem, str]:
    filesystem, path = checkpoint_filesystem(step)
    for directory in (path, posixpath.dirname(path)):
        target = posixpath.join(directory, name)
        if filesystem.exists(target):
            return filesystem, target
    raise CheckpointError(
        f"{step}: there is no {name}, in it or in the directory above, {purpose}; copy it from the "
        "folder that the step was trained into"
    )


def complete_safetensors(step: str) -> None:
    """Write ``config.json`` into a step of safetensors (``--checkpoint.last_save_in_hf``), so that
    the loaders of :mod:`model` can read it. One rank calls this after the last save.

    Raises:
        CheckpointError: there is no ``model.json`` in the folder of the steps.
    """
    filesystem, path = checkpoint_filesystem(step)
    config = config_json(read_model_description(step))
    _write(filesystem, posixpath.join(path, "config.json"), config)


def config_json(shape: Shape) -> dict[str, Any]:
    """The content of ``config.json`` in our own layout."""
    return kind_of(shape).own_config(shape)


def argument_differences(there: Shape, here: Shape, ignore: tuple[str, ...] = ()) -> str:
    """The arguments that change what the weights compute and that differ, with both values, in
    words; empty if there are none."""
    if type(there) is not type(here):
        return f"it is {kind_of(there).name} there and {kind_of(here).name} here"
    return ", ".join(
        f"{name} is {values[0]} there and {values[1]} here"
        for name, values in differences(there, here).items()
        if name not in ("patcher", "patch_provenance", "latent_origin", *INITIALISATION, *ignore)
    )


def steps_in(folder: str) -> list[str]:
    """Directories of the steps in a folder, the last step first; empty if it is no folder."""
    filesystem, path = checkpoint_filesystem(folder)
    if not filesystem.isdir(path):
        return []
    names = [posixpath.basename(entry.rstrip("/")) for entry in filesystem.ls(path, detail=False)]
    numbers = (name.removeprefix("step-") for name in names if name.startswith("step-"))
    steps = sorted((int(number) for number in numbers if number.isdecimal()), reverse=True)
    return [f"{folder.rstrip('/')}/step-{step}" for step in steps]


def checkpoint_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a directory or URL, and the path there.

    As for torchtitan, a leading ``~`` is a name like any other.
    """
    filesystem, path = filesystem_of(url if "://" in url else str(Path(url).absolute()))
    return filesystem, path.rstrip("/") or path


def _read(filesystem: AbstractFileSystem, path: str) -> Shape:
    with reading("model description", path):
        config = json.loads(filesystem.cat_file(path))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
        return from_description(config)


def from_description(config: dict[str, Any]) -> Shape:
    """The shape that the content of a ``model.json`` describes.

    Raises:
        ValueError: a value is missing, wrong or not known; names it.
    """
    kind = next((kind for kind in KINDS if kind.format == config.get("format")), None)
    if kind is None:
        raise ValueError(f"format: {config.get('format')!r} is not known")
    _check_values(config, kind.shape)
    return kind.from_own_config(config)


def _check_values(values: Mapping[str, Any], dataclass: type) -> None:
    """Check the keys and JSON types of a dataclass's fields; ranges are the dataclass's own matter.

    Raises:
        ValueError: fields are missing, or one has a value of another type; names them.
    """
    if missing := missing_fields(values, dataclass):
        raise ValueError(f"lacks {', '.join(missing)}; restore it from a copy")
    check_types(values, dataclass)


def check_types(values: Mapping[str, Any], dataclass: type) -> None:
    """Check the JSON types of the values that are fields of a dataclass.

    Raises:
        ValueError: a value has another type; names it.
    """
    hints = get_type_hints(dataclass)
    for field in fields(dataclass):
        if field.name in values and not has_type(values[field.name], hints[field.name]):
            raise ValueError(f"{field.name}: {values[field.name]!r} is not of the right type")


def has_type(value: object, hint: Any) -> bool:
    """True if a value read from JSON can be that of a field with this type."""
    if get_origin(hint) is UnionType:
        return any(has_type(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        element = get_args(hint)[0]
        return isinstance(value, list) and all(has_type(item, element) for item in value)
    if get_origin(hint) is Literal:
        return isinstance(value, str)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
        _check_values(value, hint)
        return True
    return type(value) is hint or (hint is float and type(value) is int)


def _write(filesystem: AbstractFileSystem, path: str, config: dict[str, Any]) -> None:
    write_atomically(filesystem, path, (json.dumps(config, indent=2) + "\n").encode())


def write_atomically(filesystem: AbstractFileSystem, path: str, content: bytes) -> None:
    """Write in one atomic step; objects in object stores appear whole by themselves."""
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, content)
        return
    temporary = Path(f"{path}.{uuid.uuid4().hex}")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)
