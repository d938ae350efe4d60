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

    ``steps=-1`` is safe here: all ranks get the same number of batches, because the dataloader
    fills the last one up with empty rows.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: ShardDataLoader.Config = field(default_factory=ShardDataLoader.Config)
        """Held-out shards: --validator.dataloader.shards."""

    def __init__(self, config: Config, **kwargs: Any):
        """
        Raises:
            ConfigError: a setting of the dataloader is wrong; names it.
            PipelineError: the shards cannot be read.
        """
        super().__init__(config, **kwargs)
        names = ("dp_world_size", "dp_rank", "seq_len", "local_batch_size")
        try:  # torchtitan would open the shards only after the first steps
            loader = self.dl_config.build(**{name: kwargs[name] for name in names})
        except ConfigError as error:
            raise ConfigError(f"--validator.{str(error).removeprefix('--')}") from error

        self.provenance = loader.stream.provenance
        """How the patches of each validation set were made."""

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
