"""Texts that the model writes while it is trained: into the log, a file and TensorBoard.

Whatever the sharding, every rank takes part in gathering the weights, one after another, and rank 0
puts them into a model of its own, which writes on rank 0's device while the others wait. So rank 0
needs room for a whole copy in the dtype of the computation (2 bytes per parameter in bfloat16; on a
GPU not quite twice that, because matrices are joined) beside the training, and the run stands still
for as long as the writing takes: at most half of ``--comm.train-timeout-seconds``, because the
other ranks give up after all of it. That is meant for up to about 8 ranks, or rare samples; larger
models write from their checkpoints (``jobs/convert_checkpoint.py`` and ``jobs/generate.py``).

A BLT needs patches of what it writes. Their boundaries follow the rule of the shards; if it reads
entropies, the model that gave the shards theirs has to be loaded.
"""

import json
import posixpath
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtitan.tools.logging import logger

from model import BLT, BLTConfig, EntropyModel, Patcher
from model.checkpoints.building import build, ready
from model.checkpoints.entropy_model import fingerprint, load_entropy_model
from model.checkpoints.files import CheckpointError
from model.checkpoints.names import BUILT_IN
from model.generation.generate import stream
from model.generation.sampling import Sampling
from model.short_context import ShortContextModel
from model.token_transformer import TokenTransformerConfig
from pipeline.errors import ConfigError
from train.checkpoints.collective import on_rank_0
from train.checkpoints.kinds import Shape
from train.checkpoints.model_json import checkpoint_filesystem, write_atomically
from train.data.row_stream import RowStream

SAMPLES_FOLDER = "samples"
FITTED_MODEL = "entropy-model"
"""Directory of the n-gram model in a shard set."""


@dataclass(kw_only=True, slots=True)
class SamplesConfig:
    """Texts that the model writes during training."""

    freq: int = 0
    """Steps from one sample of generated text to the next; 0: none."""
    prompts: tuple[str, ...] = ("",)
    """Texts to write on from; the empty one lets the model begin a document."""
    prompts_file: str | None = None
    """A file with a prompt in each line, instead of --samples.prompts."""
    max_new_bytes: int = 128
    """The most bytes that are written after each prompt."""
    temperature: float = 0.8
    """0 always takes the likeliest byte; higher draws more freely."""
    entropy_model: str | None = None
    """Directory, URL or hub id of the entropy model that places the boundaries; default: the n-gram
    model in the shard set, or entropy-1m if the shards were made with it."""


