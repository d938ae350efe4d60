"""Reading and writing entropy models: four layouts, from a directory, a URL or the hub.

No code of a checkpoint is ever run: pickles are read with ``weights_only``. Layouts:

* own: ``config.json`` with ``"format"`` + ``model.safetensors``, for models of all kinds;
* published, consolidated: ``params.json`` (key ``entropy_model``) + ``consolidated.pth``
  (key ``model``);
* published, hub: ``config.json`` = ``{"args": {...}}`` + ``model.safetensors``;
* transformers' BLT: ``config.json`` with ``patcher_config`` + safetensors under ``model.patcher.``.
"""

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from model.checkpoints import entropy_layouts
from model.checkpoints.building import Dtype, build, ready
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
from model.checkpoints.refusals import (
    refuse_other_format,
    refuse_steps,
    refuse_token_transformer,
)
from model.conv_entropy_model import ConvEntropyConfig, ConvEntropyModel
from model.device import computing_in
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.initialisation import INITIALISATION
from model.ngram import NGramEntropyModel
from model.short_context import ShortContextModel

__all__ = [
    "AnyEntropyModel",
    "CheckpointError",
    "computed_in",
    "fingerprint",
    "from_own_config",
    "holds_entropy_model_alone",
    "load_entropy_model",
    "own_config",
    "read_entropy_model",
    "save_entropy_model",
    "to_device",
]

FORMAT = "blt-titan/entropy-model/1"
AnyEntropyModel = EntropyModel | ShortContextModel
SHORT_CONTEXT_KINDS: dict[str, type[ShortContextModel]] = {
    kind.kind: kind for kind in (NGramEntropyModel, ConvEntropyModel)
}
FIRST_ARGUMENTS = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "context_length", "window"),
    *("rope_theta", "norm_eps", "vocab_size"),
)
"""The arguments that every fingerprint covers."""


def load_entropy_model(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
) -> EntropyModel | ShortContextModel:
    """An entropy model, ready to score.

    Args:
        source: a directory, a URL that fsspec knows, or a hub id (``owner/name``).
        device: a GPU if there is one, by default.
        dtype: of weights and computation; :func:`model.device.fast_dtype` by default; as the
            checkpoint has them with ``"stored"``.

    Raises:
        CheckpointError: it cannot be read; names the file, argument or weight.
    """
    with (
        local_directory("entropy model", str(source)) as directory,
        reading("entropy model", str(source)),
    ):
        model = _load(directory)
        return to_device(model, device, dtype)


def read_entropy_model(directory: Path) -> tuple[EntropyModelConfig, dict[str, Tensor]]:
    """The shape of a transformer entropy model in a local directory, and its weights under the
    published names. Weights are mapped from their files: only what is used is read.

    Raises:
        CheckpointError: it cannot be read; names the file, argument or weight.
    """
    with reading("entropy model", str(directory)):
        config = read_json(directory / "config.json")
        if kind := _short_context_kind(config):
            raise ValueError(f"is {kind.title}; give a transformer")
        return _read(config, directory)


def holds_entropy_model_alone(directory: Path) -> bool:
    """True if the configuration of a checkpoint describes an entropy model and not a BLT.

    The ``params.json`` of a published training may describe both: a BLT that was not trained there
    is null, empty, or as its class makes it by default.
    """
    config, params = (read_json(directory / name) for name in ("config.json", "params.json"))
    return (
        config.get("format") == FORMAT
        or config.get("model_type") == "blt_patcher"
        or ("args" in config and "dim_global" not in config["args"])
        or (
            bool(params.get("entropy_model"))
            and (
                params.get("train_entropy_model") is True
                or "dim_global" not in (params.get("model") or {})
            )
        )
    )


def to_device(
    model: EntropyModel | ShortContextModel,
    device: str | torch.device | None = None,
    dtype: Dtype = None,
) -> EntropyModel | ShortContextModel:
    """Move a transformer to where it computes fastest; others stay on the CPU."""
    if isinstance(model, ShortContextModel):
        return model
    return ready(model, device, dtype)


def save_entropy_model(
    model: EntropyModel | ShortContextModel, directory: str | Path, *, layout: Layout = "own"
) -> None:
    """Write ``model`` to ``directory``, which is made if need be.

    Raises:
        CheckpointError: the layout cannot hold the model; says why.
    """
    if layout not in get_args(Layout):
        raise CheckpointError(f"layout: {layout!r} is not one of {', '.join(get_args(Layout))}")
    state, tensors = _state(model)
    config = _config_in(layout, model, state)
    if layout == "transformers":
        tensors = entropy_layouts.to_transformers_weights(tensors)
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def layout_refusal(model: EntropyModel | ShortContextModel, layout: Layout) -> str | None:
    """Why a layout cannot hold a model, in words; None if it can."""
    try:
        _config_in(layout, model, {})
    except CheckpointError as error:
        return str(error)
    return None


