"""Validation on shards, in bits per byte."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torchtitan.components.validate import Validator

from pipeline.errors import ConfigError
from train.data.dataloader import ShardDataLoader
from train.metrics import Counts


class ShardValidator(Validator):
    """torchtitan's validator, over all of the validation shards.

    Every rank gets as many batches as the others (the dataloader fills up with empty rows), so that
    ``steps=-1`` is safe here.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: ShardDataLoader.Config = field(default_factory=ShardDataLoader.Config)
        """Shards that are held out: --validator.dataloader.shards."""

    def __init__(self, config: Config, **kwargs: Any):
        """
        Raises:
            ConfigError: a setting of the shards is wrong; names it.
            PipelineError: the shards cannot be used.
        """
        super().__init__(config, **kwargs)
        reading = ("dp_world_size", "dp_rank", "seq_len", "local_batch_size")
        try:  # Now, rather than after the first steps.
            self.dl_config.build(**{name: kwargs[name] for name in reading})
        except ConfigError as error:
            raise ConfigError(f"--validator.{str(error).removeprefix('--')}") from error

    def post_dataloading_process(
        self, input_dict: dict[str, Tensor], labels: Tensor, model_parts: list[nn.Module]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Count the batch on its way to the model; labels in int64, as losses want them."""
        self.metrics_processor.of_validation.add(input_dict, labels)
        return super().post_dataloading_process(input_dict, labels.long(), model_parts)

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """One pass; the result goes to the metrics."""
        self.metrics_processor.of_validation = Counts()
        super().validate(model_parts, step)
