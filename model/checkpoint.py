"""Reading and writing entropy models: four layouts, from a directory, a URL or the hub.

No code of a checkpoint is ever run: pickles are read with ``weights_only``. Layouts:

* own: ``config.json`` with ``"format"`` + ``model.safetensors`` (transformer and n-gram alike);
* published, consolidated: ``params.json`` (key ``entropy_model``) + ``consolidated.pth``
  (key ``model``);
* published, hub: ``config.json`` = ``{"args": {...}}`` + ``model.safetensors``;
* transformers' BLT: ``config.json`` with ``patcher_config`` + safetensors under ``model.patcher.``.
"""

import hashlib
import json
import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import fsspec
import httpx
import huggingface_hub
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.entropy_model import EntropyModel, EntropyModelConfig
from model.ngram import NGramEntropyModel
from model.transformer import default_hidden_dim

FORMAT = "blt-titan/entropy-model/1"
WANTED_FILES = ["config.json", "params.json", "*.safetensors", "*.safetensors.index.json", "*.pth"]

IGNORED_ARGS = {
    *("attn_impl", "attn_bias_type", "sliding_window", "eos_id", "seed"),
    *("init_base_std", "init_std_factor", "rope_use_fp32_in_outer_product"),
}
"""Published arguments that don't describe the computation: how weights were initialised, and
attention settings, which the published model was not run with (it is always causal, within one
document, window 512)."""

TRANSFORMERS_NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


