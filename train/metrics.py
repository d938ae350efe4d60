"""Metrics that torchtitan lacks: bits per byte, bytes and patches per second, and FLOPs by one
formula for all kinds of models.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.metrics import MetricsProcessor, TensorBoardLogger
from torchtitan.tools.logging import logger

from model.training_flops import training_flops
from pipeline.bpe.token_bytes import TokenBytes
from train.optimizer import group_names

latest: dict[str, float] = {}
"""The metrics that this process logged last, by name. A caller of the training reads them."""


@dataclass
class Counts:
    """Counts over batches of one rank."""

    positions: int = 0
    """Positions of all rows, including padding."""
    padding: int = 0
    labels: int = 0
    """Tokens that the loss counts: bytes or a tokenizer's tokens, and the EOS of each document."""
    bytes: int = 0
    patches: int = 0

    def add(self, inputs: dict[str, Tensor], labels_BS: Tensor, token_bytes: TokenBytes) -> None:
        """Add a batch, as the dataloader yields it.

        Args:
            token_bytes: the bytes that ids stand for.
        """
        labels = int((labels_BS != IGNORE_INDEX).sum())
        self.positions += labels_BS.numel()
        self.padding += int((inputs["input"] < 0).sum())
        self.labels += labels
        self.bytes += token_bytes.count(labels_BS.numpy())
        if "patch_lengths" in inputs:
            self.patches += int((inputs["patch_lengths"] > 0).sum())


