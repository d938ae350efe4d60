"""Validation on shards, in bits per byte: in all, of each shard set, and by a column of metadata.

Each set is read by itself, so that its figure does not depend on the other sets: every document of
it once, on all ranks together. The loss of each label is counted for the set and for the group of
the label's document, so the groups' nats and bytes sum to the total's exactly. The bytes of the
labels are hashed (:mod:`pipeline.bpe.token_bytes`): models of any kind that were measured on the
same bytes, all of a set (``steps=-1``), have the same hash.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtitan.components.loss import IGNORE_INDEX
from torchtitan.components.validate import Validator
from torchtitan.tools import utils

from pipeline.bpe.token_bytes import HASH_BITS, TokenBytes
from pipeline.errors import ConfigError
from train.data.dataloader import ShardDataLoader
from train.data.in_step import in_step
from train.data.microbatches import Microbatch

SHOWN_GROUPS = 10
"""Groups with the most bytes that are logged; the others are summed."""
OTHER_GROUPS = "(other)"


class ShardValidator(Validator):
    """Evaluates each validation set with torchtitan's settings of how often and how long.

    ``steps=-1`` is safe here: ranks without rows get empty batches until no rank has any left.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Validator.Config):
        dataloader: ShardDataLoader.Config = field(default_factory=ShardDataLoader.Config)
        """Held-out shards: --validator.dataloader.shards. Each set is measured by itself."""
        names: list[str] = field(default_factory=list)
        """Name of each set in the metrics; default: the end of its path."""
        by: str | None = None
        """Also measure each value of this column of metadata, which all sets have to have."""

        def __post_init__(self) -> None:
            if self.steps < 1 and self.steps != -1:
                raise ConfigError(
                    f"--validator.steps: at least 1, or -1 for all of the text, got {self.steps}"
                )

    def __init__(self, config: Config, **kwargs: Any):
        """
        Raises:
            ConfigError: a setting is wrong; names it.
            PipelineError: the shards cannot be read.
        """
        super().__init__(config, **kwargs)
        share = ("dp_world_size", "dp_rank", "seq_len", "local_batch_size", "tokenizer")
        self.by = config.by
        self.sets = open_sets(config, **{name: kwargs[name] for name in share})

    @torch.no_grad()
    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        """Evaluate each set once, and log the results."""
        (model,) = model_parts
        model.eval()
        sets = {name: self._evaluate(model, loader) for name, loader in self.sets.items()}
        model.train()
        groups = Tally()
        for tally in sets.values():
            groups.add(tally)
            groups.add_hash(tally.hash)
        bits: dict[str, float] = {}
        if len(sets) > 1:
            bits |= bits_of_parts({name: tally.total for name, tally in sets.items()})
        if self.by is not None:
            largest = groups.largest(SHOWN_GROUPS)
            bits |= bits_of_parts({f"{self.by}/{name}": of for name, of in largest.items()})
        nats, labels, _ = groups.total.tolist()
        extra = {f"validation_metrics/{name}/bits_per_byte": value for name, value in bits.items()}
        extra["validation_metrics/bits_per_byte"] = bits_per_byte(groups.total)
        extra["validation_metrics/bytes"] = float(groups.total[2])
        extra["validation_metrics/bytes_hash"] = float(groups.hash)
        self.metrics_processor.log_validation(nats / labels, step, extra)

    def _evaluate(self, model: nn.Module, loader: ShardDataLoader) -> "Tally":
        """The tally of one set over all ranks, by group."""
        tally = Tally()
        for inputs, labels_BS in self._batches(loader):
            self.metrics_processor.ntokens_since_last_log += labels_BS.numel()
            groups_BS = inputs.pop("groups", None)
            input_BS = inputs["input"].numpy()
            inputs = {name: value.to(utils.device_type) for name, value in inputs.items()}
            labels_BS = labels_BS.to(utils.device_type).long()
            with self.validation_context():
                logits_BSV = model(inputs.pop("input"), **inputs)
                nats_BS = F.cross_entropy(
                    logits_BSV.float().transpose(1, 2),
                    labels_BS,
                    ignore_index=IGNORE_INDEX,
                    reduction="none",
                )
            numbers_BS = torch.zeros_like(labels_BS) if groups_BS is None else groups_BS
            groups = loader.stream.groups
            names = groups.names if groups else [""]
            tally.add_batch(nats_BS, labels_BS, numbers_BS, names, self.tokenizer.token_bytes)
            tally.add_hash(self.tokenizer.token_bytes.hash(input_BS, labels_BS.cpu().numpy()))
        mesh = self.parallel_dims.get_optional_mesh("batch")
        return tally if mesh is None else tally.over_ranks(mesh.get_group())

    def _batches(self, loader: ShardDataLoader) -> Iterator[Microbatch]:
        if self.config.steps == -1:
            return in_step(loader, utils.device_type)
        return islice(loader, self.config.steps)


