"""Validation on shards, in bits per byte."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torchtitan.components.validate import Validator
from torchtitan.tools.utils import device_type

from pipeline.errors import ConfigError
from train.data.dataloader import Microbatch, ShardDataLoader
from train.data.in_step import in_step
from train.metrics import Counts


class _InStep:
    """Builds what torchtitan iterates over instead of a loader of these settings."""

    def __init__(self, config: ShardDataLoader.Config):
        self.config = config

    def build(self, **kwargs: Any) -> Iterator[Microbatch]:
        return in_step(self.config.build(**kwargs), device_type)


class ShardValidator(Validator):
    """torchtitan's validator, over all of the validation shards.

    ``steps=-1`` is safe here: ranks without rows get empty batches until no rank has any left.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: ShardDataLoader.Config = field(default_factory=ShardDataLoader.Config)
        """Held-out shards: --validator.dataloader.shards."""

    dl_config: Any

    def __init__(self, config: Config, **kwargs: Any):
        """
        Raises:
            ConfigError: a setting of the dataloader is wrong; names it.
            PipelineError: the shards cannot be read.
        """
        super().__init__(config, **kwargs)
        names = ("dp_world_size", "dp_rank", "seq_len", "local_batch_size")
        try:  # torchtitan would open the shards only after the first steps
            self.dl_config.build(**{name: kwargs[name] for name in names})
        except ConfigError as error:
            raise ConfigError(f"--validator.{str(error).removeprefix('--')}") from error
        if not self.dl_config.infinite:
            self.dl_config = _InStep(self.dl_config)

    def post_dataloading_process(
        self, input_dict: dict[str, Tensor], labels: Tensor, model_parts: list[nn.Module]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Count the batch; torchtitan's processing, with labels in int64."""
        self.metrics_processor.validation_counts.add(input_dict, labels)
        return super().post_dataloading_process(input_dict, labels.long(), model_parts)

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Evaluate the validation shards once; the metrics log the result."""
        self.metrics_processor.validation_counts = Counts()
        super().validate(model_parts, step)
