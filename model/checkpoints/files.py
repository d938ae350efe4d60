"""Files of checkpoints: how they are read and written, and the errors that broken ones give.

No code of a checkpoint is ever run: pickles are read with ``weights_only``. The modules
:mod:`model.checkpoints.entropy_model` and :mod:`model.checkpoints.blt` know what the weights mean,
and :mod:`model.checkpoints.places` fetches the files.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.widths import missing_fields

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

TOKEN_TRANSFORMER = "blt-titan/token-transformer/1"
"""The format of :mod:`model.checkpoints.token_transformer`."""
WEIGHTS_FILE = "model.safetensors"
CONSOLIDATED = "consolidated.pth"
INDEX_FILE = "model.safetensors.index.json"
"""transformers' list of the weights in several files."""
W = TypeVar("W")
JsonObject = dict[str, Any]
"""An object of a JSON file: until it is checked, anything may be in it."""

UNREADABLE = (
    *(SafetensorError, json.JSONDecodeError, OSError, EOFError),
    *(RuntimeError, KeyError, TypeError, AttributeError, ArithmeticError),
)
"""Errors that json, safetensors, torch and our own look-ups raise over broken files."""

TRANSFORMERS_NAMES = {
    "tok_embeddings": "embed_tokens",
    "local_decoder.output.": "lm_head.",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "cross_attn_norm_q": "q_norm",
    "cross_attn_norm_kv": "k_norm",
    ".wq": ".q_proj",
    ".wk": ".k_proj",
    ".wv": ".v_proj",
    ".wo": ".o_proj",
}


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, or not one that these models can represent exactly."""


def transformers_name(name: str) -> str:
    """The name that transformers gives a weight of the published name ``name``."""
    for published, theirs in TRANSFORMERS_NAMES.items():
        name = name.replace(published, theirs)
    return name


def renamed(weights: Mapping[str, W], name_of: Callable[[str], str]) -> dict[str, W]:
    """Weights under other names.

    Raises:
        ValueError: two of them get one name, so that one would be lost; names both.
    """
    found: dict[str, W] = {}
    before: dict[str, str] = {}
    for name, weight in weights.items():
        new = name_of(name)
        if new in found:
            raise ValueError(
                f"weight {new}: is there twice, as {before[new]} and as {name}; remove the one "
                "that is out of date"
            )
        found[new], before[new] = weight, name
    return found


@contextmanager
def reading(what: str, source: str) -> Iterator[None]:
    """Turn any error over a checkpoint's files into one that names the checkpoint.

    Args:
        what: the kind of checkpoint, for the message.
        source: the name that the user gave it.

    Raises:
        CheckpointError: the files are broken, or hold something that is not supported.
    """
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # its text tells users to load it unsafely
        raise CheckpointError(
            f"cannot read the {what} in {source}: {CONSOLIDATED} is broken, or holds "
            "code, which is never run"
        ) from error
    except KeyError as error:
        raise CheckpointError(f"cannot read the {what} in {source}: it lacks {error}") from error
    except UNREADABLE as error:
        raise CheckpointError(
            f"cannot read the {what} in {source}: {type(error).__name__}: {error}"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from error


def read_json(path: Path) -> JsonObject:
    """The object in a JSON file; an empty one if there is no such file.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:  # of JSON and of UTF-8, neither of which says what was read
        raise ValueError(f"{path.name}: is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name}: not a JSON object")
    return value


def refuse_unknown(args: Mapping[str, Any]) -> None:
    """Refuse published arguments that are not known, unless their value switches nothing on.

    Raises:
        ValueError: one switches something on; names it.
    """
    refused = next((name for name, value in args.items() if value), None)
    if refused:
        raise ValueError(f"argument {refused}={args[refused]!r} is not supported")


def published_initialisation(args: JsonObject) -> JsonObject:
    """Take the arguments that say how weights were initialised out of published ones.

    The published code takes a deviation of 0 for none.
    """
    factor = args.pop("init_std_factor", None) or "disabled"
    return {"init_std_factor": factor, "init_base_std": args.pop("init_base_std", None) or None}


