"""Reading and writing token transformers: our own layout, and transformers' Llama.

Both have ``config.json``, ``model.safetensors`` and the ``tokenizer.json`` that makes ids of text.

In transformers' layout ids are the tokenizer's own, and BOS and EOS, which are ours, follow them:
the rows of both tables are permuted. So are those of ``wq`` and ``wk``
(:mod:`model.checkpoints.llama`).
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from model.checkpoints.building import Dtype, build, ready
from model.checkpoints.byte_tokenizer import begin_with, special_token
from model.checkpoints.files import (
    TOKEN_TRANSFORMER,
    CheckpointError,
    JsonObject,
    own_arguments,
    read_json,
    read_safetensors,
    reading,
    transformers_name,
    write_safetensors,
)
from model.checkpoints.llama import feature_order
from model.checkpoints.names import Layout
from model.checkpoints.places import local_directory
from model.token_transformer import TokenTransformer, TokenTransformerConfig
from model.tokenizer import BOE_ID, BOS_ID, BPE_ID, BYTE_OFFSET, EOS_ID

TOKENIZER = "tokenizer.json"
BOS, EOS = special_token("bos"), special_token("eos")
"""Our BOS and EOS, as transformers' tokenizer calls them."""


def load_token_transformer(
    source: str | Path, *, device: str | torch.device | None = None, dtype: Dtype = None
) -> TokenTransformer:
    """A token transformer of our own layout, ready to run; arguments and errors are those of
    :func:`model.load_blt`. Its ``tokenizer.json`` lies beside the weights."""
    with (
        local_directory("token transformer", str(source)) as directory,
        reading("token transformer", str(source)),
    ):
        shape, weights = _read(directory)
        return ready(build(lambda: TokenTransformer(shape), weights), device, dtype)


def read_token_transformer(directory: Path) -> tuple[TokenTransformerConfig, dict[str, Tensor]]:
    """The shape of a token transformer in a local directory, and its weights, mapped from their
    file.

    Raises:
        CheckpointError: it cannot be read; names the file, argument or weight.
    """
    with reading("token transformer", str(directory)):
        return _read(directory)


def holds_token_transformer(directory: Path) -> bool:
    """True if ``config.json`` describes a token transformer of our own layout."""
    return read_json(directory / "config.json").get("format") == TOKEN_TRANSFORMER


def _read(directory: Path) -> tuple[TokenTransformerConfig, dict[str, Tensor]]:
    config = read_json(directory / "config.json")
    if config.get("format") != TOKEN_TRANSFORMER:
        raise ValueError(f"no token transformer: config.json has no format {TOKEN_TRANSFORMER!r}")
    return from_own_config(config), read_safetensors(directory)


def save_token_transformer(
    model: TokenTransformer, directory: str | Path, tokenizer: bytes, *, layout: Layout = "own"
) -> None:
    """Write ``model`` to ``directory``, which is made if need be.

    Args:
        tokenizer: the content of its ``tokenizer.json``.

    Raises:
        CheckpointError: it is another tokenizer than the model's, or the layout cannot hold the
            model; says why.
    """
    if layout not in get_args(Layout):
        raise CheckpointError(f"layout: {layout!r} is not one of {', '.join(get_args(Layout))}")
    if layout == "published":
        raise CheckpointError("the published layout has no place for a model of tokens")
    check_tokenizer(model.config, tokenizer)
    weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
    config = own_config(model.config)
    files: dict[str, JsonObject] = {}
    if layout == "transformers":
        definition = json.loads(tokenizer)
        tokens = number_of_tokens(definition)
        weights = to_transformers_weights(model.config, weights, tokens)
        config = to_transformers_config(model.config, tokens)
        tokenizer = json.dumps(with_bos_and_eos(definition, tokens), ensure_ascii=False).encode()
        files["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
        }
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, target / "model.safetensors")
    (target / TOKENIZER).write_bytes(tokenizer)
    for name, content in {**files, "config.json": config}.items():
        (target / name).write_text(json.dumps(content, indent=2) + "\n")


def check_tokenizer(shape: TokenTransformerConfig, tokenizer: bytes) -> None:
    """
    Raises:
        CheckpointError: the content of ``tokenizer.json`` is not that of the training.
    """
    found = hashlib.sha256(tokenizer).hexdigest()
    if shape.tokenizer not in (None, found):
        raise CheckpointError(
            f"{TOKENIZER}: its sha256 is {found}, and that of the training's is {shape.tokenizer}"
        )


def own_config(shape: TokenTransformerConfig) -> JsonObject:
    """The ``config.json`` of our own layout."""
    return {"format": TOKEN_TRANSFORMER, **asdict(shape)}


def from_own_config(config: JsonObject) -> TokenTransformerConfig:
    """The shape, from the ``config.json`` of our own layout.

    Raises:
        ValueError: it holds an unknown argument, or values that do not fit together.
    """
    return TokenTransformerConfig(**own_arguments(config, TokenTransformerConfig))


def number_of_tokens(definition: JsonObject) -> int:
    """One more than the largest id in the content of a ``tokenizer.json``."""
    added = [token["id"] for token in definition.get("added_tokens") or []]
    last: int = max([*definition["model"]["vocab"].values(), *added])
    return last + 1


def to_transformers_config(shape: TokenTransformerConfig, tokens: int) -> JsonObject:
    """The ``config.json`` of transformers' Llama.

    Args:
        tokens: those of the tokenizer.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.dim // shape.n_heads,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": False,
        "bos_token_id": tokens,
        "eos_token_id": tokens + 1,
    }


def to_transformers_weights(
    shape: TokenTransformerConfig, weights: dict[str, Tensor], tokens: int
) -> dict[str, Tensor]:
    """Weights under the names, and with the order of rows, of transformers' Llama."""
    end = BYTE_OFFSET + tokens
    order = [
        *range(BYTE_OFFSET, end),
        BOS_ID,
        EOS_ID,
        BOE_ID,
        BPE_ID,
        *range(end, shape.vocab_size),
    ]
    order_of_head = feature_order(shape.dim // shape.n_heads)
    theirs = {}
    for name, weight in weights.items():
        if name in ("tok_embeddings.weight", "output.weight"):
            weight = weight[torch.tensor(order)]
        elif name.endswith(("wq.weight", "wk.weight")):
            heads = weight.unflatten(0, (-1, len(order_of_head)))
            weight = heads[:, order_of_head].flatten(0, 1)
        name = transformers_name(name)
        is_output = name.startswith("output.")
        theirs["lm_head.weight" if is_output else f"model.{name}"] = weight
    return theirs


def with_bos_and_eos(definition: JsonObject, tokens: int) -> JsonObject:
    """The content of a ``tokenizer.json`` whose texts begin with our BOS.

    Raises:
        CheckpointError: ids of the tokenizer are not used, so that others cannot follow them.
    """
    added = definition.get("added_tokens") or []
    known = {*definition["model"]["vocab"].values(), *(token["id"] for token in added)}
    if len(known) != tokens:
        raise CheckpointError(
            f"{TOKENIZER}: {tokens - len(known)} ids below {tokens} stand for no token, so that "
            "transformers would number BOS and EOS otherwise; keep the model in our own layout"
        )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ours: list[dict[str, Any]] = [
        {"id": tokens + i, "content": text, **flags, "special": True}
        for i, text in enumerate((BOS, EOS))
    ]
    begin = begin_with(BOS, tokens)
    return {**definition, "added_tokens": [*added, *ours], "post_processor": begin}
