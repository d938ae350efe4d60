"""A count-based byte n-gram model: the cheap entropy model (arXiv 2412.09871, sections 2.3, 4.4).

Fitting counts the n-grams of a sample in one pass (:class:`NGramCounts`). From the counts it
computes the exact entropy of the interpolated next-byte distribution (Witten and Bell, 1991) after
every context that was seen (:func:`_entropies_by_order`). Scoring only looks entropies up: the
longest context that is in the tables decides. No probability is computed on the hot path.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.short_context import ShortContextModel
from model.tokenizer import VOCAB_SIZE

TOKEN_BITS = 9
MAX_ORDER = 6
"""Tokens of context: with one more token, the next, an n-gram's key fills 63 bits."""
DIRECT_ORDER = 2
"""Contexts of up to so many tokens index a table that holds all of them."""
MAX_TABLE_BITS = 22
MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
"""2**64 / golden ratio. It is odd, so that multiplying by it modulo a power of 2 can be undone."""


def context_keys(tokens_T: np.ndarray, starts_S: np.ndarray, order: int) -> np.ndarray:
    """The last ``order`` tokens up to each position as one int64, the newest in the lowest bits.

    The keys of 1 token are the tokens. Two keys of w tokens that end w tokens apart make a key of
    2 w, so that the width doubles in each step: the tokens 5, 7, 9, for example, have the keys 5,
    ``5 << 9 | 7`` and ``7 << 9 | 9`` for the order 2.

    Args:
        starts_S: first positions of segments, beyond which contexts do not reach back. Id 0 (BOE)
            stands for each token that is missing.
    """
    keys, width = tokens_T.astype(np.int64), 1
    while width < order:
        step = min(width, order - width)
        # The keys of `step` tokens that end `width` tokens earlier supply the older part.
        older = keys[:-width] & ((1 << TOKEN_BITS * step) - 1)
        keys[width:] |= older << (TOKEN_BITS * width)
        width += step
    # Masks of several segments meet where these are shorter than the order: the smallest is right,
    # and as each mask keeps a part of what the larger ones keep, any sequence gives that.
    for distance in range(order - 1):
        at = starts_S + distance
        at = at[at < len(keys)]
        keys[at] &= (1 << TOKEN_BITS * (distance + 1)) - 1
    return keys


@dataclass
class NGramCounts:
    """How often each n-gram occurred: ``order`` tokens of context and the token after them."""

    order: int
    grams_G: np.ndarray
    """int64, sorted, distinct: ``context key << 9 | next token``."""
    counts_G: np.ndarray
    """int64."""

    @classmethod
    def of(cls, tokens_T: np.ndarray, lengths_S: np.ndarray, order: int) -> "NGramCounts":
        """The counts of segments laid end to end.

        Args:
            tokens_T: ids of all segments.
            lengths_S: tokens of each segment.
            order: tokens of context.
        """
        predicts_T = np.ones(len(tokens_T), bool)
        predicts_T[np.cumsum(lengths_S) - 1] = False  # nothing follows the last token
        starts_S = np.cumsum(lengths_S) - lengths_S
        keys = context_keys(tokens_T, starts_S, order)[predicts_T]
        following = tokens_T[1:][predicts_T[:-1]].astype(np.int64)
        return cls(order, *np.unique(keys << TOKEN_BITS | following, return_counts=True))

    def merge(self, other: "NGramCounts", limit: int) -> "NGramCounts":
        """The sum of both. If it has more than ``limit`` n-grams, the rarest are left out."""
        grams = np.concatenate([self.grams_G, other.grams_G])
        counts = np.concatenate([self.counts_G, other.counts_G])
        grams, counts = _sum_by_key(grams, counts)
        while len(grams) > limit:
            frequent = counts > counts.min()
            if not frequent.any():  # all are equally rare
                frequent = np.arange(len(grams)) < limit
            grams, counts = grams[frequent], counts[frequent]
        return NGramCounts(self.order, grams, counts)

    def shorter(self) -> "NGramCounts":
        """The counts with one token of context less: the oldest is dropped."""
        kept_bits = (1 << TOKEN_BITS * self.order) - 1
        return NGramCounts(self.order - 1, *_sum_by_key(self.grams_G & kept_bits, self.counts_G))


