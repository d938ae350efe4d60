"""Steps that torchtitan wrote, read as models without torchtitan, its ranks or its optimizer.

A step is a directory (or URL) of files of PyTorch's distributed checkpoints (DCP), or, after
``--checkpoint.last_save_in_hf``, of safetensors.

A DCP step holds one ``*.distcp`` file per rank, with that rank's parts of every tensor, and an
index, ``.metadata``, that says which part lies where. So a step of 8 ranks is read here by one
process: the index names the weights, empty tensors of their shapes are made, and DCP fills them
from all files; the optimizer's state is skipped (:data:`TRAINING_STATE`).

The index is a pickle, and unpickling may call any function that a pickle names. Invariant: no code
of a checkpoint is ever run. :class:`_IndexUnpickler` looks up DCP's own classes and a few more that
DCP writes, and nothing else: an index that names ``os.system`` is refused before any call.
"""

import io
import pickle
import posixpath
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException

from model.checkpoints.building import build
from model.checkpoints.files import CheckpointError, read_safetensors, reading
from model.checkpoints.places import local_directory
from train.checkpoints.kinds import Model, build_model
from train.checkpoints.model_json import (
    checkpoint_filesystem,
    read_model_description,
    steps_in,
)

INDEX = ".metadata"
INDEXES = (INDEX, "config.json")
"""The files of which a complete step has one: the second is that of a last step of safetensors."""
SET_ASIDE = ".set-aside"
"""Ends the names of those of a step from which no run continues: see
:mod:`train.checkpoints.going_back`."""
TRAINING_STATE = ("optimizer", "lr_scheduler", "dataloader", "train_state")
"""First parts of the names of torchtitan's other tensors; no weight's name begins with one."""

INDEX_CLASSES = {
    *(("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict")),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}
"""Classes and functions, by module, that an index may name beside torch's dtypes and DCP's own."""


def is_complete(step: str) -> bool:
    """True if a step was written to its end, and is not set aside."""
    files, path = checkpoint_filesystem(step)
    return any(files.exists(posixpath.join(path, name)) for name in INDEXES)


def complete_steps(folder: str) -> Iterator[str]:
    """The complete steps of a folder, the last one first. Each is looked for when it is wanted."""
    return filter(is_complete, steps_in(folder))


def is_step(source: str) -> bool:
    """True if a directory or URL is a step, complete or not, and not a checkpoint that describes
    its model itself."""
    try:
        names = set() if source.startswith("hf://") else _files(source)
    except (OSError, ValueError, ImportError):  # loading it raises a clearer error
        return False
    if INDEX in names or any(name.endswith(".distcp") for name in names):
        return True
    described = names & {"config.json", "params.json"}
    return not described and any(name.endswith(".safetensors") for name in names)


def read_step(step: str) -> Model:
    """The model of a step, on the CPU, in the dtype that the step was saved in.

    Args:
        step: directory or URL.

    Raises:
        CheckpointError: the step was not written to its end, has no ``model.json``, or cannot be
            read; names the file or weight.
    """
    names = _files(step)
    safetensors = any(name.endswith(".safetensors") for name in names)
    if aside := [name for name in INDEXES if name + SET_ASIDE in names]:
        raise CheckpointError(
            f"{step}: was set aside, because its run went back to a step before it; take another "
            f"step, or take {SET_ASIDE} off the name of {aside[0]}{SET_ASIDE}"
        )
    if INDEX not in names and not safetensors:
        raise CheckpointError(
            f"{step}: has no {INDEX}: it was not written to its end; take another step"
        )
    shape = read_model_description(step)

    def make() -> Model:
        return build_model(shape)

    with reading("step", step):
        if INDEX not in names:
            with local_directory("step", step) as directory:
                return build(make, read_safetensors(directory))
        reader = StepReader(step)
        model = build(make, _empty_weights(reader.read_metadata()))
        try:
            with warnings.catch_warnings():  # one process is intended
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(model.state_dict(), storage_reader=reader, no_dist=True)
        except CheckpointException as error:  # holds the error of each rank; there is one rank
            cause = next(iter(error.failures.values()))[0]
            raise ValueError(
                f"the weights cannot be read: {type(cause).__name__}: {cause}"
            ) from error
        return model


def _files(source: str) -> set[str]:
    filesystem, path = checkpoint_filesystem(source)
    if not filesystem.isdir(path):
        raise NotADirectoryError(source)
    return {posixpath.basename(entry) for entry in filesystem.ls(path, detail=False)}


def _empty_weights(metadata: dcp_metadata.Metadata) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, dcp_metadata.TensorStorageMetadata)
        and name.split(".")[0] not in TRAINING_STATE
    }


class StepReader(FsspecReader):
    """DCP's reader for directories and URLs, which runs no code of the index.

    The index lists every rank's part of every tensor: that of 512 ranks that share blt_8b has 90 MB
    and takes seconds to unpickle. So it is read and unpickled once, whoever asks.
    """

    def __init__(self, step: str, index: bytes | None = None):
        """
        Args:
            step: directory or URL.
            index: the content of the index, if it is known; None: it is read when it is needed.
        """
        super().__init__(step)
        self.index = index
        self._metadata: dcp_metadata.Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        """
        Raises:
            ValueError: the file is broken, or is not an index.
        """
        if self._metadata is not None:
            return self._metadata
        try:
            content = self.read_index() if self.index is None else self.index
            metadata = _IndexUnpickler(io.BytesIO(content)).load()
        except Exception as error:  # unpickling a broken file may raise anything
            raise ValueError(f"{INDEX} is broken, or holds code, which is never run") from error
        if not isinstance(metadata, dcp_metadata.Metadata):
            raise ValueError(f"{INDEX} is not DCP's")
        metadata.storage_meta = dcp_metadata.StorageMeta(load_id=self.load_id)
        self._metadata, self.index = metadata, None
        return metadata

    def read_index(self) -> bytes:
        """The content of the index, as :meth:`__init__` takes it."""
        with self.fs.create_stream(self.fs.concat_path(self.path, INDEX), "rb") as stream:
            content: bytes = stream.read()
        return content


class _IndexUnpickler(pickle.Unpickler):
    """An unpickler that looks up only what DCP writes into an index."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in INDEX_CLASSES
        if module == "torch":
            known |= isinstance(getattr(torch, name, None), torch.dtype)
        if module == dcp_metadata.__name__:
            value = vars(dcp_metadata).get(name)
            known |= isinstance(value, type) and value.__module__ == module
        if not known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)
