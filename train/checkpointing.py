"""Activation checkpointing that computes no product twice.

torchtitan's selective checkpointing computes every second matrix product again in the backward
pass: an eighth of the FLOPs of a step. Here each layer keeps the results of all its products and of
its attention, and computes again what a compiler fuses to passes over memory: norms, rotations,
SiLU, lookups and sums. For blt_1b that keeps half as much again
(``tests/benchmarks/RESULTS.md``).
"""

from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torchtitan.distributed.activation_checkpoint import (
    ActivationCheckpointing,
    ActivationCheckpointingConfig,
    SelectiveAC,
)


class ProductsAC(SelectiveAC):
    """Keeps what torchtitan's selective checkpointing keeps, and every product."""

    @dataclass(kw_only=True, slots=True)
    class Config(ActivationCheckpointing.Config):
        """torchtitan's settings."""

    def _wrap_block(self, module: nn.Module, *, base_fqn: str | None = None) -> nn.Module:
        kept = self.get_save_ops()

        def policy(ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            if operation in kept:
                return CheckpointPolicy.MUST_SAVE
            return CheckpointPolicy.PREFER_RECOMPUTE

        return checkpoint_wrapper(
            module,
            context_fn=lambda: create_selective_checkpoint_contexts(policy),
            preserve_rng_state=self.config.preserve_rng_state,
            determinism_check=self.config.determinism_check,
            early_stop=False,
            debug=self.config.debug,
        )


Checkpointing = (
    Annotated[ProductsAC.Config, tyro.conf.subcommand("products")] | ActivationCheckpointingConfig
)
"""The ways of checkpointing that a configuration can have; ``--help`` lists them."""
