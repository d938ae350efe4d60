"""AdamW and gradient clipping for sharded hash tables, whose gradients are of a few rows.

AdamW changes every row in every step, also rows without a gradient: moments decay, the decay of the
moments moves the weight, and weight decay shrinks it. So the update visits all rows of this rank's
shard, some at a time, with a gradient that is made dense for those rows alone. The result is bit by
bit that of torch's AdamW with a whole gradient.

Visiting rows only when they are looked up again was rejected: the missed steps have no closed form
(epsilon stands beside a root that decays), so each of them has to be computed anyway, before the
lookup; and every checkpoint has to catch up with all rows. What there is to gain is 24 bytes of
memory traffic per parameter of the shard and step. For blt_1b's tables that is 1.2 GB (half a
millisecond) on 64 ranks, and 74 GB (30 ms) on one GPU, whose products take 230 ms for the smallest
batch and more for those that are trained with.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adam import adam
from torchtitan.components.optimizer import OptimizersContainer
from torchtitan.distributed import utils as dist_utils

from pipeline.errors import ConfigError
from train.sharded_tables import RowGradient, ShardedTables, sharded_tables

CHUNK = 1 << 24
"""Values of a dense gradient: 64 MB."""
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
"""torch's names; AMSGrad alone has the last."""
SETTINGS = (
    *("lr", "weight_decay", "decoupled_weight_decay", "eps", "amsgrad", "maximize"),
    *("foreach", "fused", "capturable", "differentiable"),
)


class TableAdamW(torch.optim.AdamW):
    """torch's AdamW for sharded tables, with the same settings and the same state by name."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        gradients: Mapping[nn.Parameter, RowGradient],
    ):
        """
        Args:
            groups: parameter groups of an AdamW, with the tables as their parameters.
            gradients: the gradient of each table.
        """
        super().__init__(groups)
        self.gradients = gradients
        # From the beginning: torchtitan would create the state by a step with dense gradients.
        for group in self.param_groups:
            on_device = group["fused"] or group["capturable"]
            for table in group["params"]:
                device = table.to_local().device if on_device else "cpu"
                step = torch.zeros((), dtype=torch.float32, device=device)
                moments = MOMENTS if group["amsgrad"] else MOMENTS[:2]
                zeros = {name: torch.zeros_like(table.detach()) for name in moments}
                self.state[table] = {"step": step} | zeros

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the tables for which there was a backward since the last ``zero_grad``."""
        for group in self.param_groups:
            for table in group["params"]:
                gradient = self.gradients[table]
                if gradient.values is not None:
                    _update(table, gradient, self.state[table], group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for gradient in self.gradients.values():
            gradient.clear()


def _update(
    table: DTensor, gradient: RowGradient, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """One step of AdamW for one table."""
    weight = table.to_local()
    moments = [state[name].to_local() for name in MOMENTS if name in state]
    settings: dict[str, Any] = {name: group[name] for name in SETTINGS}
    settings["beta1"], settings["beta2"] = group["betas"]
    update: Any = adam
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    for start in range(0, len(weight) if weight.numel() else 0, rows):  # a rank may have no columns
        stop = start + rows
        # adam() counts each call as a step.
        lists = [[moment[start:stop]] for moment in moments] + [[]] * (3 - len(moments))
        update(
            [weight[start:stop]],
            [gradient.of_rows(start, stop).to(weight.dtype)],
            *lists,
            [state["step"].clone()],
            has_complex=False,
            **settings,
        )
    state["step"] += 1


def split_off_tables(
    optimizers: OptimizersContainer, model_parts: Sequence[nn.Module], parallel_dims: object
) -> None:
    """Give sharded tables an optimizer of their own, with the settings that they have; torchtitan
    calls it once the optimizers are there.

    Raises:
        ConfigError: the tables' optimizer is not AdamW.
    """
    gradients: dict[nn.Parameter, RowGradient] = {}
    for tables in (tables for part in model_parts for tables in sharded_tables(part)):
        gradients |= zip(tables.weights, tables.gradients, strict=True)
    groups = []
    for optimizer in optimizers.optimizers:
        for group in optimizer.param_groups:
            named = [*zip(group["params"], group["param_names"], strict=True)]
            ours = [(table, name) for table, name in named if table in gradients]
            if ours and not isinstance(optimizer, torch.optim.AdamW):
                raise ConfigError(
                    f"--parallelism.hash-tables: sharded tables need AdamW, and {ours[0][1]} has "
                    f"{type(optimizer).__name__}; choose --parallelism.hash-tables plain"
                )
            for into, pairs in (
                (group, [pair for pair in named if pair[0] not in gradients]),
                (taken := {**group}, ours),
            ):
                into["params"] = [table for table, _ in pairs]
                into["param_names"] = [name for _, name in pairs]
            groups += [taken] if ours else []
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    if groups:
        optimizers.optimizers.append(TableAdamW(groups, gradients))
    optimizers.optimizers[:] = [one for one in optimizers.optimizers if one.param_groups]


@contextmanager
def clipping_tables(model_parts: Sequence[nn.Module]) -> Iterator[None]:
    """Let torchtitan's gradient clipping count and scale the gradients of sharded tables, too."""
    tables = [tables for part in model_parts for tables in sharded_tables(part)]
    original = dist_utils.clip_grad_norm_
    if tables:
        dist_utils.clip_grad_norm_ = functools.partial(_clip_grad_norm, tables)
    try:
        yield
    finally:
        dist_utils.clip_grad_norm_ = original


@torch.no_grad()
def _clip_grad_norm(
    tables: Sequence[ShardedTables],
    parameters: list[nn.Parameter],
    max_norm: float,
    *,
    foreach: bool | None = None,
    **others: Any,
) -> Tensor:
    """The norm of all gradients, which are scaled down to ``max_norm`` if it is larger.

    Each column of a table lies on one rank of the mesh, so a sum over the mesh counts it once.
    """
    for part in tables:
        part.agree()
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    values = [g.values for part in tables for g in part.gradients if g.values is not None]
    own = nn.utils.get_total_norm(values).to(norm.device)
    squared = own.square()
    torch.distributed.all_reduce(squared, group=tables[0].mesh.get_group())
    total = (norm.square() + squared).sqrt()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, total, foreach)
    scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for value in values:
        value.mul_(scale.to(value.device))
    return total