class ByteMetrics(MetricsProcessor):
    """Logs torchtitan's metrics and those of bytes and patches to the console, TensorBoard and
    Weights & Biases."""

    @dataclass(kw_only=True, slots=True)
    class Config(MetricsProcessor.Config):
        pass

    def __init__(self, config: Config, *, config_dict: dict[str, Any], **kwargs: Any):
        super().__init__(config, config_dict=config_dict, **kwargs)
        self.context: int = config_dict["training"]["seq_len"]
        self.last_step: int = config_dict["training"]["steps"]
        self.step_counts = Counts()
        """The running step's counts, over which the logged loss is a mean."""
        self.counts_since_log = Counts()
        self.steps_since_log: int | None = None
        """Steps that the time since the last log had; None before the first one of this process."""
        self.skipped_steps = 0
        """Steps that runs into this folder have skipped: see :mod:`train.skipping`."""

    def should_log(self, step: int) -> bool:
        """True for every ``log_freq``-th step, the first and the last: a run ends with its own
        figures, not with those of some steps before."""
        return super().should_log(step) or step == self.last_step

    def begin_step(self) -> None:
        """Count from here for the step that begins. The time before the first step of a process,
        in which a model is built and a checkpoint is read, is no part of any rate."""
        self.step_counts = Counts()
        if self.steps_since_log is None:
            self.steps_since_log, self.time_last_log = 0, time.perf_counter()
        self.steps_since_log += 1

    def count(self, inputs: dict[str, Tensor], labels_BS: Tensor, token_bytes: TokenBytes) -> None:
        """Count a batch of the running step; arguments are those of :meth:`Counts.add`."""
        self.step_counts.add(inputs, labels_BS, token_bytes)
        self.counts_since_log.add(inputs, labels_BS, token_bytes)

    def _bits_per_byte(self, loss: float, counts: Counts) -> float:
        """Bits per byte for a mean loss (nats per label) over the counts of all ranks.

        Example: a loss of 0.7 nats over 11 labels, of which 10 are bytes and one is EOS, is 7.7
        nats or 11.1 bits for 10 bytes, 1.11 bits per byte.
        """
        total = torch.tensor(
            [counts.labels, counts.bytes], device=self.device_memory_monitor.device
        )
        mesh = self.parallel_dims.get_optional_mesh("loss")
        if mesh is not None:
            torch.distributed.all_reduce(total, group=mesh.get_group())
        total_labels, total_bytes = total.tolist()
        return loss * total_labels / max(total_bytes, 1) / math.log(2)

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: dict[str, Any] | None = None,
    ) -> None:
        """Log a step; the arguments are torchtitan's, with losses in nats per label."""
        assert self.model_parts is not None and self.steps_since_log
        counts, self.counts_since_log = self.counts_since_log, Counts()
        seconds = self.elapsed() * self.parallel_dims.non_data_parallel_size
        # At the end of the data a rank may have had empty rows only.
        patch_size = max(counts.bytes, 1) / (counts.patches or max(counts.labels, 1))
        flops = training_flops(
            self.model_parts[0].config, patch_size=patch_size, context=self.context
        )
        # torchtitan multiplies by positions, but padding costs time without useful FLOPs.
        self.num_flops_per_token = sum(flops.values()) * max(counts.bytes, 1) / counts.positions
        metrics = {
            "bits_per_byte": self._bits_per_byte(global_avg_loss, self.step_counts),
            "throughput(bytes/s)": counts.bytes / seconds,
            "padding(%)": 100 * counts.padding / counts.positions,
            "skipped_steps": self.skipped_steps,
            # torchtitan divides by --metrics.log-freq, whatever the number of steps.
            "time_metrics/end_to_end(s)": self.elapsed() / self.steps_since_log,
            **{f"flops_per_byte/{part}": value for part, value in flops.items()},
        }
        if counts.patches:
            metrics["throughput(patches/s)"] = counts.patches / seconds
            metrics["patch_length(bytes)"] = patch_size
        latest.update(step=step, loss=global_avg_loss, bits_per_byte=metrics["bits_per_byte"])
        waited = 100 * sum(self.data_loading_times) / self.elapsed()
        names = {} if self.optimizers is None else group_names(self.optimizers)
        given = {names.get(name, name): value for name, value in (extra_metrics or {}).items()}
        super().log(step, global_avg_loss, global_max_loss, grad_norm, given | metrics)
        self.steps_since_log = 0
        patches = (
            f"{metrics['throughput(patches/s)']:,.0f} patches/s, {patch_size:.2f} bytes per patch, "
            if counts.patches
            else ""
        )
        logger.info(
            f"{self.color.green}{metrics['bits_per_byte']:.4f} bits per byte{self.color.reset}, "
            f"{metrics['throughput(bytes/s)']:,.0f} bytes/s, {patches}"
            f"{metrics['padding(%)']:.2f}% padding, {waited:.2f}% of the time waiting for data"
        )

    def log_validation(
        self, loss: float, step: int, extra_metrics: dict[str, Any] | None = None
    ) -> None:
        """Log a validation.

        Args:
            loss: nats per label.
            extra_metrics: bits per byte, in all and of parts; bytes, and their hash
                (:mod:`pipeline.bpe.token_bytes`).
        """
        bits = extra_metrics or {}
        latest["validation_bits_per_byte"] = total = bits["validation_metrics/bits_per_byte"]
        size, digest = (bits[f"validation_metrics/{name}"] for name in ("bytes", "bytes_hash"))
        latest.update(validation_bytes=size, validation_bytes_hash=digest)
        super().log_validation(loss, step, bits)
        # torchtitan restarts the time since the last log here, so its counts restart as well.
        self.counts_since_log, self.steps_since_log = Counts(), 0
        self.data_loading_times.clear()
        parts = "".join(
            f", {name.split('/', 1)[1].rpartition('/')[0]} {value:.4f}"
            for name, value in bits.items()
            if name.endswith("/bits_per_byte") and name != "validation_metrics/bits_per_byte"
        )
        logger.info(
            f"validation: {self.color.green}{total:.4f} bits per byte{self.color.reset}{parts} "
            f"({size:,.0f} bytes with the hash {int(digest):012x})"
        )

    def add_samples(self, texts: dict[str, str], step: int, seconds: float) -> None:
        """Add texts, by prompt, to TensorBoard if it is on; the throughput is measured without the
        ``seconds`` that they took."""
        self.time_last_log += seconds
        for board in getattr(self.logger, "_loggers", []):  # a rank that logs nothing has none
            if isinstance(board, TensorBoardLogger):
                for prompt, text in texts.items():
                    board.writer.add_text(f"samples/{prompt or 'no prompt'}", text, step)

    def elapsed(self) -> float:
        """Seconds since the last log."""
        return time.perf_counter() - self.time_last_log