class Samples:
    """Writes texts with the weights of a training."""

    def __init__(
        self,
        config: SamplesConfig,
        shape: Shape,
        stream: RowStream,
        *,
        folder: str,
        dtype: torch.dtype,
        device: torch.device,
        max_seconds: float,
    ):
        """
        Args:
            stream: the rows that are trained on, whose patches are imitated.
            folder: directory or URL of the run.
            max_seconds: time after which texts are broken off.

        Raises:
            ConfigError: a setting is wrong, or the entropy model cannot be used; on all ranks.
        """
        self.config, self.shape, self.folder = config, shape, folder
        self.dtype, self.device, self.max_seconds = dtype, device, max_seconds
        self.patcher, self.reset_at_newline = _patching(shape, stream)
        on_rank_0(lambda: self._prepare(stream))

    def _prepare(self, stream: RowStream) -> None:
        config = self.config
        try:
            self.sampling = Sampling(config.temperature)
        except ValueError as error:
            raise ConfigError(f"--samples.{error}") from error
        if config.max_new_bytes < 1:
            raise ConfigError(f"--samples.max-new-bytes: at least 1, got {config.max_new_bytes}")
        self.prompts = list(config.prompts)
        if config.prompts_file is not None:
            try:
                self.prompts = Path(config.prompts_file).read_text("utf-8").splitlines()
            except (OSError, ValueError) as error:
                raise ConfigError(f"--samples.prompts-file: {error}") from error
        if not self.prompts:
            raise ConfigError("--samples.prompts: there is none; give one, or --samples.freq 0")
        reads_entropies = self.patcher is not None and self.patcher.reads_entropies
        self.entropy_model = self._entropy_model(stream) if reads_entropies else None

    def _entropy_model(self, stream: RowStream) -> EntropyModel | ShortContextModel:
        """The entropy model, which has to be that of a shard set.

        Raises:
            ConfigError: it cannot be loaded, or is another one.
        """
        given, shards = self.config.entropy_model, stream.sources[0].shards
        theirs = [source.shards.entropy_model for source in stream.sources]
        known = {each.fingerprint: each.source for each in theirs if each and each.fingerprint}
        # A set whose n-gram model was fitted for it holds that model.
        own = f"{shards.output.url}/{FITTED_MODEL}"
        place = given or (own if shards.output.exists(f"{FITTED_MODEL}/config.json") else BUILT_IN)
        try:
            model = load_entropy_model(place, device="cpu", dtype="stored")
            if fingerprint(model) not in known and (known or given is None):
                what = "the shards were patched by"
                names = ", ".join(map(str, known.values())) or "a model that they do not name"
                raise ConfigError(
                    f"--samples.entropy-model: {what} {names}, and this is another one"
                    if given
                    else f"--samples.entropy-model: {what} {names}: give it, because it places the "
                    "boundaries of what is written"
                )
            return load_entropy_model(place, device=self.device)
        except CheckpointError as error:
            raise ConfigError(f"--samples.entropy-model: {error}") from error

    def write(self, model: nn.Module, step: int) -> dict[str, str] | None:
        """Write texts with the model's present weights. All ranks call this together.

        Returns:
            the text after each prompt on rank 0; None on the others, or if there was no room
            or the weights give no numbers.
        """
        began = time.monotonic()
        try:
            weights = _whole_weights(model, self.dtype, self.device)
            if weights is None:
                return None
            texts = self._texts(weights, began + self.max_seconds)
        except torch.OutOfMemoryError:
            logger.warning(
                f"No samples at step {step}: {self.device} has no room for a whole copy of the "
                "model; write from the checkpoint (jobs/generate.py), and leave --samples.freq out"
            )
            return None
        except FloatingPointError as error:  # the training has diverged; it may recover
            logger.warning(f"No samples at step {step}: {error}")
            return None
        shown = [text.decode(errors="replace") for text in texts]
        for prompt, text in zip(self.prompts, shown, strict=True):
            logger.info(f"sample at step {step}: {prompt!r} -> {text!r}")
        self._save(step, shown)
        logger.info(f"samples took {time.monotonic() - began:.1f} s")
        return dict(zip(self.prompts, shown, strict=True))

    def _texts(self, weights: dict[str, Tensor], until: float) -> list[bytes]:
        def make() -> BLT | EntropyModel:
            assert not isinstance(self.shape, TokenTransformerConfig)  # refused with the flags
            return (
                BLT(self.shape) if isinstance(self.shape, BLTConfig) else EntropyModel(self.shape)
            )

        texts = [b"" for _ in self.prompts]
        pieces = stream(
            ready(build(make, weights), self.device, self.dtype),
            self.entropy_model,
            self.prompts,
            sampling=self.sampling,
            patcher=self.patcher,
            max_new_bytes=self.config.max_new_bytes,
            stop=(),
            seed=0,  # so that texts of different steps differ by the weights alone
            draft_bytes=0,
            reset_at_newline=self.reset_at_newline,
        )
        for piece in pieces:
            for index, new in piece:
                texts[index] += new
            if time.monotonic() > until:
                logger.warning(f"samples: broken off after {self.max_seconds:.0f} s")
                break
        return texts

    def _save(self, step: int, texts: list[str]) -> None:
        """Write a line of JSON for each prompt into the step's own file."""
        lines = [
            json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n"
            for prompt, text in zip(self.prompts, texts, strict=True)
        ]
        filesystem, path = checkpoint_filesystem(self.folder)
        target = posixpath.join(path, SAMPLES_FOLDER, f"step-{step}.jsonl")
        try:
            write_atomically(filesystem, target, "".join(lines).encode())
        except OSError as error:
            logger.warning(f"{self.folder}/{SAMPLES_FOLDER}: cannot be written: {error}")


def _patching(shape: Shape, stream: RowStream) -> tuple[Patcher | None, bool]:
    """The boundary rule of the first shard set, and whether context starts again at newlines.

    Raises:
        ConfigError: no text can be written with that rule.
    """
    if not isinstance(shape, BLTConfig):
        return None, False
    patchers = [each.patcher for each in stream.provenance]
    patcher = patchers[0]
    if any(other != patcher for other in patchers):
        logger.warning(f"samples: the shard sets have different rules; boundaries follow {patcher}")
    if patcher.needs_whole_document:
        raise ConfigError(
            f"--samples.freq: the {patcher.rule} rule of the shards chooses among a whole "
            "document, so that nothing can be written with it; leave the samples out"
        )
    made_by = stream.sources[0].shards.entropy_model
    return patcher, bool(made_by and made_by.reset_at_newline)


@torch.no_grad()
def _whole_weights(
    model: nn.Module, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor] | None:
    """A whole copy of the weights on rank 0, and None elsewhere. All ranks call this together.

    Raises:
        OutOfMemoryError: rank 0 has no room for it; the other ranks go on.
    """
    weights: dict[str, Tensor] = {}
    error = None
    for name, weight in model.state_dict().items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if dist.get_rank() == 0 and error is None:
            try:
                weights[name] = whole.detach().to(device, dtype)
            except torch.OutOfMemoryError as raised:
                error = raised
                weights.clear()
    if error is not None:
        raise error
    return weights if dist.get_rank() == 0 else None
