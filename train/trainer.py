"""torchtitan's trainer, told how to count bytes."""

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
from train.metrics import Counts

Batch = tuple[dict[str, Tensor], Tensor]


class ByteTrainer(Trainer):
    """The same loop; batches are counted, and checkpoints say what model they are of."""

    @dataclass(kw_only=True, slots=True)
    class Config(Trainer.Config):
        def __post_init__(self) -> None:
            Trainer.Config.__post_init__(self)
            _refuse_what_does_not_work(self)

    def __init__(self, config: Config):
        super().__init__(config)
        if config.checkpoint.enable and torch.distributed.get_rank() == 0:
            write_model_description(self.checkpointer.folder, self._described())

    def _described(self) -> Shape:
        """The shape, with the boundary rule of the shards if they share one."""
        shape = self.model_config.shape
        rules = self.dataloader.stream.patchers
        if isinstance(shape, BLTConfig) and all(rule == rules[0] for rule in rules):
            return replace(shape, patcher=rules[0])
        return shape

    def init_distributed(self) -> ParallelDims:
        """
        Raises:
            ConfigError: the ranks or the batch cannot be divided like this.
        """
        if filesystem.is_remote(self.config.dump_folder):
            # torchtitan would make a local directory that is called like the URL.
            self.config.comm.save_traces_folder = f"{tempfile.gettempdir()}/comm_traces"
        try:
            dims = super().init_distributed()
        except AssertionError as error:
            degrees = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
            given = {name: getattr(self.config.parallelism, f"{name}_degree") for name in degrees}
            told = ", ".join(f"{name} {degree}" for name, degree in given.items())
            raise ConfigError(
                f"--parallelism.*-degree: {told}: their product has to be the number of processes, "
                f"{torch.distributed.get_world_size()} (-1 stands for what is left)"
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
        """torchtitan's, with the tokens of all ranks: the next run may have more or fewer."""
        return super().state_dict() | {"ntokens_seen": self.ntokens_seen * self._data_ranks()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        of_rank = round(state_dict["ntokens_seen"] / self._data_ranks())
        super().load_state_dict(state_dict | {"ntokens_seen": of_rank})

    def _data_ranks(self) -> int:
        """Ranks that read different rows."""
        return self.parallel_dims.dp_replicate * self.parallel_dims.dp_shard

    def train(self) -> None:
        """Train to the end, if that was not done before."""
        steps, checkpoint = self.config.training.steps, self.config.checkpoint
        any_step = checkpoint.enable and checkpoint.load_step == -1
        if any_step and self.checkpointer.holds_final_weights(steps):
            logger.info(f"All {steps} steps were done before.")
            return
        super().train()

    def batch_generator(self, data_iterable: Iterable[Batch]) -> Iterator[Batch]:
        """Batches, counted on their way."""
        for inputs, labels in super().batch_generator(data_iterable):
            self.metrics_processor.count(inputs, labels)
            yield inputs, labels

    def post_dataloading_process(
        self, input_dict: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """On their way to the model, on its device: int64 labels, as losses want them."""
        return super().post_dataloading_process(input_dict, labels.long())

    def train_step(self, data_iterator: Iterator[Batch]) -> Any:
        """One step; the loss that is logged is a mean over what it counts."""
        self.metrics_processor.of_step = Counts()
        return super().train_step(data_iterator)


def _refuse_what_does_not_work(config: ByteTrainer.Config) -> None:
    """
    Raises:
        ConfigError: a way of training that BLT can't use; the message names the flag.
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
            "--dataloader.no-infinite: is for validation, where torchtitan keeps what was done "
            "before the end; say with --training.steps how long to train"
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