class Tally(dict[str, np.ndarray]):
    """Nats, labels and bytes (float64 each) by the name of a group; the hash of all bytes."""

    hash = 0

    def add_hash(self, number: int) -> None:
        """Add the hash of other labels' bytes."""
        self.hash = (self.hash + number) % 2**HASH_BITS

    @property
    def total(self) -> np.ndarray:
        return sum(self.values(), np.zeros(3))

    def add(self, other: dict[str, Any]) -> None:
        """Add another tally's counts."""
        for name, counts in other.items():
            self[name] = self.get(name, 0) + counts

    def add_batch(
        self,
        nats_BS: Tensor,
        labels_BS: Tensor,
        numbers_BS: Tensor,
        names: list[str],
        token_bytes: TokenBytes,
    ) -> None:
        """Add labels' nats.

        Args:
            numbers_BS: the number of each label's group.
            names: the group of each number.
            token_bytes: the bytes that labels stand for.
        """
        labels = labels_BS.cpu().numpy().ravel()
        known = labels != IGNORE_INDEX
        numbers = numbers_BS.cpu().numpy().ravel()[known]
        weights = (
            nats_BS.double().cpu().numpy().ravel()[known],
            np.ones(len(numbers)),
            token_bytes.count_V[labels[known]].astype(float),
        )
        counts_G3 = np.stack([np.bincount(numbers, each, len(names)) for each in weights], axis=1)
        self.add({names[g]: counts_G3[g] for g in np.flatnonzero(counts_G3[:, 1]).tolist()})

    def over_ranks(self, group: torch.distributed.ProcessGroup) -> "Tally":
        """The sum over the ranks of a group."""
        tallies: list[Any] = [None] * group.size()
        torch.distributed.all_gather_object(tallies, (dict(self), self.hash), group=group)
        total = Tally()
        for tally, number in tallies:
            total.add(tally)
            total.add_hash(number)
        return total

    def largest(self, count: int) -> "Tally":
        """The groups with the most bytes, largest first, and the sum of the others, if any."""
        ordered = sorted(self.items(), key=lambda item: (-item[1][2], item[0]))
        largest = Tally(ordered[:count])
        for _, counts in ordered[count:]:
            largest.add({OTHER_GROUPS: counts})
        return largest


def bits_per_byte(counts: np.ndarray) -> float:
    """Bits per byte for nats, labels and bytes. The nats of EOS count, EOS itself is no byte.

    >>> round(bits_per_byte(np.array([7.7, 11, 10])), 2)
    1.11
    """
    nats, _, count = counts.tolist()
    return nats / max(count, 1) / math.log(2)


def bits_of_parts(parts: dict[str, np.ndarray]) -> dict[str, float]:
    """Bits per byte of each part that has bytes: empty documents have an end, and nothing to
    divide its nats by."""
    return {name: bits_per_byte(counts) for name, counts in parts.items() if counts[2]}


def open_sets(config: ShardValidator.Config, **share: Any) -> dict[str, ShardDataLoader]:
    """The dataloader of each validation set, by the set's name.

    Args:
        share: the rank's place, the size of its batches and the tokenizer, as the dataloader takes
            them.

    Raises:
        ConfigError: a setting is wrong; names the flag.
        PipelineError: a set cannot be read.
    """
    if config.dataloader.weights:
        raise ConfigError(
            "--validator.dataloader.weights: each set is measured by itself; leave the weights out"
        )
    shared = replace(config.dataloader, infinite=config.steps != -1)
    configs = [replace(shared, shards=[url]) for url in shared.shards] or [shared]
    try:
        sets = [each.build(by=config.by, **share) for each in configs]
        widths = {each.stream.patches_per_row or 0 for each in sets}
        if len(widths) > 1:  # one shape for all sets, so that a compiled model is compiled once
            configs = [replace(each, patches_per_row=max(widths)) for each in configs]
            sets = [each.build(by=config.by, **share) for each in configs]
    except ConfigError as error:
        text = str(error)
        prefix = "--" if text.startswith("training.") else "--validator."
        raise ConfigError(f"{prefix}{text}") from error
    return dict(zip(_names(config), sets, strict=True))


def _names(config: ShardValidator.Config) -> list[str]:
    """A name for each set: as few of the last parts of its path as tell the sets apart.

    Example: ``s3://b/wiki/validation`` and ``s3://b/code/validation`` are ``wiki/validation`` and
    ``code/validation``.
    """
    urls, names = config.dataloader.shards, config.names
    if not names:
        parts = [url.rstrip("/").split("/") for url in urls]
        for count in range(1, max(map(len, parts)) + 1):
            names = ["/".join(part[-count:]) for part in parts]
            if len(set(names)) == len(names):
                break
    if len(names) != len(urls) or len(set(names)) != len(names) or not all(names):
        raise ConfigError(
            f"--validator.names: {', '.join(names)}: give each of the {len(urls)} sets of "
            "--validator.dataloader.shards a name of its own"
        )
    return names
