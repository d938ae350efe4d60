"""AdamW over all parameters, with the settings of the run that trains, and a learning rate of its
own for the latent transformer."""

import copy
import math
import re
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.tools.logging import logger

from pipeline.errors import ConfigError

LATENT = r"^global_transformer\."
"""The names of the latent transformer's parameters."""


def group_names(optimizers: OptimizersContainer) -> dict[str, str]:
    """The names of learning rates in the log, for the names that torchtitan gives them.

    torchtitan numbers the groups of an optimizer: ``lr/AdamW/0``. Where a model has groups, that of
    the latent transformer is called ``lr/AdamW/latent``, and the one with all other parameters
    ``lr/AdamW/rest``.
    """
    names = {}
    for optimizer in optimizers:
        kind, groups = type(optimizer).__name__, optimizer.param_groups
        for i, group in enumerate(groups if len(groups) > 1 else ()):
            is_latent = all(re.match(LATENT, name) for name in group["param_names"])
            names[f"lr/{kind}/{i}"] = f"lr/{kind}/{'latent' if is_latent else 'rest'}"
    return names


GROUPS = "param_groups."
"""The beginning of the names of settings in a state; those of moments begin with ``state.``."""


class Optimizers(OptimizersContainer):
    """torchtitan's optimizers, with the run's own settings also where it resumes.

    A checkpoint holds the settings that it was trained with, beside the moments. torchtitan takes
    both, so that a run that is to go on with another weight decay would say so in its log and keep
    the one before. The rate follows the run's schedule: see :mod:`train.checkpoints.manager`.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        """torchtitan's settings; its ``build`` makes this class."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the moments of a state; log which settings were others."""
        own = {name: value for name, value in self.state_dict().items() if name.startswith(GROUPS)}
        changed = set()
        for name, value in own.items():
            setting = name.rpartition(".")[2]
            was, is_now = _plain(state_dict[name]), _plain(value)
            if was != is_now and setting != "lr":  # which the schedule changes
                changed.add(f"{setting.removeprefix('initial_')} was {was} and is {is_now}")
        if changed:
            logger.warning(f"Optimizer: {', '.join(sorted(changed))} from here on.")
        super().load_state_dict({**state_dict, **own})


def _plain(setting: Any) -> Any:
    return tuple(setting) if isinstance(setting, list) else setting


class BLTOptimizers(Optimizers):
    """The optimizers of a BLT; a factor divides the parameters into two groups."""

    @dataclass(kw_only=True, slots=True)
    class Config(Optimizers.Config):
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
            latent = replace(of_all, pattern=LATENT, optimizer_kwargs=of_latent)
            config = copy.copy(config)
            config.param_groups = [latent, of_all]  # the first pattern that fits a name counts
        super().__init__(config, model_parts=model_parts)
