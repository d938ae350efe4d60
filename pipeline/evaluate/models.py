"""The model that is evaluated or writes, and the rule that cuts text into patches for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from model.blt import BLT
from model.checkpoints.blt import load_blt
from model.checkpoints.blt_entropy_model import load_entropy_model_of
from model.checkpoints.entropy_model import (
    CheckpointError,
    computed_in,
    fingerprint,
    holds_entropy_model_alone,
    load_entropy_model,
    to_device,
)
from model.checkpoints.files import reading
from model.checkpoints.names import PUBLISHED
from model.checkpoints.places import local_directory
from model.entropy_model import EntropyModel
from model.patcher import Patcher
from model.provenance import EntropyModelIdentity, PatchProvenance
from model.short_context import ShortContextModel
from pipeline.errors import ConfigError
from pipeline.evaluate.provenance import (
    Say,
    choose_patcher,
    compare_with_training,
    recorded_reset,
)
from pipeline.patch.scoring import Scorer
from pipeline.patches import patch_stored


@dataclass(frozen=True)
class Patching:
    """A boundary rule, with what it needs to be applied to text."""

    patcher: Patcher
    entropy_model: EntropyModel | ShortContextModel | None
    """None where the rule reads no entropies."""
    reset_at_newline: bool = False

    def __call__(self, tokens_T: np.ndarray, lengths_D: np.ndarray) -> np.ndarray:
        """Patch lengths of documents laid end to end, by entropies as they would be stored."""
        if self.entropy_model is None:
            h_T = np.zeros(len(tokens_T), np.float16)
        else:
            scorer = Scorer(self.entropy_model, self.patcher, self.reset_at_newline)
            h_T = scorer.entropies(tokens_T, lengths_D)
        return self.by_entropies(h_T, tokens_T, lengths_D)

    def by_entropies(
        self, h_T: np.ndarray, tokens_T: np.ndarray, lengths_D: np.ndarray
    ) -> np.ndarray:
        """Patch lengths of documents laid end to end.

        Args:
            h_T: entropies as they would be stored: float16, nats.
        """
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
        ConfigError: it cannot be loaded, or gives no probabilities.
    """
    model: BLT | EntropyModel | ShortContextModel
    try:
        with reading("model", directory):
            alone = holds_entropy_model_alone(Path(directory))
        if alone:
            model = load_entropy_model(directory, device=device)
        else:
            model = load_blt(directory, device=device)
    except CheckpointError as error:
        raise ConfigError(f"--model: {error}") from error
    if isinstance(model, ShortContextModel):
        raise ConfigError(
            f"--model: {directory} is {model.title}: it gives entropies and no probabilities, "
            "so it has no bits per byte; give a BLT or a transformer entropy model"
        )
    return model


@dataclass(frozen=True)
class PatchFlags:
    """The flags that say how text is patched; each job's configuration has them."""

    entropy_model: str | None = None
    """Directory, URL or hub id, instead of the one that lies with the BLT."""
    rule: str | None = None
    threshold: float | None = None
    """Nats, instead of the checkpoint's."""
    reset_at_newline: bool = False
    allow_other_entropies: bool = False

    @classmethod
    def of(cls, config: object) -> "PatchFlags":
        """The flags among the fields of a job's configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


def load_patching(model: BLT, source: str, directory: str, flags: PatchFlags, say: Say) -> Patching:
    """The rule that cuts text into patches for ``model``, computed on the model's device.

    Args:
        source: what the user called the model.
        directory: where it lies on this machine, perhaps with its entropy model.
        say: prints what is to be known about the patches.

    Raises:
        ConfigError: there is no rule or no entropy model, or another than the one that the model
            was trained with; says what to give.
    """
    config = model.config
    patcher = choose_patcher(config, flags.rule, flags.threshold)
    if patcher.ends_from is not None:
        raise ConfigError(
            f"--rule: the patches of {source} follow {patcher}, whose boundaries come from a "
            f"{patcher.ends_from} and not from the text: it can be measured on shards that have "
            "them (evaluate.py --shards), and cannot write"
        )
    scoring, identity, reset = None, None, False
    if patcher.reads_entropies:
        scoring = _load_entropy_model(model, source, directory, flags.entropy_model)
        # The weights in the dtype that they are scored in may have another fingerprint.
        recorded = any(each.identified for each in config.patch_provenance)
        known = fingerprint(scoring) if recorded else None
        scoring = to_device(scoring, model.device)
        reset = flags.reset_at_newline or recorded_reset(config.patch_provenance, known)
        name = flags.entropy_model or source
        identity = EntropyModelIdentity(name, known, computed_in(scoring), reset)
    elif flags.entropy_model is not None:
        raise ConfigError(
            f"--entropy-model: the {patcher.rule} rule of {directory} needs none; leave it out"
        )
    compare_with_training(
        config,
        PatchProvenance(patcher, identity),
        "this run",
        flag="--entropy-model",
        allowed=flags.allow_other_entropies,
        say=say,
    )
    return Patching(patcher, scoring, reset)


def _load_entropy_model(
    model: BLT, source: str, directory: str, given: str | None
) -> EntropyModel | ShortContextModel:
    """The entropy model that was given, or lies with a BLT, on the CPU.

    Raises:
        ConfigError: there is none; says which to give.
    """
    try:
        if given is not None:
            return load_entropy_model(given, device="cpu", dtype=torch.float32)
        published = source.removeprefix("hf://") in PUBLISHED
        place = source if published else directory
        return load_entropy_model_of(place, device="cpu", dtype=torch.float32)
    except CheckpointError as error:
        models = [str(e.entropy_model) for e in model.config.patch_provenance if e.entropy_model]
        named = f": {' or '.join(dict.fromkeys(models))}" if models else ""
        hint = f"; give the one whose patches the model was trained on{named}"
        raise ConfigError(f"--entropy-model: {error}{'' if given else hint}") from error
