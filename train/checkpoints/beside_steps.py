"""The files beside the steps of a folder: what their model is, and what whoever uses it needs."""

import posixpath
from collections.abc import Mapping

from torchtitan.tools.logging import logger

from model.blt_config import BLTConfig
from model.checkpoints.token_transformer import TOKENIZER
from train.checkpoints.entropy_model import keep_entropy_model
from train.checkpoints.kinds import Shape
from train.checkpoints.model_json import (
    checkpoint_filesystem,
    write_atomically,
    write_model_description,
)


def write_beside(
    folder: str, description: Shape, entropy_models: Mapping[str, str | None], bpe: bytes | None
) -> None:
    """Write ``model.json``, the entropy model of a BLT's patches, and a tokenizer; one rank calls
    this when a run begins to train. Steps of earlier runs are read with these files, so a run that
    is refused, or saves nothing, leaves them as they are.

    Args:
        folder: directory or URL of all steps.
        description: see :func:`train.checkpoints.model_json.model_description`.
        entropy_models: see :func:`train.checkpoints.entropy_model.keep_entropy_model`.
        bpe: the content of the tokenizer whose tokens the model reads; None: it reads bytes.
    """
    write_model_description(folder, description)
    if isinstance(description, BLTConfig):
        missing = keep_entropy_model(folder, entropy_models)
        if missing is not None:
            logger.warning(f"Checkpoint: {missing}.")
    if bpe is not None:
        files, path = checkpoint_filesystem(folder)
        write_atomically(files, posixpath.join(path, TOKENIZER), bpe)
