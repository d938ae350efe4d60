"""torchtitan's trainer, extended to count bytes and to describe the model of its checkpoints."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchtitan.distributed import ParallelDims
from torchtitan.tools import filesystem
from torchtitan.tools.logging import logger
from torchtitan.trainer import Trainer

from model import BLTConfig
from pipeline.errors import ConfigError
from train.checkpoints.model_json import Shape, write_model_description
from train.data.dataloader import Microbatch
from train.metrics import Counts
from train.table_optimizer import clipping_tables


class ByteTrainer(Trainer):
    """torchtitan's loop, which counts each microbatch and writes ``model.json``."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        def __post_init__(self) -> None:
            Trainer.Config.__post_init__(self)
            _check_config(self)

    def __init__(self, config: Config):
        super().__init__(config)
        if config.checkpoint.enable and torch.distributed.get_rank() == 0:
            write_model_description(self.checkpointer.folder, self._model_description())

    def _model_description(self) -> Shape:
        """The model's shape, with the boundary rule of the shards if all of them have the same."""
        shape = self.model_config.shape
        rules = self.dataloader.stream.patchers
        if isinstance(shape, BLTConfig) and all(rule == rules[0] for rule in rules):
            return replace(shape, patcher=rules[0])
        return shape

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
        training = self.config.training
        if training.local_batch_size < 1:
            raise ConfigError(
                f"--training.local-batch-size: at least 1, got {training.local_batch_size}"
            )
        ranks = dims.dp_replicate * dims.dp_shard
        rows = training.local_batch_size * ranks
        if training.global_batch_size % rows and training.global_batch_size > 0:
            raise ConfigError(
                f"--training.global-batch-size: {training.global_batch_size} is no multiple of "
                f"{rows}, the rows that all ranks take at once (--training.local-batch-size "
                f"{training.local_batch_size} on {ranks} ranks)"
            )
        return dims

    def state_dict(self) -> dict[str, Any]:
        """torchtitan's state, with the tokens of all ranks: another number of ranks may resume."""
        return super().state_dict() | {"ntokens_seen": self.ntokens_seen * self._data_ranks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, with this rank's share of the tokens."""
        rank_tokens = round(state_dict["ntokens_seen"] / self._data_ranks())
        super().load_state_dict(state_dict | {"ntokens_seen": rank_tokens})

    def _data_ranks(self) -> int:
        """The number of ranks that read different rows."""
        return self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard

    def train(self) -> None:
        """Train to the last step, unless an earlier run has done so and saved weights only."""
        steps, checkpoint = self.config.training.steps, self.config.checkpoint
        any_step = checkpoint.enable and checkpoint.load_step == -1
        if any_step and self.checkpointer.holds_final_weights(steps):
            logger.info(f"All {steps} steps were done before.")
            return
        super().train()

    def batch_generator(self, data_iterable: Iterable[Microbatch]) -> Iterator[Microbatch]:
        """Yield torchtitan's batches, and count each."""
        for inputs, labels in super().batch_generator(data_iterable):
            self.metrics_processor.count(inputs, labels)
            yield inputs, labels

    def post_dataloading_process(
        self, input_dict: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """torchtitan's processing, with labels in int64, which its losses require."""
        return super().post_dataloading_process(input_dict, labels.long())

    def train_step(self, data_iterator: Iterator[Microbatch]) -> Any:
        """Train one step; its counts turn the mean loss into bits per byte."""
        self.metrics_processor.step_counts = Counts()
        with clipping_tables(self.model_parts):
            return super().train_step(data_iterator)


def _check_config(config: ByteTrainer.Config) -> None:
    """
    Raises:
        ConfigError: a flag asks for a way of training that these models cannot use; names it.
    """
    parallelism = config.parallelism
    for flag, why in (
        ("pipeline_parallel_degree", "bytes skip from the encoder to the decoder past all stages"),
        ("context_parallel_degree", "patches of one document would lie on several ranks"),
        ("expert_parallel_degree", "there are no experts"),
    ):
        if getattr(parallelism, flag) != 1:
            name = flag.replace("_", "-")
            raise ConfigError(f"--parallelism.{name}: not supported: {why}; leave it at 1")
    if parallelism.spmd_backend != "partial_dtensor":
        raise ConfigError(
            f"--parallelism.spmd-backend: {parallelism.spmd_backend} needs torchtitan's own "
            "modules, and BLT is plain PyTorch; leave it at partial_dtensor"
        )
    if not config.dataloader.infinite:
        raise ConfigError(
            "--dataloader.no-infinite: is for validation only; set the length of a training with "
            "--training.steps"
        )
    metrics = config.metrics
    if filesystem.is_remote(config.dump_folder):
        for name in ("enable_tensorboard", "enable_wandb"):
            if getattr(metrics, name) and not Path(metrics.save_tb_folder).is_absolute():
                raise ConfigError(
                    f"--metrics.{name}: writes local files, and --dump-folder is a URL; give "
                    "--metrics.save-tb-folder an absolute path"
                )
    if not torch.cuda.is_available():
        if config.compile.enable and "model" in config.compile.components:
            raise ConfigError(
                "--compile.enable: needs a GPU: the CPU's attention has shapes that depend on the "
                "documents; leave it out, or compile the loss alone: --compile.components loss"
            )
        if not config.training.disable_cuda_graphs:
            raise ConfigError("--training.disable-cuda-graphs: there is no GPU; leave it on")
        if config.training.mixed_precision_param != "float32":
            raise ConfigError(
                "--training.mixed-precision-param: bfloat16 needs a GPU; on a CPU use float32"
            )
    sharded = getattr(parallelism, "hash_tables", "plain") == "sharded"
    if sharded and config.model_spec is not None and config.model_spec.name == "blt":
        for flag, given in (
            (
                "optimizer.implementation fused_opt_states_bf16",
                config.optimizer.implementation == "fused_opt_states_bf16",
            ),
            ("training.no-disable-cuda-graphs", not config.training.disable_cuda_graphs),
        ):
            if given:
                raise ConfigError(
                    f"--{flag}: needs gradients of whole hash tables; leave it out, or add "
                    "--parallelism.hash-tables plain"
                )
