"""Parallelize and compile the models: tensor parallelism, activation checkpointing,
``torch.compile``, then FSDP2 or HSDP, all with torchtitan's functions; but hash tables are sharded
by :mod:`train.sharded_tables`.

Tensor parallelism splits the latent transformer, which has most of the weights. All ranks of a
tensor-parallel group compute the other layers alike.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torchtitan.config import TORCH_DTYPE_MAP, CompileConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import ActivationCheckpointing
from torchtitan.distributed.compile import apply_compile
from torchtitan.distributed.fsdp import (
    disable_fsdp_gradient_division,
    get_fsdp_reshard_after_forward_policy,
)
from torchtitan.distributed.tensor_parallel import NoParallel
from torchtitan.tools.logging import logger

from model import BLT
from model.layers.hash_embedding import HashEmbedding
from model.layers.latent_transformer import LatentTransformer
from model.layers.transformer import Block
from pipeline.errors import ConfigError
from train.sharded_tables import ShardedTables, sharded_tables


@dataclass(kw_only=True, slots=True)
class Parallelism(ParallelismConfig):
    """torchtitan's settings, and that of the hash tables."""

    hash_tables: Literal["sharded", "plain"] = "sharded"
    """sharded: each rank keeps some columns, ranks exchange what is looked up, and only those rows
    have gradients. plain: FSDP gathers whole tables. Checkpoints of one resume as the other."""


def parallelize_blt(model: BLT, *, float8: bool, **settings: Any) -> nn.Module:
    """Parallelize a BLT; see :func:`_parallelize`."""
    if float8:
        multiply_in_float8(model.global_transformer, settings["parallel_dims"].tp)
    return _parallelize(model, latent=model.global_transformer, **settings)


def parallelize_entropy_model(model: nn.Module, **settings: Any) -> nn.Module:
    """Parallelize an entropy model; see :func:`_parallelize`."""
    return _parallelize(model, latent=None, **settings)


def _parallelize(
    model: nn.Module,
    *,
    latent: nn.Module | None,
    parallel_dims: ParallelDims,
    training: TrainingConfig,
    parallelism: ParallelismConfig,
    compile_config: CompileConfig,
    ac_config: ActivationCheckpointing.Config | None,
    dump_folder: str,
) -> nn.Module:
    """
    Args:
        model: on the meta device.
        latent: the module that tensor parallelism splits; None for none.

    torchtitan passes the other arguments to every model's ``parallelize_fn``.
    """
    if getattr(parallelism, "hash_tables", "plain") == "sharded":
        # All ranks that read different rows: copies of a model (HSDP) share one copy of the tables.
        mesh = parallel_dims.get_mesh("batch" if parallel_dims.dp_replicate_enabled else "fsdp")
        twins = parallel_dims.get_mesh("tp").get_group() if parallel_dims.tp_enabled else None
        _shard_tables(model, mesh, TORCH_DTYPE_MAP[training.mixed_precision_param], twins)
    if parallel_dims.tp_enabled:
        _split_over_tensor_parallel_ranks(model, latent, parallel_dims.get_mesh("tp"))
    if ac_config is not None:
        checkpoint_activations(model, ac_config, dump_folder)
    if compile_config.enable and "model" in compile_config.components:
        compile_model(model, compile_config, parallel_dims)
    names = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
    _shard(model, parallel_dims.get_mesh(names), training, parallelism)
    return model


def stacks(model: nn.Module) -> list[nn.Module]:
    """The modules of a model whose ``layers`` are transformer blocks."""
    if isinstance(model, BLT):
        return [model.local_encoder, model.global_transformer, model.local_decoder]
    return [model]


