"""The model that is evaluated or writes, and the rule that cuts text into patches for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.blt import BLT
from model.checkpoints.blt import PUBLISHED, load_blt, load_entropy_model_of
from model.checkpoints.entropy_model import (
    CheckpointError,
    holds_entropy_model_alone,
    load_entropy_model,
)
from model.checkpoints.files import local_directory, reading
from model.entropy_model import EntropyModel
from model.ngram import NGramEntropyModel
from model.patcher import Patcher
from pipeline.errors import ConfigError
from pipeline.patch.scoring import Scorer
from pipeline.patches import patch_stored


@dataclass(frozen=True)
class Patching:
    """A boundary rule, with what it needs to be applied to text."""

    patcher: Patcher
    entropy_model: EntropyModel | NGramEntropyModel | None
    """None where the rule reads no entropies."""
    reset_at_newline: bool = False

    def __call__(self, tokens_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
        """Patch lengths of documents laid end to end, by entropies as they would be stored."""
        if self.entropy_model is None:
            h_T = np.zeros(len(tokens_T), np.float16)
        else:
            scorer = Scorer(self.entropy_model, self.patcher, self.reset_at_newline)
            h_T = scorer.entropies(tokens_T, lengths_D)
        return patch_stored(self.patcher, h_T, lengths_D, tokens_T).patch_lengths_P


@contextmanager
def fetched(source: str) -> Iterator[str]:
    """The model's directory on this machine; errors call it what the user called it.

    Raises:
        ConfigError: it cannot be reached.
    """
    try:
        with local_directory("model", source) as directory:
            try:
                yield str(directory)
            except ConfigError as error:
                said = str(error)
                if directory.is_absolute():  # else it is what the user called it
                    said = said.replace(str(directory), source.rstrip("/"))
                raise ConfigError(said) from error
    except CheckpointError as error:
        raise ConfigError(f"--model: {error}") from error


def load_model(directory: str, device: str | None = None) -> BLT | EntropyModel:
    """A model that gives bytes probabilities, whichever kind it is.

    Args:
        device: a GPU if there is one, by default.

    Raises:
        ConfigError: it cannot be loaded, or is an n-gram model.
    """
    model: BLT | EntropyModel | NGramEntropyModel
    try:
        with reading("model", directory):
            alone = holds_entropy_model_alone(Path(directory))
        if alone:
            model = load_entropy_model(directory, device=device)
        else:
            model = load_blt(directory, device=device)
    except CheckpointError as error:
        raise ConfigError(f"--model: {error}") from error
    if isinstance(model, NGramEntropyModel):
        raise ConfigError(
            f"--model: {directory} is an n-gram model: it stores entropies and no probabilities, "
            "so it has no bits per byte; give a BLT or a transformer entropy model"
        )
    return model


def load_patching(
    model: BLT,
    source: str,
    directory: str,
    entropy_model: str | None,
    threshold: float | None,
    *,
    reset_at_newline: bool = False,
) -> Patching:
    """The rule that cuts text into patches for ``model``, computed on the model's device.

    Args:
        source: what the user called the model.
        directory: where it lies on this machine, perhaps with its entropy model.
        entropy_model: where to take the entropy model from instead.
        threshold: nats, instead of the checkpoint's.

    Raises:
        ConfigError: there is no rule or no entropy model; says what to give.
    """
    patcher = with_threshold(model.config.patcher, threshold)
    if not patcher.reads_entropies:
        if entropy_model is not None:
            raise ConfigError(
                f"--entropy-model: the {patcher.rule} rule of {directory} needs none; leave it out"
            )
        return Patching(patcher, None)
    try:
        if entropy_model is not None:
            scoring = load_entropy_model(entropy_model, device=model.device)
        else:
            published = source.removeprefix("hf://") in PUBLISHED
            scoring = load_entropy_model_of(source if published else directory, device=model.device)
    except CheckpointError as error:
        hint = "" if entropy_model else "; give the one whose patches the model was trained on"
        raise ConfigError(f"--entropy-model: {error}{hint}") from error
    return Patching(patcher, scoring, reset_at_newline)


def with_threshold(patcher: Patcher | None, threshold: float | None) -> Patcher:
    """
    Args:
        patcher: the rule that is known, if one is.
        threshold: nats, to replace its own.

    Raises:
        ConfigError: there is no rule, or it has no threshold.
    """
    if threshold is None:
        if patcher is None:
            raise ConfigError(
                "--threshold: the checkpoint does not say which rule its patches follow; give the "
                "threshold (nats) that it was trained with"
            )
        return patcher
    if patcher is None:
        return Patcher(threshold)
    if not patcher.has_threshold:
        raise ConfigError(f"--threshold: the {patcher.rule} rule has none; leave it out")
    return replace(patcher, threshold=threshold)
