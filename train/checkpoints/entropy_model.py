"""The entropy model of a BLT's patches, kept beside the BLT's steps.

``model.json`` names the model and its fingerprint, which is enough for a model that everybody can
get: one that comes with this package, or lies on the hub. A copy of any other lies in
``entropy_model/``, where the loaders of :mod:`model.checkpoints.blt` and
``jobs/convert_checkpoint.py`` look: an n-gram model that was fitted for one shard set would go with
the set, and a directory of today may not be there when the steps are converted.
"""

import posixpath
import tempfile
from collections.abc import Mapping
from pathlib import Path

from model.checkpoints.blt import ENTROPY_MODEL
from model.checkpoints.entropy_model import (
    AnyEntropyModel,
    fingerprint,
    load_entropy_model,
    save_entropy_model,
)
from model.checkpoints.files import CheckpointError
from model.checkpoints.names import is_for_everybody
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically

WAY_ON = "give it to convert_checkpoint.py, generate.py and evaluate.py (--entropy-model)"


def keep_entropy_model(folder: str, models: Mapping[str, str | None]) -> str | None:
    """Copy the entropy model of the shards into the folder of the steps, if others could not get
    it; one rank calls this before training.

    Args:
        folder: directory or URL of all steps.
        models: where each entropy model of the shard sets lies, by its fingerprint; None if that is
            not recorded.

    Returns:
        why the steps come without their entropy model, if they do.
    """
    if len(models) > 1:
        return (
            f"the shard sets have entropies of {len(models)} models, and the checkpoint keeps none "
            f"of them: {WAY_ON}"
        )
    for wanted, place in models.items():
        if place is None:
            return f"the shard sets do not name their entropy model: {WAY_ON}"
        is_directory = "://" in place or Path(place).is_dir()
        if (is_for_everybody(place) and not is_directory) or place.startswith("hf://"):
            return None
        if _fingerprint_there(folder) == wanted:
            return None
        try:
            model = load_entropy_model(place, device="cpu", dtype="stored")
        except CheckpointError as error:
            return f"the entropy model of the shards is not kept with the steps ({error}): {WAY_ON}"
        if fingerprint(model) != wanted:
            return (
                f"{place} is no longer the entropy model of the shards, which is not kept with the "
                f"steps: {WAY_ON}"
            )
        _copy(model, folder)
    return None


def kept_entropy_model(step: str) -> AnyEntropyModel | None:
    """The entropy model beside a step; None if there is none.

    Args:
        step: directory or URL.

    Raises:
        CheckpointError: it cannot be read.
    """
    folder = step.rstrip("/").rpartition("/")[0] or "."
    filesystem, path = checkpoint_filesystem(folder)
    if not filesystem.exists(posixpath.join(path, ENTROPY_MODEL, "config.json")):
        return None
    return load_entropy_model(f"{folder}/{ENTROPY_MODEL}", device="cpu", dtype="stored")


def _fingerprint_there(folder: str) -> str | None:
    try:
        model = kept_entropy_model(f"{folder.rstrip('/')}/step-0")
    except CheckpointError:  # a copy that was broken off is written again
        return None
    return None if model is None else fingerprint(model)


def _copy(model: AnyEntropyModel, folder: str) -> None:
    filesystem, path = checkpoint_filesystem(folder)
    with tempfile.TemporaryDirectory() as temporary:
        save_entropy_model(model, temporary)
        for name in ("model.safetensors", "config.json"):  # the last one makes it complete
            content = Path(temporary, name).read_bytes()
            write_atomically(filesystem, posixpath.join(path, ENTROPY_MODEL, name), content)