def _sum_by_key(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[first], np.add.reduceat(values, first) if len(first) else values


@dataclass
class _ContextEntropies:
    """The entropy after every context of one length that was seen."""

    contexts_C: np.ndarray
    """int64 keys, sorted."""
    totals_C: np.ndarray
    """int64: occurrences of each."""
    entropies_C: np.ndarray
    """float64, nats."""


def _entropies_by_order(counts: NGramCounts) -> Iterator[_ContextEntropies]:
    """The entropies after contexts of 0, 1, ... ``counts.order`` tokens.

    Witten and Bell: after a context with N occurrences of T distinct tokens,
    ``p(w) = n(w) / (N + T) + λ p'(w)`` with ``λ = T / (N + T)``, where p' is the distribution after
    the context without its oldest token (uniform for the empty context).

    Idea: p differs from ``λ p'`` only for the set S of tokens that were seen after the context.
    All others together contribute ``-Σ λ p' ln(λ p')`` to the entropy, which is
    ``-λ ln λ (1 - P'(S)) + λ (H' + Σ_S p' ln p')`` with P'(S) the mass of S under p' and H' the
    entropy of p'. So each order needs H' and p'(S) of the order below and visits only what was
    counted: its cost is that of the n-grams, not of contexts times vocabulary.

    Example: four tokens, the empty context, and the counts a: 2, b: 1. N = 3, T = 2, λ = 2/5,
    p' = 1/4 each. p(a) = 2/5 + 1/10 = 0.5, p(b) = 1/5 + 1/10 = 0.3, the other two 0.1 each: 1.168
    nats. By the formula, a and b contribute 0.708, the others 0.183 + 0.4 (1.386 - 0.693) = 0.460.
    """
    by_order = [counts]
    while by_order[0].order:
        by_order.insert(0, by_order[0].shorter())
    lower_grams = lower_contexts = np.zeros(0, np.int64)
    lower_p = lower_h = np.zeros(0)
    for level in by_order:
        contexts_G = level.grams_G >> TOKEN_BITS
        first_C = np.flatnonzero(np.diff(contexts_G, prepend=-1))
        contexts_C, seen_C = contexts_G[first_C], np.diff(first_C, append=len(contexts_G))
        totals_C = np.add.reduceat(level.counts_G, first_C)
        if level.order == 0:
            backoff_p_G = np.full(len(contexts_G), 1 / VOCAB_SIZE)
            backoff_h_C = np.full(len(contexts_C), np.log(VOCAB_SIZE))
        else:
            kept_bits = (1 << TOKEN_BITS * level.order) - 1
            backoff_p_G = lower_p[np.searchsorted(lower_grams, level.grams_G & kept_bits)]
            shorter_C = contexts_C & (kept_bits >> TOKEN_BITS)
            backoff_h_C = lower_h[np.searchsorted(lower_contexts, shorter_C)]
        lambda_C = seen_C / (totals_C + seen_C)
        p_G = level.counts_G / np.repeat(totals_C + seen_C, seen_C)
        p_G += np.repeat(lambda_C, seen_C) * backoff_p_G
        seen_h_C = -np.add.reduceat(p_G * np.log(p_G), first_C)
        seen_mass_C = np.add.reduceat(backoff_p_G, first_C)
        seen_backoff_C = np.add.reduceat(backoff_p_G * np.log(backoff_p_G), first_C)
        h_C = seen_h_C - lambda_C * np.log(lambda_C) * np.maximum(1 - seen_mass_C, 0)
        h_C += lambda_C * np.maximum(backoff_h_C + seen_backoff_C, 0)
        yield _ContextEntropies(contexts_C, totals_C, h_C)
        lower_grams, lower_p, lower_contexts, lower_h = level.grams_G, p_G, contexts_C, h_C


def _slots(contexts: np.ndarray, order: int, table_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each context in a hashed table, and a check that tells it from others there.

    Index (the high bits) and check (the rest) together are the context's key multiplied by an odd
    number, modulo a power of 2. As that can be undone, no two contexts share both: a hit is never a
    false one.
    """
    key_bits = TOKEN_BITS * order
    mixed = (contexts * np.int64(MULTIPLIER)) & ((1 << key_bits) - 1)
    check_bits = key_bits - table_bits
    return mixed >> check_bits, mixed & ((1 << check_bits) - 1)


def _hashed_table(level: _ContextEntropies, order: int, min_count: int) -> np.ndarray:
    """A table of int64 ``check << 16 | float16 entropy``, with -1 in empty slots. The most
    frequent of the contexts that share a slot gets it.

    Args:
        min_count: contexts that occurred less often are left out.
    """
    frequent = level.totals_C >= min_count
    contexts, totals, entropies = (
        level.contexts_C[frequent],
        level.totals_C[frequent],
        level.entropies_C[frequent],
    )
    table_bits = min(max(2 * len(contexts), 1 << 10).bit_length() + 1, MAX_TABLE_BITS)
    index, check = _slots(contexts, order, table_bits)
    by_count = np.argsort(totals, kind="stable")  # a later, more frequent one overwrites
    table = np.full(1 << table_bits, -1, np.int64)
    bits = entropies.astype(np.float16).view(np.uint16).astype(np.int64)
    table[index[by_count]] = (check << 16 | bits)[by_count]
    return table


class NGramEntropyModel(ShortContextModel):
    """Tables of entropies by context; see the module's text. It computes in one thread.

    Entropies are stored, and therefore returned, with the precision of float16.
    """

    kind = "ngram"
    title = "an n-gram model"
    block_tokens = 1 << 16

    def __init__(self, direct: np.ndarray, hashed: dict[int, np.ndarray]):
        """
        Args:
            direct: float16 entropies indexed by the last two tokens.
            hashed: a table for each number of context tokens, from 3 without gaps; see
                ``_hashed_table``.
        """
        self.direct = direct
        self.hashed = dict(sorted(hashed.items()))

    @property
    def order(self) -> int:
        """Tokens of context."""
        return max(self.hashed, default=DIRECT_ORDER)

    @classmethod
    def fit(
        cls,
        batches: Iterable[tuple[np.ndarray, np.ndarray]],
        *,
        order: int = 5,
        min_count: int = 2,
        max_grams: int = 1 << 25,
    ) -> "NGramEntropyModel":
        """A model of the n-grams in some text, in one pass over it.

        Args:
            batches: ``tokens_T`` and ``lengths_S`` of segments laid end to end.
            order: tokens of context, 2 to 6.
            min_count: contexts of more than two tokens are left out if they occur less often.
            max_grams: how many n-grams are counted at most; each takes about 32 bytes.

        Raises:
            ValueError: there is no text, or ``order`` is out of range.
        """
        if not DIRECT_ORDER <= order <= MAX_ORDER:
            raise ValueError(f"order: must be {DIRECT_ORDER} to {MAX_ORDER}, got {order}")
        counts = NGramCounts(order, np.zeros(0, np.int64), np.zeros(0, np.int64))
        for tokens_T, lengths_S in batches:
            counts = counts.merge(NGramCounts.of(tokens_T, lengths_S, order), max_grams)
        if not len(counts.grams_G):
            raise ValueError("no text to fit the n-gram model on")
        levels = list(_entropies_by_order(counts))
        direct = np.full(1 << TOKEN_BITS * DIRECT_ORDER, levels[0].entropies_C[0], np.float16)
        by_last_token = direct.reshape(-1, 1 << TOKEN_BITS)
        by_last_token[:, levels[1].contexts_C] = levels[1].entropies_C
        direct[levels[2].contexts_C] = levels[2].entropies_C
        hashed = {k: _hashed_table(levels[k], k, min_count) for k in range(3, order + 1)}
        return cls(direct, hashed)

    def tensors(self) -> dict[str, Tensor]:
        """The tables by name, as checkpoints hold them."""
        tables = {f"order_{k}": torch.tensor(table) for k, table in self.hashed.items()}
        return {"direct": torch.tensor(self.direct), **tables}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "NGramEntropyModel":
        """The model whose :meth:`tensors` these are."""
        tables = {name: table.numpy() for name, table in tensors.items()}
        direct = tables.pop("direct")
        return cls(direct, {int(name.removeprefix("order_")): tables[name] for name in tables})

    def _block_entropies(self, tokens_T: np.ndarray, starts_S: np.ndarray) -> np.ndarray:
        return self._lookup(context_keys(tokens_T, starts_S, self.order))

    def _lookup(self, keys: np.ndarray) -> np.ndarray:
        """float16 entropies after contexts of ``self.order`` tokens: those of the longest ends of
        the contexts that are in the tables."""
        bits = np.empty(len(keys), np.uint16)
        missing = None  # positions still to look up; None for all
        for order in sorted(self.hashed, reverse=True):
            table = self.hashed[order]
            asked = keys if missing is None else keys[missing]
            asked = asked & ((1 << TOKEN_BITS * order) - 1)
            index, check = _slots(asked, order, len(table).bit_length() - 1)
            entries = table[index]
            if missing is None:
                bits[:] = entries
                missing = np.flatnonzero(entries >> 16 != check)
            else:
                bits[missing] = entries
                missing = missing[entries >> 16 != check]
        direct = self.direct.view(np.uint16)
        if missing is None:
            bits[:] = direct[keys & (len(direct) - 1)]
        else:
            bits[missing] = direct[keys[missing] & (len(direct) - 1)]
        return bits.view(np.float16)
