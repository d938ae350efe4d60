"""torchtitan's trainer, extended to count bytes, to describe the model of its checkpoints, and to
skip steps that are not finite."""

import contextlib
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchtitan.config import TORCH_DTYPE_MAP
from torchtitan.distributed import ParallelDims
from torchtitan.tools import filesystem
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from model import BLTConfig
from pipeline.errors import ConfigError
from train.checkpointing import Checkpointing, ProductsAC
from train.checkpoints.beside_steps import write_beside
from train.checkpoints.collective import on_rank_0
from train.checkpoints.kinds import Shape
from train.checkpoints.model_json import model_description
from train.checkpoints.shared_folder import check_shared
from train.data.held_out import validation_sets
from train.data.microbatches import Microbatch
from train.data.named import check_sets
from train.data.provenance import compare_validation, with_patches
from train.parallelize import (
    hold_gradients,
    holds_gradients,
    keep_unsharded,
    keeps_unsharded,
    sum_over_copies,
)
from train.refusals import check_batch, check_config, out_of_memory
from train.samples import Samples, SamplesConfig
from train.shape_flags import ShapeFlags, set_shape
from train.skipping import (
    NonFiniteGradientError,
    SkippedStep,
    SkippedSteps,
    SkippingConfig,
    check_weights,
    find_bad_rows,
    finite_gradients,
)
from train.table_optimizer import clipping_tables

SHOWN_NOTES = 10
"""Differences between shard sets that are logged one by one."""