UNREADABLE = (
    *(SafetensorError, json.JSONDecodeError, OSError, EOFError),
    *(RuntimeError, KeyError, TypeError, AttributeError),
)
"""What json, safetensors, torch and our own look-ups raise over broken files."""


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, or not one that these models can represent exactly."""


def load_entropy_model(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EntropyModel | NGramEntropyModel:
    """An entropy model, ready to score.

    Args:
        source: a directory, a URL that fsspec knows, or a hub id (``owner/name``).
        device: a GPU if there is one, by default.
        dtype: of weights and computation; bfloat16 on a GPU and float32 on a CPU by default.

    Raises:
        CheckpointError: what is wrong, with the file, argument or weight it is wrong with.
    """
    with _local_directory(str(source)) as directory:
        try:
            model = _load(directory)
        except pickle.UnpicklingError as error:  # its text tells users to load it unsafely
            raise CheckpointError(
                f"cannot read the entropy model in {source}: consolidated.pth is broken, or holds "
                "code, which is never run"
            ) from error
        except UNREADABLE as error:
            raise CheckpointError(
                f"cannot read the entropy model in {source}: {type(error).__name__}: {error}"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{source}: {error}") from error
    return to_device(model, device, dtype)


def to_device(
    model: EntropyModel | NGramEntropyModel,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> EntropyModel | NGramEntropyModel:
    """Move a transformer where it computes fastest; the n-gram model stays on the CPU."""
    if isinstance(model, NGramEntropyModel):
        return model
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    # bfloat16 is what the matrix units want, and hundreds of times slower on most CPUs.
    default = torch.bfloat16 if device.type == "cuda" else torch.float32
    return model.to(device, dtype or default).eval()


def save_entropy_model(model: EntropyModel | NGramEntropyModel, directory: str | Path) -> None:
    """Write ``model`` in our own layout; ``directory`` is made if need be."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    config, tensors = _state(model)
    save_file(tensors, target / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def fingerprint(model: EntropyModel | NGramEntropyModel) -> str:
    """sha256 over the configuration and all weights, in the dtype that they have now."""
    config, tensors = _state(model)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(model: EntropyModel | NGramEntropyModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(model, EntropyModel):
        tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
        return {"kind": "transformer", **asdict(model.config)}, tensors
    tensors = {f"order_{k}": torch.tensor(table) for k, table in model.hashed.items()}
    return {"kind": "ngram"}, {"direct": torch.tensor(model.direct), **tensors}


def _load(directory: Path) -> EntropyModel | NGramEntropyModel:
    config_path, params_path = directory / "config.json", directory / "params.json"
    config = json.loads(config_path.read_text()) if config_path.exists() else {}
    if config.get("format") == FORMAT:
        return _load_own(config, directory)
    if "args" in config:
        return _transformer(_published_config(config["args"]), _safetensors(directory))
    if "patcher_config" in config or config.get("model_type") == "blt_patcher":
        arguments = config.get("patcher_config", config)
        return _transformer(_transformers_config(arguments), _transformers_weights(directory))
    if params_path.exists():
        params = json.loads(params_path.read_text())
        if "entropy_model" not in params:
            raise ValueError("params.json has no key 'entropy_model': not an entropy model")
        weights = torch.load(
            directory / "consolidated.pth", map_location="cpu", weights_only=True, mmap=True
        )
        return _transformer(_published_config(params["entropy_model"]), weights["model"])
    raise ValueError(
        "no entropy model in a known layout: expected config.json with model.safetensors, "
        "or params.json with consolidated.pth"
    )


def _load_own(config: dict[str, Any], directory: Path) -> EntropyModel | NGramEntropyModel:
    weights = _safetensors(directory)
    if config["kind"] == "ngram":
        tables = {name: tensor.numpy() for name, tensor in weights.items()}
        direct = tables.pop("direct")
        return NGramEntropyModel(direct, {int(k.removeprefix("order_")): tables[k] for k in tables})
    known = {field.name for field in fields(EntropyModelConfig)}
    unknown = set(config) - known - {"format", "kind"}
    if unknown:
        raise ValueError(f"config.json: unknown argument {min(unknown)!r}")
    return _transformer(EntropyModelConfig(**{k: config[k] for k in known & set(config)}), weights)


def _published_config(args: dict[str, Any]) -> EntropyModelConfig:
    """The published arguments, each either used, known to be harmless, or refused by name."""
    args = {name: value for name, value in args.items() if name not in IGNORED_ARGS}
    dim, n_heads = args.pop("dim", 512), args.pop("n_heads", None)
    head_dim = args.pop("head_dim", None)
    if n_heads is None:
        n_heads = dim // head_dim if head_dim else 8
    if head_dim and head_dim * n_heads != dim:
        raise ValueError(f"argument head_dim: {head_dim} times {n_heads} heads is not dim {dim}")
    config = EntropyModelConfig(
        dim=dim,
        n_layers=args.pop("n_layers", 8),
        n_heads=n_heads,
        n_kv_heads=args.pop("n_kv_heads", None),
        hidden_dim=default_hidden_dim(
            dim, args.pop("ffn_dim_multiplier", None), args.pop("multiple_of", 256)
        ),
        context_length=args.pop("max_seqlen", 8192),
        rope_theta=args.pop("rope_theta", 10_000.0),
        norm_eps=args.pop("norm_eps", 1e-5),
        vocab_size=args.pop("vocab_size", 260),
    )
    # What is left is unknown here; only a value that switches nothing on is safe to ignore.
    refused = next((name for name, value in args.items() if value), None)
    if refused:
        raise ValueError(f"argument {refused}={args[refused]!r} is not supported")
    return config


def _transformers_config(config: dict[str, Any]) -> EntropyModelConfig:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"argument rope_type={rope['rope_type']!r} is not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"argument hidden_act={config['hidden_act']!r} is not supported")
    dim, n_heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    if config.get("head_dim", dim // n_heads) * n_heads != dim:
        raise ValueError(f"argument head_dim={config['head_dim']} is not supported")
    return EntropyModelConfig(
        dim=dim,
        n_layers=config.get("num_hidden_layers", 14),
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads"),
        hidden_dim=config.get("intermediate_size", 2048),
        context_length=config.get("max_position_embeddings", 8192),
        window=config.get("sliding_window") or 512,
        rope_theta=rope.get("rope_theta", config.get("rope_theta", 10_000.0)),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        vocab_size=config.get("vocab_size", 260),
    )


def _safetensors(directory: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Tensors of all safetensors files whose names start with the first prefix that any has."""
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise ValueError("no .safetensors file")
    found: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in prefixes}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                prefix = next((p for p in prefixes if name.startswith(p)), None)
                if prefix is not None:
                    found[prefix][name.removeprefix(prefix)] = file.get_tensor(name)
    return next((tensors for tensors in found.values() if tensors), {})


def _transformers_weights(directory: Path) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in _safetensors(directory, ("model.patcher.", "patcher.", "")).items():
        for theirs, published in TRANSFORMERS_NAMES.items():
            name = name.replace(theirs, published)
        weights[name] = tensor
    return weights


def _transformer(config: EntropyModelConfig, weights: dict[str, Tensor]) -> EntropyModel:
    with torch.device("meta"):
        model = EntropyModel(config)
    expected = model.state_dict()
    # A table of rotary angles, where a checkpoint has one, is recomputed, not read.
    weights = {name: w for name, w in weights.items() if not name.endswith("freqs_cis")}
    for what, names in (
        ("lacks", expected.keys() - weights),
        ("has unknown", weights.keys() - expected),
    ):
        if names:
            raise ValueError(f"the checkpoint {what} weights: {', '.join(sorted(names)[:5])}")
    for name, tensor in expected.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(
                f"weight {name} has shape {tuple(weights[name].shape)}, "
                f"the configuration asks for {tuple(tensor.shape)}"
            )
        if not weights[name].is_floating_point():
            raise ValueError(f"weight {name} has dtype {weights[name].dtype}, not a float")
    model = EntropyModel(config)
    model.load_state_dict(weights)
    return model


@contextmanager
def _local_directory(source: str) -> Iterator[Path]:
    """``source`` as a local directory, downloaded if need be."""
    if "://" in source and not source.startswith("hf://"):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                filesystem, path = fsspec.core.url_to_fs(source)
                names = [Path(name).name for name in filesystem.ls(path, detail=False)]
                wanted = [n for n in names if Path(n).suffix in (".json", ".safetensors", ".pth")]
                for name in wanted:
                    filesystem.get_file(f"{path}/{name}", str(Path(temporary, name)))
            except (OSError, ValueError, ImportError) as error:
                raise CheckpointError(
                    f"cannot read the entropy model in {source}: {error}"
                ) from error
            yield Path(temporary)
    elif Path(source).is_dir():
        yield Path(source)
    elif source.removeprefix("hf://").count("/") == 1 and not source.startswith((".", "/", "~")):
        yield Path(_download(source.removeprefix("hf://")))
    else:
        raise CheckpointError(f"{source}: no such directory, and not a hub id (owner/name)")


def _download(repository: str) -> str:
    try:
        return huggingface_hub.snapshot_download(repository, allow_patterns=WANTED_FILES)
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its licence on its hub page, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no such directory, and no such model on the hub "
            "(a private one needs HF_TOKEN)"
        ) from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repository}: cannot be downloaded from the hub: {error}"
        ) from error
