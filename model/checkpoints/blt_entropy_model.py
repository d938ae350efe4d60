"""The entropy model that belongs to a BLT: in its files, beside them, or where its record says."""

from collections.abc import Iterable
from pathlib import Path

import torch

from model.checkpoints.blt import ENTROPY_MODEL, recorded_patches
from model.checkpoints.building import Dtype
from model.checkpoints.entropy_model import fingerprint, load_entropy_model, to_device
from model.checkpoints.files import (
    CheckpointError,
    JsonObject,
    read_json,
    read_safetensors,
    reading,
)
from model.checkpoints.names import PUBLISHED, PUBLISHED_ENTROPY_MODEL, is_for_everybody
from model.checkpoints.places import local_directory
from model.entropy_model import EntropyModel
from model.patcher import SHOWN_DIGITS
from model.provenance import PatchProvenance
from model.short_context import ShortContextModel


def own_entropy_model(directory: Path) -> Path | None:
    """The directory of the entropy model that a BLT's checkpoint holds, in its own files or in a
    directory below; None if it holds none.

    Raises:
        CheckpointError: the checkpoint's configuration or files cannot be read.
    """
    with reading("BLT", str(directory)):
        config = read_json(directory / "config.json")
        if config.get("model_type") == "blt" and (
            config.get("patch_in_forward", True) or _holds_patcher(config, directory)
        ):
            return directory
    below = directory / ENTROPY_MODEL
    return below if below.is_dir() else None


def _holds_patcher(config: JsonObject, directory: Path) -> bool:
    """True if transformers' files hold an entropy model. Whoever gives the lengths of patches
    switches it off, and it is in the files as before."""
    return bool(config.get("patcher_config")) and bool(
        read_safetensors(directory, ("model.patcher.",))
    )


def load_entropy_model_of(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EntropyModel | ShortContextModel:
    """The entropy model that belongs to the BLT in ``source``. It lies in the same files, in a
    directory below, in one beside (for a local BLT), or on the hub beside the published BLTs; or it
    is the one that the checkpoint names, see :func:`load_recorded_entropy_model`.

    Raises:
        CheckpointError: none of these places holds one, or it cannot be read.
    """
    text = str(source).rstrip("/")
    if text.removeprefix("hf://") in PUBLISHED:
        return load_entropy_model(PUBLISHED_ENTROPY_MODEL, device=device, dtype=dtype)
    with local_directory("BLT", text) as directory:
        beside = directory.resolve().parent
        names = (ENTROPY_MODEL, PUBLISHED_ENTROPY_MODEL.split("/")[1])
        for place in (own_entropy_model(directory), *(beside / name for name in names)):
            if place is not None and place.is_dir():
                return load_entropy_model(place, device=device, dtype=dtype)
        with reading("BLT", text):
            record = recorded_patches(read_json(directory / "config.json"))
    named = load_recorded_entropy_model(record, device=device, dtype=dtype)
    if named is None:
        raise CheckpointError(f"{text}: holds no entropy model, and there is none beside it")
    return named


def load_recorded_entropy_model(
    record: Iterable[PatchProvenance],
    *,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
) -> EntropyModel | ShortContextModel | None:
    """The entropy model that a checkpoint's record names, if anybody can get it: one that comes
    with this package, or lies on the hub. The record's fingerprint says whether it is still that
    model.

    Returns:
        the model; None if the record names none, several, or one that lies elsewhere.

    Raises:
        CheckpointError: it is gone, cannot be reached, or has become another model.
    """
    known = {
        each.entropy_model.fingerprint: each.entropy_model
        for each in record
        if each.identified and each.patcher.reads_entropies and each.entropy_model
    }
    if len(known) != 1:
        return None
    (identity,) = known.values()
    if not identity.source or not is_for_everybody(identity.source):
        return None
    on_cpu = load_entropy_model(identity.source, device="cpu", dtype="stored")
    if fingerprint(on_cpu) != identity.fingerprint:
        raise CheckpointError(
            f"{identity.source}: is no longer the entropy model of the checkpoint's patches, "
            f"whose fingerprint begins with {str(identity.fingerprint)[:SHOWN_DIGITS]}"
        )
    return to_device(on_cpu, device, dtype)