def checkpoint_activations(
    model: nn.Module, config: ActivationCheckpointing.Config, dump_folder: str
) -> None:
    """Apply activation checkpointing to each block, with the cross attention in it, and to that of
    the encoder."""
    checkpointed = stacks(model)
    if isinstance(model, BLT):
        gathering = nn.Module()
        gathering.layers = model.local_encoder.cross_attn_layers
        checkpointed.append(gathering)
    for stack in checkpointed:
        config.build(dump_folder=dump_folder).apply(stack)


RECOMPILE_LIMIT = 32
"""How often the code of a layer may be compiled: for three stacks, each while it trains and while
it is validated, there with another number of patches."""


def compile_model(
    model: nn.Module, compile_config: CompileConfig, parallel_dims: ParallelDims
) -> None:
    """Compile each block, once for all blocks of a stack, and what lies around the blocks.

    All batches have the same shapes, but stacks differ in theirs. PyTorch would take the difference
    between stacks for one between batches, and compile the second stack's blocks for any number of
    patches, which is slower; so dynamic shapes are off.
    """
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    for stack in stacks(model):
        apply_compile(stack, compile_config=compile_config, parallel_dims=parallel_dims)
    if isinstance(model, BLT):
        model.compile_parts(backend=compile_config.backend, fullgraph=True)


def _split_over_tensor_parallel_ranks(
    model: nn.Module, latent: nn.Module | None, mesh: DeviceMesh
) -> None:
    split: dict[str, ParallelStyle] = {}
    if latent is not None:
        for prefix, block in latent.named_modules():
            if isinstance(block, Block):
                names = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
                for name in (*names, "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"):
                    is_output = name.endswith(("wo", "w2"))
                    style = RowwiseParallel() if is_output else ColwiseParallel()
                    split[f"{prefix}.{name}"] = style
        parallelize_module(latent, mesh, split)
    # The gradient norm and the fused optimizer require all parameters on one mesh.
    split_modules = {latent.get_submodule(name) for name in split} if latent is not None else set()
    # Sharded tables have both of their own.
    split_modules |= {table for tables in sharded_tables(model) for table in tables}
    for module in list(model.modules()):
        if module not in split_modules and any(True for _ in module.parameters(recurse=False)):
            parallelize_module(module, mesh, NoParallel(use_local_output=True))


FLOAT8_MULTIPLE = 16
"""Float8 matrix units multiply matrices whose widths, and dimension that is summed over, are
multiples of this; numbers of patches are, because they are multiples of attention's blocks."""


