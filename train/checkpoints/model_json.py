"""What the model is whose checkpoints lie in a folder: ``model.json``.

torchtitan's steps (``<dump_folder>/<checkpoint.folder>/step-N``) hold tensors and nothing about the
model. Beside them, ``model.json`` says what ``config.json`` says in our own layout, so that a copy
of it makes a directory of safetensors complete.
"""

import json
import posixpath
import uuid
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from model.blt_config import BLTConfig
from model.checkpoints import blt as blt_checkpoint
from model.checkpoints import entropy_model as checkpoint
from model.checkpoints.files import CheckpointError, differences, reading
from model.entropy_model import EntropyModelConfig
from pipeline.storage.output import filesystem_of

FILE = "model.json"
Shape = BLTConfig | EntropyModelConfig


def write_model_description(folder: str, shape: Shape) -> None:
    """Say what the model is whose steps are, or will be, in ``folder``, before training.

    One rank is enough, but each may. A boundary rule may change between runs: the last one is told.

    Args:
        folder: directory or URL, of all steps; made if need be.

    Raises:
        CheckpointError: steps of another model are there; names the arguments.
    """
    filesystem, path = checkpoint_filesystem(folder)
    target = posixpath.join(path, FILE)
    if filesystem.exists(target) and steps_in(folder):
        differing = argument_differences(_read(filesystem, target), shape)
        if differing:
            raise CheckpointError(
                f"{folder}: holds steps of another model: {differing}; train into another folder"
            )
    _write(filesystem, target, own_config(shape))


def read_model_description(step: str) -> Shape:
    """What the model in a step is, from ``model.json`` in its directory or the one above.

    Args:
        step: directory or URL.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    filesystem, path = checkpoint_filesystem(step)
    for directory in (path, posixpath.dirname(path)):
        target = posixpath.join(directory, FILE)
        if filesystem.exists(target):
            return _read(filesystem, target)
    raise CheckpointError(
        f"{step}: there is no {FILE}, in it or in the directory above, to say what the model is; "
        "copy it from the folder that the step was trained into"
    )


def complete_safetensors(step: str) -> None:
    """Make a step of safetensors (``--checkpoint.last_save_in_hf``) one that the loaders of
    :mod:`model` read: write its ``config.json``. One rank does it, after the last save.

    Raises:
        CheckpointError: there is no ``model.json`` in the folder of the steps.
    """
    filesystem, path = checkpoint_filesystem(step)
    config = own_config(read_model_description(step))
    _write(filesystem, posixpath.join(path, "config.json"), config)


def own_config(shape: Shape) -> dict[str, Any]:
    """``config.json`` of our own layout."""
    if isinstance(shape, BLTConfig):
        return blt_checkpoint.own_config(shape)
    return checkpoint.own_config(shape)


def argument_differences(there: Shape, here: Shape, ignore: tuple[str, ...] = ()) -> str:
    """The arguments that change what weights compute and that differ, with both values, in words;
    empty if there are none."""
    if type(there) is not type(here):
        kinds = ["a BLT" if isinstance(s, BLTConfig) else "an entropy model" for s in (there, here)]
        return f"it is {kinds[0]} there and {kinds[1]} here"
    return ", ".join(
        f"{name} is {values[0]} there and {values[1]} here"
        for name, values in differences(there, here).items()
        if name != "patcher" and name not in ignore
    )


def steps_in(folder: str) -> list[str]:
    """Directories of steps in a folder, the last step first; empty if it is no folder."""
    filesystem, path = checkpoint_filesystem(folder)
    if not filesystem.isdir(path):
        return []
    names = [posixpath.basename(found.rstrip("/")) for found in filesystem.ls(path, detail=False)]
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
        if config.get("format") == blt_checkpoint.FORMAT:
            return blt_checkpoint.from_own_config(config)
        if config.get("format") == checkpoint.FORMAT:
            return checkpoint.from_own_config(config)
        raise ValueError(f"format: {config.get('format')!r} is not known")


def _write(filesystem: AbstractFileSystem, path: str, config: dict[str, Any]) -> None:
    """In one atomic step: elsewhere than on disks, objects appear whole."""
    content = (json.dumps(config, indent=2) + "\n").encode()
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.pipe_file(path, content)
        return
    temporary = Path(f"{path}.{uuid.uuid4().hex}")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(content)
    temporary.replace(path)