def own_arguments(config: JsonObject, shape: type) -> JsonObject:
    """The arguments of the dataclass ``shape`` that our own ``config.json`` holds.

    Raises:
        ValueError: the file holds an argument that the dataclass lacks, or lacks one; names it.
    """
    values = {name: value for name, value in config.items() if name not in ("format", "kind")}
    unknown = values.keys() - {field.name for field in fields(shape)}
    if unknown:
        raise ValueError(f"config.json: unknown argument {min(unknown)!r}")
    if missing := missing_fields(values, shape):
        raise ValueError(f"config.json: lacks {', '.join(missing)}; restore it from a copy")
    return values


def read_consolidated(directory: Path) -> dict[str, Tensor]:
    """The weights in ``consolidated.pth``, mapped from the file.

    Raises:
        ValueError: the file holds something else.
    """
    path = directory / CONSOLIDATED
    if path.exists() and not zipfile.is_zipfile(path):
        raise ValueError(
            f"{CONSOLIDATED}: is no whole file of torch.save; copy or download it again, or, if a "
            "torch before 1.6 wrote it, save it anew"
        )
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = stored.get("model") if isinstance(stored, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        held = sorted(map(str, stored))[:5] if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(
            f"{CONSOLIDATED}: has no weights by their names under the key 'model'; it holds {held}"
        )
    return weights


def read_safetensors(directory: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """The tensors of a checkpoint's safetensors files whose names start with one prefix, without
    it. The files are those that transformers' index lists, or all files if there is no index.

    Args:
        prefixes: the first one that any name starts with is taken.

    Raises:
        ValueError: there is no such file, an index lists one that is missing, or it is not clear
            which of two files holds the weights.
    """
    listed = read_json(directory / INDEX_FILE).get("weight_map")
    paths = sorted(directory.glob("*.safetensors"))
    if listed is not None:
        if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
            raise ValueError(f"{INDEX_FILE}: its weight_map does not name a file for each weight")
        paths = [directory / name for name in sorted(set(listed.values()))]
        if (directory / WEIGHTS_FILE).exists() and WEIGHTS_FILE not in listed.values():
            raise ValueError(
                f"{WEIGHTS_FILE}: lies beside {INDEX_FILE}, which lists other files: two sets of "
                "weights; remove what is out of date"
            )
        if missing := [path.name for path in paths if not path.exists()]:
            raise ValueError(f"{missing[0]}: is listed in {INDEX_FILE} and is not there")
    if not paths:
        pickles = next((path.name for path in sorted(directory.glob("*.bin"))), None)
        way = f"; {pickles} is a pickle: save the model anew as safetensors" if pickles else ""
        raise ValueError(f"no .safetensors file{way}")
    by_prefix: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    names: dict[str, str] = {}
    """The file that holds each weight."""
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                prefix = next((p for p in prefixes if name.startswith(p)), None)
                if prefix is None:
                    continue
                if names.setdefault(name, path.name) != path.name:
                    raise ValueError(
                        f"weight {name}: is in {names[name]} and in {path.name}; remove the file "
                        "that is out of date"
                    )
                by_prefix[prefix][name.removeprefix(prefix)] = file.get_tensor(name)
    return next((tensors for tensors in by_prefix.values() if tensors), {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """
    Raises:
        ValueError: it is no safetensors file, or the beginning of one; names it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path.name}: is no whole safetensors file ({error}); copy or download it again"
        ) from error


def write_safetensors(weights: dict[str, Tensor], path: Path) -> None:
    """Write a file that everybody may read who may read others in its directory: the library's own
    are for their owner alone.

    Args:
        weights: of any device; two of them may be one in memory, as tied ones are.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(_apart(weights), path, metadata={"format": "pt"})
    with suppress(PermissionError):  # of filesystems without modes
        path.chmod(mode)


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights on the CPU as a file can hold them: contiguous, and copied where one lies in memory
    that another one has. Parts of one memory that do not overlap stay where they are: the hash
    tables that are slices of one, for example, would take gigabytes a second time."""
    apart = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    end = 0
    for name in sorted(apart, key=lambda name: apart[name].data_ptr()):
        start, size = apart[name].data_ptr(), apart[name].nbytes
        if start < end:
            apart[name] = apart[name].clone()
        else:
            end = start + size
    return apart


def differences(
    shape: "DataclassInstance", other: "DataclassInstance"
) -> dict[str, tuple[Any, Any]]:
    """The arguments in which two configurations of one kind differ, with the value in each."""
    pairs = {f.name: (getattr(shape, f.name), getattr(other, f.name)) for f in fields(shape)}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}
