"""Documents laid end to end, with the entropies of their tokens and the patches those give.

Boundaries are a function of the entropies as they are stored (float16), so any rule can be applied
again later, without the entropy model. Plain numpy: how rows of a shard hold the same numbers is
the business of :mod:`pipeline.shards.format`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.patcher import Patcher
from model.tokenizer import encode_documents


class PatchedTokens(NamedTuple):
    """Documents laid end to end: how long they are, their entropies and their patches."""

    lengths_D: np.ndarray
    """int64: tokens of each document (BOS, bytes, EOS)."""
    entropies_T: np.ndarray
    """float16, nats, one per token; empty where they are not known."""
    patch_lengths_P: np.ndarray
    """int64, tokens; a function of ``entropies_T`` as stored."""
    patches_D: np.ndarray
    """int64: patches of each document."""


def patch_stored(
    patcher: Patcher,
    entropies_T: np.ndarray,
    lengths_D: np.ndarray,
    tokens_T: np.ndarray | None = None,
    ends_T: np.ndarray | None = None,
) -> PatchedTokens:
    """Patch documents laid end to end by their stored entropies.

    Args:
        entropies_T: float16, nats, one per token.
        lengths_D: int64, tokens of each document.
        tokens_T: token ids; only rules that read them need them.
        ends_T: bool: the tokens with which patches end; only rules that take them from a tokenizer
            or a column need them.

    Raises:
        ValueError: the lengths do not sum to the entropies, or the rule needs tokens or ends.
    """
    import torch  # not before it is needed: many readers of shards do without

    # torch takes writable arrays only, and those of Arrow are not.
    h_T = entropies_T if entropies_T.flags.writeable else entropies_T.copy()
    lengths_P, patches_D = patcher.patch_lengths_flat(
        torch.from_numpy(h_T),
        torch.from_numpy(lengths_D),
        None if tokens_T is None else torch.from_numpy(tokens_T),
        ends_T=None if ends_T is None else torch.from_numpy(ends_T),
    )
    return PatchedTokens(lengths_D, entropies_T, lengths_P.numpy(), patches_D.numpy())


def ends_of(patch_lengths_P: np.ndarray) -> np.ndarray:
    """Mark the tokens with which patches end (bool), given the patches of documents end to end:
    the patch lengths 1 2 1 4 give 1 0 1 1 0 0 0 1."""
    end_P = patch_lengths_P.cumsum(dtype=np.int64)
    ends_T = np.zeros(int(end_P[-1]) if len(end_P) else 0, bool)
    ends_T[end_P - 1] = True
    return ends_T


def recut(
    patcher: Patcher,
    entropies_T: np.ndarray,
    lengths_D: np.ndarray,
    texts: Sequence[bytes] = (),
    ends_T: np.ndarray | None = None,
) -> PatchedTokens:
    """Re-patch documents by their stored entropies; text is tokenized only if the rule reads it.

    Args:
        entropies_T: float16, nats, one per token.
        lengths_D: int64, tokens of each document.
        texts: UTF-8 text of each document; rules that look at entropies alone do without.
        ends_T: as for :func:`patch_stored`; with them the text is not read.

    Raises:
        ValueError: the lengths do not sum to the entropies, or the texts do not fit them.
    """
    if not patcher.reads_tokens or ends_T is not None:
        return patch_stored(patcher, entropies_T, lengths_D, None, ends_T)
    tokens_T, token_lengths_D = encode_documents(texts)
    if not np.array_equal(token_lengths_D, lengths_D):
        raise ValueError(
            f"texts: are not those of the documents, which the {patcher.rule} rule reads"
        )
    return patch_stored(patcher, entropies_T, lengths_D, tokens_T)
