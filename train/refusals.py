"""Settings that models cannot be trained with, each told in a sentence that names the flag."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torchtitan.config import TrainingConfig
from torchtitan.tools import filesystem

from model import BLTConfig
from model.device import fast_dtype
from model.token_transformer import TokenTransformerConfig
from pipeline.errors import ConfigError, missing_memory


def check_batch(training: TrainingConfig, ranks: int) -> None:
    """
    Args:
        ranks: ranks that read different rows.

    Raises:
        ConfigError: the ranks cannot divide the rows of a step; says which numbers would do.
    """
    local, rows_of_step = training.local_batch_size, training.global_batch_size
    if local < 1:
        raise ConfigError(f"--training.local-batch-size: at least 1, got {local}")
    if rows_of_step == 0:
        raise ConfigError(
            "--training.global-batch-size: at least 1, got 0; -1 stands for "
            "--training.local-batch-size times the ranks"
        )
    rows = local * ranks
    if rows_of_step <= 0 or rows_of_step % rows == 0:
        return
    below = rows_of_step // rows * rows
    batches = " or ".join(str(batch) for batch in (below, below + rows) if batch)
    smaller = [n for n in range(local - 1, 0, -1) if rows_of_step % (n * ranks) == 0][:1]
    ways = [f"--training.local-batch-size {n}" for n in smaller]
    raise ConfigError(
        f"--training.global-batch-size: {rows_of_step} is no multiple of {rows}, the rows that all "
        f"ranks take at once (--training.local-batch-size {local} on {ranks} ranks); give "
        f"{', or '.join([*ways, f'a batch of {batches} rows'])}"
    )


_ELSEWHERE = ContextVar("elsewhere", default=False)


@contextmanager
def for_gpus_elsewhere() -> Iterator[None]:
    """Configurations made inside are for GPUs of other machines: nothing is refused for the devices
    of this one."""
    token = _ELSEWHERE.set(True)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def check_config(config: Any) -> None:
    """
    Raises:
        ConfigError: a flag asks for a way of training that these models cannot use; names it.
    """
    _check_parallelism(config)
    _check_run(config)
    _check_recipe(config)
    if torch.cuda.is_available():
        _check_on_gpu(config)
    elif not _ELSEWHERE.get():
        _check_without_gpu(config)
    _check_tables(config)


def _check_parallelism(config: Any) -> None:
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
    shape, ranks = config.model_spec.model.shape, parallelism.tensor_parallel_degree
    if isinstance(shape, BLTConfig) and shape.n_kv_heads_global % ranks:
        raise ConfigError(
            f"--parallelism.tensor-parallel-degree: {ranks} ranks cannot share the "
            f"{shape.n_kv_heads_global} attention heads of the latent transformer evenly (its keys "
            "and values: --shape.n-kv-heads-global)"
        )
    if isinstance(shape, BLTConfig) and shape.hidden_dim_global % ranks:
        raise ConfigError(
            f"--parallelism.tensor-parallel-degree: {ranks} ranks cannot share the "
            f"{shape.hidden_dim_global} features of the latent transformer's feed-forward layers "
            "evenly (--shape.hidden-dim-global)"
        )


def _check_run(config: Any) -> None:
    """The length of a training, and what it reads and writes."""
    if config.training.steps < 0:
        raise ConfigError(f"--training.steps: must not be negative, got {config.training.steps}")
    for flag, steps, without in (
        ("metrics.log-freq", config.metrics.log_freq, ""),
        ("training.gc-freq", config.training.gc_freq, ""),
        ("validator.freq", config.validator.freq, "; --validator.no-enable measures nothing"),
    ):
        if steps < 1:
            raise ConfigError(f"--{flag}: every so many steps, at least 1, got {steps}{without}")
    if not config.dataloader.infinite:
        raise ConfigError(
            "--dataloader.no-infinite: is for validation only; set the length of a training with "
            "--training.steps"
        )
    if config.checkpoint.initial_load_path and not config.checkpoint.enable:
        raise ConfigError(
            "--checkpoint.no-enable: the initial weights of --checkpoint.initial-load-path would "
            "not be loaded; leave it out (--checkpoint.load-only saves nothing)"
        )
    known = ("optimizer", "lr_scheduler", "dataloader", "train_state")
    if unknown := set(config.checkpoint.exclude_from_loading) - set(known):
        raise ConfigError(
            f"--checkpoint.exclude-from-loading: {min(unknown)} is no part of a step; give some of "
            f"{', '.join(known)}"
        )
    shape = config.model_spec.model.shape
    if isinstance(shape, TokenTransformerConfig) and config.samples.freq > 0:
        raise ConfigError(
            "--samples.freq: a token transformer writes no samples; leave them out, and convert a "
            "step for transformers instead (jobs/convert_checkpoint.py --layout transformers)"
        )
    metrics = config.metrics
    if filesystem.is_remote(config.dump_folder):
        for name in ("enable_tensorboard", "enable_wandb"):
            if getattr(metrics, name) and not Path(metrics.save_tb_folder).is_absolute():
                raise ConfigError(
                    f"--metrics.{name}: writes local files, and --dump-folder is a URL; give "
                    "--metrics.save-tb-folder an absolute path"
                )


def _check_tables(config: Any) -> None:
    sharded = getattr(config.parallelism, "hash_tables", "plain") == "sharded"
    if sharded and config.model_spec.name == "blt":
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


def _check_on_gpu(config: Any) -> None:
    in_bfloat16 = config.training.mixed_precision_param == "bfloat16" and not _ELSEWHERE.get()
    if in_bfloat16 and fast_dtype(torch.device("cuda")) != torch.bfloat16:
        raise ConfigError(
            "--training.mixed-precision-param: this GPU has no matrix units for bfloat16, and "
            "attention cannot be compiled for it then; use float32"
        )


def _check_without_gpu(config: Any) -> None:
    if getattr(config.checkpoint, "async_mode", "") == "async_with_pinned_mem":
        raise ConfigError("--checkpoint.async-mode: pinned memory needs a GPU; use async")
    if config.compile.enable and "model" in config.compile.components:
        raise ConfigError(
            "--compile.enable: needs a GPU: the CPU's attention has shapes that depend on the "
            "documents; leave it out, or compile the loss alone: --compile.components loss"
        )
    if config.training.enable_cpu_offload:
        raise ConfigError("--training.enable-cpu-offload: there is no GPU; leave it out")
    if not config.training.disable_cuda_graphs:
        raise ConfigError("--training.disable-cuda-graphs: there is no GPU; leave it on")
    if config.training.mixed_precision_param != "float32":
        raise ConfigError(
            "--training.mixed-precision-param: bfloat16 needs a GPU; on a CPU use float32"
        )


def _check_recipe(config: Any) -> None:
    """
    Raises:
        ConfigError: the learning rate's schedule, AdamW or clipping have numbers with which no
            model learns.
    """
    training, schedule = config.training, config.lr_scheduler
    total, ratio = schedule.total_steps, schedule.decay_ratio
    if total is not None and total < training.steps:
        raise ConfigError(
            f"--lr-scheduler.total-steps: the schedule ends after {total:,} steps, and the "
            f"training has {training.steps:,} (--training.steps): behind its end the learning rate "
            "would rise again, or be negative; give at least as many"
        )
    if not training.max_norm > 0:
        raise ConfigError(
            f"--training.max-norm: {training.max_norm} would leave nothing of a gradient, or turn "
            "it round; give inf to clip none"
        )
    if not 0 <= schedule.min_lr_factor <= 1:
        raise ConfigError(
            f"--lr-scheduler.min-lr-factor: from 0 to 1, got {schedule.min_lr_factor}"
        )
    if ratio is not None and not 0 <= ratio <= 1:
        raise ConfigError(f"--lr-scheduler.decay-ratio: from 0 to 1, got {ratio}")
    if schedule.warmup_steps < 0:
        raise ConfigError(f"--lr-scheduler.warmup-steps: from 0 on, got {schedule.warmup_steps}")
    for number, group in enumerate(config.optimizer.param_groups):
        _check_adamw(group.optimizer_kwargs, f"--optimizer.param-groups.{number}.optimizer-kwargs")


def _check_adamw(given: dict[str, Any], flags: str) -> None:
    """
    Raises:
        ConfigError: a setting is out of AdamW's range. torch looks at its defaults alone, and not
            at those of groups, as torchtitan gives them.
    """
    for name, values, fits, those in (
        ("lr", [given.get("lr", 0)], lambda x: 0 <= x < math.inf, "from 0 on"),
        ("weight_decay", [given.get("weight_decay", 0)], lambda x: 0 <= x < math.inf, "from 0 on"),
        ("betas", given.get("betas", ()), lambda x: 0 <= x < 1, "from 0 to below 1"),
        ("eps", [given.get("eps", 1)], lambda x: 0 < x < math.inf, "above 0"),
    ):
        if wrong := [value for value in values if not fits(value)]:
            raise ConfigError(f"{flags}.{name.replace('_', '-')}: {those}, got {wrong[0]}")


def out_of_memory(config: Any, error: torch.OutOfMemoryError) -> ConfigError:
    """The error for users where a step needs more memory than the GPU has."""
    rows, tokens = config.training.local_batch_size, config.training.seq_len
    advice = (
        "activation-checkpoint:full at the end of the command keeps less for backward, and more "
        "GPUs share the weights"
    )
    if rows > 1:
        advice = f"give {rows // 2}"
        if config.training.global_batch_size > 0:
            advice += ", and a step takes as many rows as before, in more parts"
    return ConfigError(
        f"--training.local-batch-size: {rows} rows of {tokens} tokens need more memory than there "
        f"is ({missing_memory(error)}); {advice}; jobs/plan.py says what a configuration needs"
    )