class ByteTrainer(Trainer):
    """torchtitan's loop, which counts each microbatch and writes ``model.json``."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        activation_checkpoint: Checkpointing = field(default_factory=ProductsAC.Config)
        skipping: SkippingConfig = field(default_factory=SkippingConfig)
        samples: SamplesConfig = field(default_factory=SamplesConfig)

        shape: ShapeFlags
        """The shape of the model: the configuration's, changed by these flags."""

        def __post_init__(self) -> None:
            Trainer.Config.__post_init__(self)
            set_shape(self)
            if self.validator.enable and not self.validator.dataloader.shards:
                self.validator.dataloader.shards = validation_sets(self.dataloader.shards)
            if self.dataloader.allow_mixed_patches:
                self.validator.dataloader.allow_mixed_patches = True
            check_config(self)

    _description: Shape | None = None
    """The description that is still to be written beside the steps."""

    def __init__(self, config: Config):
        check_sets("--dataloader.shards", config.dataloader.shards)
        if config.validator.enable:
            check_sets("--validator.dataloader.shards", config.validator.dataloader.shards)
        super().__init__(config)
        self.checkpointer.training_steps = config.training.steps
        with contextlib.ExitStack() as alone:
            on_rank_0(lambda: alone.enter_context(self.checkpointer.written_alone()))
            self._prepare()
            self._alone = alone.pop_all()
            """Open to the end of the training: see :meth:`Checkpointer.written_alone`."""

    def _prepare(self) -> None:
        """Make what is needed beside torchtitan's parts."""
        config = self.config
        shape, notes = self.model_config.shape, self.dataloader.notes
        if isinstance(shape, BLTConfig):
            shape = with_patches(shape, self.dataloader.stream.provenance)
            notes = notes + self._compare_validation()
        description = on_rank_0(lambda: self._describe(shape, notes))
        saves = config.checkpoint.enable and not config.checkpoint.load_only
        folder = self.checkpointer.folder if saves else None
        self._description = description if saves else None
        if folder is not None:
            check_shared(folder)
        self.samples = self._make_samples() if config.samples.freq > 0 else None
        self.skipped = SkippedSteps(config.skipping, folder, self.dataloader.stream.fingerprint())
        self.metrics_processor.skipped_steps = len(self.skipped.steps)
        shards = self.parallel_dims.dp_shard
        self._keeps_unsharded = keeps_unsharded(config.parallelism, shards)
        self._holds_gradients = holds_gradients(config.training, shards)

    def _describe(self, shape: Shape, notes: list[str]) -> Shape:
        """Log what is to be said of the shard sets; what ``model.json`` has to hold."""
        held_out = ", ".join(self.config.validator.dataloader.shards)
        if self.config.validator.enable:
            logger.info(f"Validation: on {held_out}.")
        elif held_out := ", ".join(validation_sets(self.config.dataloader.shards)):
            logger.info(f"Validation: --validator.enable measures bits per byte on {held_out}.")
        for note in notes[:SHOWN_NOTES]:
            logger.warning(f"Patches: {note}.")
        if len(notes) > SHOWN_NOTES:
            logger.warning(f"Patches: {len(notes) - SHOWN_NOTES} more sets differ.")
        if not self.config.checkpoint.enable:
            return shape
        return model_description(
            self.checkpointer.folder,
            shape,
            initial=self.checkpointer.initial_load_path,
            allow_mixed_patches=self.config.dataloader.allow_mixed_patches,
        )

    def _write_beside(self, description: Shape) -> None:
        models, bpe = self.dataloader.stream.entropy_models, self.tokenizer.bpe
        content = None if bpe is None else bpe.content
        write_beside(self.checkpointer.folder, description, models, content)

    def _compare_validation(self) -> list[str]:
        if not self.config.validator.enable:
            return []
        return compare_validation(
            [p for held_out in self.validator.sets.values() for p in held_out.stream.provenance],
            self.dataloader.stream.provenance,
            allowed=self.config.dataloader.allow_mixed_patches,
        )

    def _make_samples(self) -> Samples:
        config = self.config
        return Samples(
            config.samples,
            self.model_config.shape,
            self.dataloader.stream,
            folder=config.dump_folder,
            dtype=TORCH_DTYPE_MAP[config.training.mixed_precision_param],
            device=self.device,
            max_seconds=config.comm.train_timeout_seconds / 2,
        )

    def init_distributed(self) -> ParallelDims:
        """
        Raises:
            ConfigError: the ranks or the batch cannot be divided as the flags ask.
        """
        if filesystem.is_remote(self.config.dump_folder):
            # torchtitan would create a local directory with the URL as its name.
            self.config.comm.save_traces_folder = f"{tempfile.gettempdir()}/comm_traces"
        try:
            dims = super().init_distributed()
        except AssertionError as error:
            degrees = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
            given = {name: getattr(self.config.parallelism, f"{name}_degree") for name in degrees}
            listed = ", ".join(f"{name} {degree}" for name, degree in given.items())
            raise ConfigError(
                f"--parallelism.*-degree: {listed}: their product has to be the number of "
                f"processes, {torch.distributed.get_world_size()} (-1 stands for what is left)"
            ) from error
        check_batch(self.config.training, dims.dp_replicate * dims.dp_shard)
        return dims

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's state, with the tokens of all ranks: another number of ranks may resume."""
        return super().state_dict() | {"ntokens_seen": self.ntokens_seen * self._data_ranks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, with this rank's share of the tokens; log if steps are larger or
        smaller than they were on average."""
        training = self.config.training
        steps, tokens = state_dict["step"], state_dict["ntokens_seen"]
        rows = training.local_batch_size * self._data_ranks() * self.gradient_accumulation_steps
        if tokens != steps * rows * training.seq_len:
            logger.warning(
                f"Batch: a step has {rows * training.seq_len:,} tokens, and had "
                f"{tokens / max(steps, 1):,.0f} on average up to step {steps}; "
                "--training.global-batch-size fixes how many rows it has, on any number of ranks"
            )
        rank_tokens = round(tokens / self._data_ranks())
        super().load_state_dict(state_dict | {"ntokens_seen": rank_tokens})

    def _data_ranks(self) -> int:
        """The number of ranks that read different rows."""
        return self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard

    def train(self) -> None:
        """Train to the last step, unless an earlier run has done so and saved weights only."""
        steps, checkpoint = self.config.training.steps, self.config.checkpoint
        any_step = checkpoint.enable and checkpoint.load_step == -1
        with self._alone:
            if any_step and self.checkpointer.holds_final_weights(steps):
                logger.info(f"All {steps} steps were done before.")
                return
            try:
                super().train()
            except BaseException:
                # Its threads write until it is done, so others may not write before.
                self.checkpointer.finish_saving()
                raise

    def close(self) -> None:
        """End torchtitan's parts; others may then write to the folder of the steps."""
        self._alone.close()
        super().close()

    def batch_generator(self, data_iterable: Iterable[Microbatch]) -> Iterator[Microbatch]:
        """Yield torchtitan's batches, count each, and keep those of the running step."""
        for inputs, labels in super().batch_generator(data_iterable):
            self.metrics_processor.count(inputs, labels, self.tokenizer.token_bytes)
            self.step_batches.append((inputs, labels, self.dataloader.last_rows))
            yield inputs, labels

    def post_dataloading_process(
        self, input_dict: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """torchtitan's processing, with labels in int64, which its losses require."""
        return super().post_dataloading_process(input_dict, labels.long())

    def forward_backward_step(self, **microbatch: Any) -> Tensor:
        """torchtitan's. Only the last microbatch of a step sums gradients over copies of the model;
        where a rank has whole weights and gradients anyway, the others leave them for the next."""
        self.microbatches_done += 1
        # A CUDA graph would repeat what one microbatch does in all of them.
        if self.gradient_accumulation_steps > 1 and self.config.training.disable_cuda_graphs:
            another = self.microbatches_done < self.gradient_accumulation_steps
            if self._keeps_unsharded:
                keep_unsharded(self.model_parts[0], another)
            if self._holds_gradients:
                hold_gradients(self.model_parts[0], another)
            elif self.parallel_dims.dp_replicate_enabled:
                sum_over_copies(self.model_parts[0], not another)
        return super().forward_backward_step(**microbatch)

    def train_step(self, data_iterator: Iterator[Microbatch]) -> Any:
        """Train one step, and write samples if it is time.

        Raises:
            ConfigError: the device has no memory for it.
        """
        if (description := self._description) is not None:
            on_rank_0(lambda: self._write_beside(description))
            self._description = None
        try:
            self._train_or_skip(data_iterator)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(self.config, error) from error
        if self.samples is not None and self.step % self.config.samples.freq == 0:
            began = time.perf_counter()
            texts = self.samples.write(self.model_parts[0], self.step)
            self.metrics_processor.add_samples(texts or {}, self.step, time.perf_counter() - began)

    def _train_or_skip(self, data_iterator: Iterator[Microbatch]) -> None:
        """Train one step, or skip it: see :mod:`train.skipping`. The step's counts turn the mean
        loss into bits per byte."""
        self.metrics_processor.begin_step()
        self.step_batches: list[tuple[dict[str, Tensor], Tensor, Sequence[int]]] = []
        self.microbatches_done = 0
        first = self.dataloader.rows_read
        rows = self.config.training.local_batch_size * self._data_ranks()
        stop = first + rows * self.gradient_accumulation_steps
        if known := self.skipped.holding(first, stop, self.dataloader.stream.lanes):
            for _ in range(self.gradient_accumulation_steps):
                self.ntokens_seen += next(data_iterator)[1].numel()
            self._step_schedule()
            logger.warning(f"Step {self.step} is passed over; it was skipped before: {known}.")
            return
        try:
            with clipping_tables(self.model_parts), finite_gradients():
                super().train_step(data_iterator)
            self.skipped.in_a_row = 0
        except NonFiniteGradientError as error:
            self._skip_step(first, error.norm)

    def _skip_step(self, first: int, norm: float) -> None:
        """Find the bad rows of the running step, and record the step as skipped.

        Raises:
            PipelineError: the weights are not finite, or the budget is used up.
        """
        check_weights(self.model_parts[0], self.skipped.folder)
        with self.train_context():
            bad_rows = find_bad_rows(self.model_parts[0], self.step_batches, self.tokenizer.decode)
        self._step_schedule()
        self.skipped.add(
            SkippedStep(
                step=self.step,
                first_row=first,
                stop_row=self.dataloader.rows_read,
                rows_of=self.skipped.rows_of,
                gradient_norm=str(norm),
                bad_rows=bad_rows,
                lanes=self.dataloader.stream.lanes,
            )
        )
        self.metrics_processor.skipped_steps = len(self.skipped.steps)

    def _step_schedule(self) -> None:
        with warnings.catch_warnings():  # the optimizer makes no step, intentionally
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.lr_schedulers.step()
