"""The lesson of a student: text and entropies of shard sets."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.provenance import EntropyModelIdentity
from model.segments import cut_segments
from model.tokenizer import encode_documents
from pipeline.errors import ConfigError, DamagedShardError
from pipeline.shards.format import ENTROPIES, TEXT, read_entropies, read_texts
from pipeline.shards.shard_set import ShardSet


@dataclass(frozen=True)
class Lesson:
    """Segments laid end to end, with the entropies that a student is to give."""

    tokens_T: np.ndarray
    """int32 ids."""
    lengths_S: np.ndarray
    """int64: tokens of each segment."""
    entropies_T: np.ndarray
    """float16, nats."""


def find_teacher(sets: Sequence[ShardSet]) -> EntropyModelIdentity:
    """The entropy model that all of the sets were scored with.

    Raises:
        ConfigError: a set has no entropies, or another model's; says what to do.
    """
    teachers = []
    for shards in sets:
        if not shards.has_entropies or shards.entropy_model is None:
            raise ConfigError(
                f"--shards: {shards.output.url} has no entropies to learn from; patch the corpus "
                "without --drop-entropies and a rule that reads them"
            )
        teachers.append(shards.entropy_model)
    known = {(each.fingerprint, each.reset_at_newline) for each in teachers}
    if len(known) > 1:
        names = ", ".join(dict.fromkeys(str(each) for each in teachers))
        raise ConfigError(
            f"--shards: the sets were scored by different entropy models, or some of them with "
            f"--reset-at-newline ({names}); give sets of one model"
        )
    return teachers[0]


def read_lesson(sets: Sequence[ShardSet], size: int, *, reset_at_newline: bool) -> Lesson:
    """Documents from the beginning of every shard, in all about ``size`` bytes: each shard gives as
    much of its text as all shards do of theirs.

    Args:
        reset_at_newline: the teacher's context began again after every newline.

    Raises:
        ConfigError: the sets hold no documents.
        PipelineError: a shard cannot be read.
    """
    total = sum(int(tokens) for shards in sets for tokens in shards.shards.tokens)
    share = min(size / max(total, 1), 1)
    texts: list[bytes] = []
    entropies: list[np.ndarray] = []
    for shards in sets:
        for number, tokens in enumerate(shards.shards.tokens.tolist()):
            left = tokens * share
            for batch in shards.shard_batches(number, [TEXT, ENTROPIES]):
                try:
                    h_T, lengths_D = read_entropies(batch)
                    rows = read_texts(batch)
                    if [len(text) + 2 for text in rows] != lengths_D.tolist():
                        raise ValueError("a row has more or fewer entropies than tokens")
                except ValueError as error:
                    raise DamagedShardError(f"{shards.path(number)}: {error}") from error
                kept = int((lengths_D.cumsum() - lengths_D < left).sum())
                texts += rows[:kept]
                entropies.append(h_T[: lengths_D[:kept].sum()])
                left -= int(lengths_D.sum())
                if left <= 0:
                    break
    if not texts:
        raise ConfigError("--shards: the sets hold no documents; there is nothing to learn from")
    tokens_T, lengths_D = encode_documents(texts)
    lengths_S = cut_segments(
        torch.from_numpy(tokens_T),
        torch.from_numpy(lengths_D),
        context_length=None,
        reset_at_newline=reset_at_newline,
    )
    return Lesson(tokens_T, lengths_S.numpy(), np.concatenate(entropies))