def _config_in(
    layout: Layout, model: EntropyModel | ShortContextModel, state: JsonObject
) -> JsonObject:
    """The ``config.json`` of a model.

    Args:
        state: the model's configuration, as our own layout holds it.

    Raises:
        CheckpointError: the layout cannot hold the model; says why.
    """
    if layout == "own":
        return {"format": FORMAT, **state}
    if isinstance(model, ShortContextModel):
        raise CheckpointError(f"the {layout} layout cannot hold {model.title}")
    if layout == "published":
        return {"args": entropy_layouts.to_published_args(model.config)}
    shape = entropy_layouts.to_transformers_config(model.config)
    return {"architectures": ["BltPatcher"], "model_type": "blt_patcher", **shape}


def fingerprint(model: EntropyModel | ShortContextModel) -> str:
    """The sha256 of configuration and weights: equal exactly for models that compute the same.

    A transformer is hashed in float32, under our names, with its arguments as our own layout
    states them. So neither the layout nor the dtype of its files matters (bfloat16 weights are
    the same numbers in float32), but weights that were rounded to bfloat16 are another model.
    Manifests have held this value from their first release on: it must not change.
    """
    config, tensors = _state(model)
    if isinstance(model, EntropyModel):
        config = {"kind": config["kind"], **_stated_arguments(model.config)}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        if isinstance(model, EntropyModel):
            tensor = tensor.float()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def computed_in(model: EntropyModel | ShortContextModel) -> str:
    """Device, dtype and kind of GPU in which a model computes entropies, see
    :func:`model.device.computing_in`; ``cpu float32`` for one that computes on CPUs alone."""
    if isinstance(model, ShortContextModel):
        return "cpu float32"
    return computing_in(model.device, model.output.weight.dtype)


def _stated_arguments(shape: EntropyModelConfig) -> JsonObject:
    """The arguments that a fingerprint covers: those that change what is computed. One that a later
    release adds counts where it is not the default, so that earlier fingerprints stay what they
    are."""
    values: JsonObject = {}
    for field in fields(shape):
        if field.name in INITIALISATION:
            continue
        value = getattr(shape, field.name)
        if field.name in FIRST_ARGUMENTS or value != field.default:
            # Some files say 10000 where others say 10000.0.
            values[field.name] = float(value) if isinstance(field.default, float) else value
    return values


def own_config(shape: EntropyModelConfig) -> JsonObject:
    """The ``config.json`` of a transformer in our own layout."""
    return {"format": FORMAT, "kind": "transformer", **asdict(shape)}


def from_own_config(config: JsonObject) -> EntropyModelConfig:
    """The shape of a transformer, from the ``config.json`` of our own layout.

    Raises:
        ValueError: it holds an unknown argument, or values that do not fit together.
    """
    return EntropyModelConfig(**own_arguments(config, EntropyModelConfig))


def _state(model: EntropyModel | ShortContextModel) -> tuple[JsonObject, dict[str, Tensor]]:
    """Configuration and tensors, as our own layout holds them."""
    if isinstance(model, EntropyModel):
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return {"kind": "transformer", **asdict(model.config)}, tensors
    shape = asdict(model.config) if isinstance(model, ConvEntropyModel) else {}
    return {"kind": model.kind, **shape}, model.tensors()


def _short_context_kind(config: JsonObject) -> type[ShortContextModel] | None:
    """The kind of model that a ``config.json`` of our own layout describes; None for another."""
    own = config.get("format") == FORMAT
    return SHORT_CONTEXT_KINDS.get(config.get("kind", "")) if own else None


def _load(directory: Path) -> EntropyModel | ShortContextModel:
    config = read_json(directory / "config.json")
    kind = _short_context_kind(config)
    if kind is NGramEntropyModel:
        return NGramEntropyModel.of_tensors(read_safetensors(directory))
    if kind is ConvEntropyModel:
        shape = ConvEntropyConfig(**own_arguments(config, ConvEntropyConfig))
        return ConvEntropyModel(shape, read_safetensors(directory))
    if config.get("format") == FORMAT and config.get("kind") != "transformer":
        raise ValueError(f"config.json: kind {config.get('kind')!r} is unknown to this release")
    arguments, weights = _read(config, directory)
    return build(lambda: EntropyModel(arguments), weights)


def _read(config: JsonObject, directory: Path) -> tuple[EntropyModelConfig, dict[str, Tensor]]:
    refuse_token_transformer(config)
    if config.get("format") == FORMAT:
        return from_own_config(config), read_safetensors(directory)
    if "args" in config:
        return entropy_layouts.from_published_args(config["args"]), read_safetensors(directory)
    if "patcher_config" in config or config.get("model_type") == "blt_patcher":
        part = config.get("patcher_config", config)
        shape = entropy_layouts.from_transformers_config(part)
        theirs = read_safetensors(directory, ("model.patcher.", "patcher.", ""))
        return shape, entropy_layouts.from_transformers_weights(shape, theirs)
    refuse_other_format(config, "an entropy model", FORMAT)
    if params := read_json(directory / "params.json"):
        if not params.get("entropy_model"):
            raise ValueError("params.json has no key 'entropy_model': not an entropy model")
        shape = entropy_layouts.from_published_args(params["entropy_model"])
        return shape, read_consolidated(directory)
    refuse_steps(directory)
    raise ValueError(
        "no entropy model in a known layout: expected config.json with model.safetensors, "
        "or params.json with consolidated.pth"
    )
