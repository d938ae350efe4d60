"""The kinds of models that are trained, and what differs between them where checkpoints are read
and written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from model.blt import BLT
from model.blt_config import BLTConfig
from model.checkpoints import blt as blt_checkpoint
from model.checkpoints import entropy_model as entropy_checkpoint
from model.checkpoints import token_transformer as token_checkpoint
from model.checkpoints.files import TOKEN_TRANSFORMER
from model.entropy_model import EntropyModel
from model.entropy_model_config import EntropyModelConfig
from model.token_transformer import TokenTransformer, TokenTransformerConfig

Shape = BLTConfig | EntropyModelConfig | TokenTransformerConfig
Model = BLT | EntropyModel | TokenTransformer


class Kind(NamedTuple):
    """A kind of models."""

    name: str
    """With its article, for messages."""
    shape: type[Shape]
    model: Callable[[Any], Model]
    format: str
    """The format's name in ``config.json`` of our own layout."""
    own_config: Callable[[Any], dict[str, Any]]
    """The content of that file."""
    from_own_config: Callable[[dict[str, Any]], Shape]
    read: Callable[[Path], tuple[Shape, dict[str, Tensor]]]
    """The shape and the weights of a checkpoint in any layout, mapped into memory."""


KINDS = (
    Kind(
        "a BLT",
        BLTConfig,
        BLT,
        blt_checkpoint.FORMAT,
        blt_checkpoint.own_config,
        blt_checkpoint.from_own_config,
        blt_checkpoint.read_blt,
    ),
    Kind(
        "an entropy model",
        EntropyModelConfig,
        EntropyModel,
        entropy_checkpoint.FORMAT,
        entropy_checkpoint.own_config,
        entropy_checkpoint.from_own_config,
        entropy_checkpoint.read_entropy_model,
    ),
    Kind(
        "a token transformer",
        TokenTransformerConfig,
        TokenTransformer,
        TOKEN_TRANSFORMER,
        token_checkpoint.own_config,
        token_checkpoint.from_own_config,
        token_checkpoint.read_token_transformer,
    ),
)


def kind_of(shape: Shape) -> Kind:
    """The kind of the models of a shape."""
    return next(kind for kind in KINDS if isinstance(shape, kind.shape))


def build_model(shape: Shape) -> Model:
    """A model of a shape, without the weights to begin with."""
    return kind_of(shape).model(shape)
