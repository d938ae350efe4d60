"""The settings that, with the shards, determine the rows; their checks; the rule they ask for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from model.patcher import Patcher
from model.rules import SETTINGS, plain_text_rules
from pipeline.bpe.byte_level import BPE, load_bpe
from pipeline.errors import ConfigError
from pipeline.shards.shard_set import ShardSet

TOKENIZER_FLAG = "--dataloader.patch-tokenizer"
LEAST_TOKENS = 8
LEAST_PATCHES = 4
LANES = 512
"""Lanes of the sequence by default: the largest number of ranks that read their share alone."""
WINDOW_BYTES = 8 << 20
"""Bytes of text per shard set in a lane's window by default. Windows of 1 MB have thrice the
padding: see tests/benchmarks/RESULTS.md."""
SETS_COUNTED = 4
"""Shard sets beyond these do not make windows larger."""


@dataclass(frozen=True)
class RuleSettings:
    """Changes to the boundary rule of the shard sets; None: as it is."""

    rule: str | None = None
    threshold: float | None = None
    threshold_add: float | None = None
    patch_size: float | None = None
    max_patch_length: int | None = None
    tokenizer: str | None = None
    """For the bpe rule: a tokenizer.json, a directory that holds one, or a hub id."""

    def given(self) -> dict[str, Any]:
        """The settings that have a value."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def bpe(self) -> BPE | None:
        """The tokenizer that is given for the bpe rule.

        Raises:
            ConfigError: there is no such tokenizer, or it cannot be used.
        """
        return None if self.tokenizer is None else load_bpe(self.tokenizer, TOKENIZER_FLAG)

    def recorded(self) -> dict[str, Any]:
        """The settings that have a value, as a checkpoint records them: a tokenizer by its hash."""
        return self.given() | ({} if self.bpe is None else {"tokenizer": self.bpe.sha256})

    def patcher(self, shards: ShardSet) -> Patcher | None:
        """The rule that patches a shard set anew; None if its patches are as they are stored.

        Another rule than the set's takes no threshold or size from it, but ``max_patch_length``;
        the bpe rule takes the set's tokenizer, if it has one.

        Raises:
            ConfigError: the set lacks entropies that the rule reads, or the settings do not fit
                together; names the flag.
        """
        given = self.recorded()
        if not given:
            return None
        flag, url = f"dataloader.{next(iter(given))}", shards.output.url
        old = shards.patcher
        try:
            if given.get("rule", old.rule) == old.rule:
                patcher = replace(old, **given)
            else:
                patcher = Patcher(**{"max_patch_length": old.max_patch_length} | given)
        except ValueError as error:
            name = str(error).partition(":")[0]
            if name in (*SETTINGS, "max_patch_length"):
                flag = f"dataloader.{name}"
            elif name == "tokenizer":
                flag = TOKENIZER_FLAG
            raise ConfigError(
                f"{flag}: {url} cannot be patched with these settings: {error}; change or leave "
                "out --dataloader.rule and its settings"
            ) from error
        if patcher.ends_from == "column" and patcher != old:
            raise ConfigError(
                f"{flag}: {url} has boundaries that its input gave, and they cannot be placed "
                "again; train on them as they are, or give another --dataloader.rule"
            )
        if patcher.ends_from == "tokenizer" and patcher.tokenizer is None:
            raise ConfigError(
                f"dataloader.rule: the bpe rule needs the tokenizer whose tokens become the "
                f"patches of {url}; give it ({TOKENIZER_FLAG})"
            )
        if patcher.reads_entropies and not shards.has_entropies:
            raise ConfigError(
                f"{flag}: {url} was made without entropies; make it with them, or leave the "
                f"setting out"
            )
        return None if patcher == old else patcher


@dataclass(frozen=True)
class RowSettings:
    """The settings that, with the shards, determine the rows."""

    seq_len: int
    """Tokens per row."""
    seed: int = 0
    weights: tuple[float, ...] = ()
    """Share of the text of each shard set; empty: every document once per epoch."""
    rule: RuleSettings = RuleSettings()
    """Changes to the boundary rule."""
    patches: bool = True
    """True if rows end where patches do."""
    patches_per_row: int | None = None
    """Most patches per row; None: as many as the text of the shards needs."""
    shuffle_bytes: int | None = None
    """Bytes of text in the windows of all lanes; None: as many as WINDOW_BYTES asks for."""
    lanes: int = LANES
    """Lanes of the sequence, at most."""

    def window_bytes(self, sets: int) -> int:
        """Bytes of text in a lane's window."""
        if self.shuffle_bytes is None:
            return WINDOW_BYTES * min(sets, SETS_COUNTED)
        return self.shuffle_bytes // self.lanes


def check(urls: Sequence[str], settings: RowSettings) -> None:
    """
    Raises:
        ConfigError: a setting is wrong.
    """
    weights, patches, rule = settings.weights, settings.patches_per_row, settings.rule
    if not urls:
        raise ConfigError("dataloader.shards: name at least one shard set that patch_corpus wrote")
    if weights and len(weights) != len(urls):
        raise ConfigError(
            f"dataloader.weights: {len(weights)} for {len(urls)} shard sets; one each, or none"
        )
    if not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(f"dataloader.weights: must be positive numbers, got {weights}")
    if settings.seq_len < LEAST_TOKENS:
        raise ConfigError(
            f"training.seq_len: must be at least {LEAST_TOKENS}, got {settings.seq_len}"
        )
    if settings.lanes < 1:
        raise ConfigError(f"dataloader.lanes: must be at least 1, got {settings.lanes}")
    if settings.shuffle_bytes is not None and settings.shuffle_bytes < settings.lanes:
        raise ConfigError(
            "dataloader.shuffle_bytes: must be at least 1 for each of the "
            f"{settings.lanes} lanes, got {settings.shuffle_bytes}"
        )
    if settings.seed < 0:
        raise ConfigError(f"dataloader.seed: must not be negative, got {settings.seed}")
    if patches is not None and not LEAST_PATCHES <= patches <= settings.seq_len:
        raise ConfigError(
            f"dataloader.patches_per_row: must be {LEAST_PATCHES} to {settings.seq_len}, the "
            f"tokens of a row, got {patches}"
        )
    if not settings.patches and (patches is not None or rule.given()):
        raise ConfigError(
            "dataloader.patches: without patches there is neither a boundary rule with its "
            "settings nor patches_per_row"
        )
    rules = (*plain_text_rules(), "bpe")
    if rule.rule is not None and rule.rule not in rules:
        raise ConfigError(f"dataloader.rule: {rule.rule!r} is not one of {', '.join(rules)}")