def multiply_in_float8(latent: LatentTransformer, ranks: int) -> None:
    """Let the latent transformer's linear layers multiply in float8, forward and backward.

    Args:
        ranks: how many ranks share each layer (tensor parallelism).

    Raises:
        ConfigError: torchao is not installed, or no layer has widths that float8 can multiply.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError("--config: float8 needs torchao: pip install torchao") from error
    linear = [name for name, part in latent.named_modules() if isinstance(part, nn.Linear)]
    left_out = [name for name in linear if not fits_float8(latent.get_submodule(name), ranks)]
    if len(left_out) == len(linear):
        raise ConfigError(
            f"--shape.dim-global: float8 multiplies widths that are multiples of "
            f"{FLOAT8_MULTIPLE * ranks}, and no layer of the latent transformer has them"
        )
    if left_out:
        logger.warning(
            f"float8: {len(left_out)} of {len(linear)} layers of the latent transformer are not in "
            f"float8, because their widths are no multiples of {FLOAT8_MULTIPLE * ranks}: "
            f"{left_out[0]}, ..."
        )
    emulate = not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))
    if emulate:
        logger.warning("float8 is emulated, and slow: it needs a GPU of capability 8.9 or later")
    convert_to_float8_training(
        latent,
        module_filter_fn=lambda module, _: fits_float8(module, ranks),
        config=Float8LinearConfig(emulate=emulate),
    )


def fits_float8(module: nn.Module, ranks: int = 1) -> bool:
    """True for a linear layer whose parts on tensor-parallel ranks have widths for float8."""
    if not isinstance(module, nn.Linear):
        return False
    widths = (module.in_features, module.out_features)
    return not any(width % (FLOAT8_MULTIPLE * ranks) for width in widths)


def _shard_tables(
    model: nn.Module,
    mesh: DeviceMesh,
    dtype: torch.dtype,
    twins: torch.distributed.ProcessGroup | None,
) -> None:
    for name, part in list(model.named_children()):
        if isinstance(part, HashEmbedding) and len(part):
            setattr(model, name, ShardedTables(part, mesh, dtype, twins))


def keeps_unsharded(parallelism: ParallelismConfig, ranks: int) -> bool:
    """True if ranks keep whole weights, in the dtype that they compute in, from forward to
    backward.

    Where a rank holds whole weights anyway, it does, unless the configuration says otherwise: to
    convert them again would save 2 bytes of each parameter's 18 or more.

    Args:
        ranks: how many ranks share the weights.
    """
    if parallelism.fsdp_reshard_after_forward == "default" and ranks == 1:
        return True
    policy = parallelism.fsdp_reshard_after_forward
    return not get_fsdp_reshard_after_forward_policy(policy, pp_enabled=False)


def keep_unsharded(model: nn.Module, keep: bool) -> None:
    """Let the next backward leave whole weights as they are, for one more forward, or not.

    Weights change once per step, so the microbatches of a step can compute with the same converted
    ones. The last one must not keep them: optimizer and checkpoints use what the rank holds.
    """
    if isinstance(model, FSDPModule):
        model.set_reshard_after_backward(not keep)


def holds_gradients(training: TrainingConfig, ranks: int) -> bool:
    """True if ranks hold whole gradients for the microbatches of a step, and the last one alone
    hands them to the optimizer.

    Where a rank's share is the whole, a sum over one rank would copy all gradients twice in each
    microbatch, to add them afterwards.

    Args:
        ranks: how many ranks share the weights.
    """
    return ranks == 1 and not training.enable_cpu_offload  # whose gradients are not on the device


def hold_gradients(model: nn.Module, hold: bool) -> None:
    """Let the next backward add to the gradients that the rank holds, or sum those over ranks and
    copies and hand them on."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not hold)


def sum_over_copies(model: nn.Module, now: bool) -> None:
    """Let the next backward sum gradients over the copies of a model (HSDP), or leave that to a
    later one of the same step, which then sums them all.

    A copy is on nodes of its own, so that this is what passes between nodes, and a step needs it
    once.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(now)


def _shard(
    model: nn.Module,
    mesh: DeviceMesh,
    training: TrainingConfig,
    parallelism: ParallelismConfig,
) -> None:
    """Apply FSDP2, also on one rank, because it converts weights to the mixed-precision dtype."""
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
            reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
            cast_forward_inputs=False,
        ),
        "reshard_after_forward": not keeps_unsharded(parallelism, mesh.size(mesh.ndim - 1)),
    }
    if training.enable_cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy()
    sharded = {weight for tables in sharded_tables(model) for weight in tables.weights}
    options["ignored_params"] = sharded
    # Plain hash tables hold most of a small model's weights, so each is gathered by itself.
    plain = (part for part in model.children() if isinstance(part, HashEmbedding) and not sharded)
    tables = [table for part in plain for table in part]
    layers = [stack.get_submodule("layers") for stack in stacks(model)]
    blocks = [block for stack in layers for block in stack.children()]
    for module in (*tables, *blocks):
        fully_shard(module, **options)
    # The other weights are used throughout, outside the forward of their own modules, so they are
    # gathered once.
    fully_shard(model, **options)
    if mesh.size() > 1:  # one rank would divide all gradients by 1
        disable_fsdp_gradient_division(model)
    if mesh.device_type == "cpu":
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # gloo cannot multiply while it sums.
                module.set_force_sum_reduction_for_comms(True)
    # The warning is about writes into the logits, and nothing writes into them.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
