"""Steps that torchtitan wrote, read as models: without torchtitan, its ranks or its optimizer.

A step is a directory (or URL) of DCP's files, or, after ``--checkpoint.last_save_in_hf``, of
safetensors. No code of a checkpoint is ever run: the pickled index of a step is read for what DCP
writes into it only.
"""

import pickle
import posixpath
import warnings
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.api import CheckpointException

from model.blt import BLT
from model.blt_config import BLTConfig
from model.checkpoints.files import (
    CheckpointError,
    build,
    local_directory,
    read_safetensors,
    reading,
)
from model.entropy_model import EntropyModel
from train.checkpoints.model_json import checkpoint_filesystem, read_model_description

INDEX = ".metadata"
TRAINING_STATE = ("optimizer", "lr_scheduler", "dataloader", "train_state")
"""What torchtitan keeps beside the weights; their names have none of these before the first dot."""

INDEX_CLASSES = {
    *(("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict")),
    *(("pathlib", name) for name in ("PosixPath", "WindowsPath", "PurePosixPath")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
}


def is_step(source: str) -> bool:
    """Whether a directory or URL is a step, complete or not, rather than weights that say
    themselves what they are of."""
    try:
        names = set() if source.startswith("hf://") else _files(source)
    except (OSError, ValueError, ImportError):  # whoever loads it says so
        return False
    if INDEX in names or any(name.endswith(".distcp") for name in names):
        return True
    described = names & {"config.json", "params.json"}
    return not described and any(name.endswith(".safetensors") for name in names)


def read_step(step: str) -> BLT | EntropyModel:
    """The model of a step, in the dtype that it was saved in, on the CPU.

    Args:
        step: directory or URL.

    Raises:
        CheckpointError: it was not written to its end, nothing says what the model is, or it
            cannot be read; names the file or weight.
    """
    names = _files(step)
    safetensors = any(name.endswith(".safetensors") for name in names)
    if INDEX not in names and not safetensors:
        raise CheckpointError(
            f"{step}: has no {INDEX}: it was not written to its end; take another step"
        )
    shape = read_model_description(step)

    def make() -> BLT | EntropyModel:
        return BLT(shape) if isinstance(shape, BLTConfig) else EntropyModel(shape)

    with reading("step", step):
        if INDEX not in names:
            with local_directory("step", step) as directory:
                return build(make, read_safetensors(directory))
        reader = StepReader(step)
        model = build(make, _space_for_weights(reader.read_metadata()))
        try:
            with warnings.catch_warnings():  # that it is one process is meant
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp.load(model.state_dict(), storage_reader=reader, no_dist=True)
        except CheckpointException as error:  # of one rank; it holds what went wrong there
            cause = next(iter(error.failures.values()))[0]
            raise ValueError(
                f"the weights cannot be read: {type(cause).__name__}: {cause}"
            ) from error
        return model


def _files(source: str) -> set[str]:
    filesystem, path = checkpoint_filesystem(source)
    if not filesystem.isdir(path):
        raise NotADirectoryError(source)
    return {posixpath.basename(found) for found in filesystem.ls(path, detail=False)}


def _space_for_weights(metadata: dcp_metadata.Metadata) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, dcp_metadata.TensorStorageMetadata)
        and name.split(".")[0] not in TRAINING_STATE
    }


class StepReader(FsspecReader):
    """DCP's reader, for directories and URLs, that does not run what it reads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        """
        Raises:
            ValueError: the index is broken, or is none.
        """
        path = self.fs.concat_path(self.path, INDEX)
        try:
            with self.fs.create_stream(path, "rb") as stream:
                metadata = _IndexUnpickler(stream).load()
        except Exception as error:  # unpickling what is broken raises anything
            raise ValueError(f"{INDEX} is broken, or holds code, which is never run") from error
        if not isinstance(metadata, dcp_metadata.Metadata):
            raise ValueError(f"{INDEX} is not DCP's")
        metadata.storage_meta = dcp_metadata.StorageMeta(load_id=self.load_id)
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in INDEX_CLASSES
        if module == "torch":
            known |= isinstance(getattr(torch, name, None), torch.dtype)
        if module == dcp_metadata.__name__:
            found = vars(dcp_metadata).get(name)
            known |= isinstance(found, type) and found.__module__ == module
        if not known:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)
