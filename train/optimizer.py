"""AdamW over all parameters, and a learning rate of its own for the latent transformer."""

import copy
import math
from dataclasses import dataclass, replace

from torch import nn
from torchtitan.components.optimizer import OptimizersContainer

from pipeline.errors import ConfigError


class BLTOptimizers(OptimizersContainer):
    """torchtitan's optimizers; a factor divides the parameters into two groups."""

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        latent_lr_factor: float = 1.0
        """Learning rate of the latent transformer as a multiple of that of the other parts. The
        paper takes 0.1 where the latent transformer begins with Llama's weights (section 6.2)."""

        def __post_init__(self) -> None:
            if not 0 <= self.latent_lr_factor < math.inf:
                raise ConfigError(
                    f"--optimizer.latent-lr-factor: from 0 on, got {self.latent_lr_factor}"
                )

    def __init__(self, config: Config, *, model_parts: list[nn.Module]):
        if config.latent_lr_factor != 1:
            (of_all,) = config.param_groups
            kwargs = of_all.optimizer_kwargs
            of_latent = {**kwargs, "lr": kwargs["lr"] * config.latent_lr_factor}
            latent = replace(of_all, pattern=r"^global_transformer\.", optimizer_kwargs=of_latent)
            config = copy.copy(config)
            config.param_groups = [latent, of_all]  # the first pattern that fits a name counts
        super().__init__(config, model_parts=model_parts)
