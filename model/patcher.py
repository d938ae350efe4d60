"""Cutting documents into patches by one boundary rule, given next-byte entropies or token ids.

One vectorised implementation works on documents laid end to end (the *flat* form); the batch form
is a view of it. The rules themselves are in :mod:`model.rules`; this module holds what is the same
for all of them: the first patches of a document, ``max_patch_length``, and the forms of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypedDict

from model.rules import (
    DEFAULT_RULE,
    RULES,
    SETTINGS,
    BoundaryRule,
    Compared,
    EndsFrom,
    Pieces,
    added_rule,
    find_rule,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Commands check their flags with a Patcher: methods import torch, the module does not.
SHOWN_DIGITS = 12
"""Hexadecimal digits of a hash that messages show."""

LONGEST_PATCH = 2**31 - 1
"""Tokens: lengths are stored as int32."""


class PatcherValues(TypedDict, total=False):
    """A :class:`Patcher` as manifests and checkpoints hold it; what is not set is left out."""

    threshold: float | None
    rule: str
    threshold_add: float | None
    patch_size: float | None
    max_patch_length: int | None
    published: bool
    tokenizer: str | None


@dataclass(frozen=True)
class Patcher:
    """Cuts documents into patches by one rule.

    Tokens of a document are numbered from 0 (BOS); ``h[i]`` is the entropy of the prediction after
    token ``i``. Patches start at token 0 and at token 1, whatever the rule (only static, as
    published, starts none at 1). Comparisons are made in float32, so that float16 entropies give
    the same boundaries wherever they are computed.

    Raises:
        ValueError: the settings do not fit together; the message names the setting.
    """

    threshold: float | None = None
    """Nats. global, combined: ``h[i] > threshold``; monotonic: ``h[i] - h[i-1] > threshold``."""
    rule: str = DEFAULT_RULE
    """A name of :data:`model.rules.RULES`."""
    threshold_add: float | None = None
    """Nats. combined: also ``h[i] - h[i-1] > threshold_add``."""
    patch_size: float | None = None
    """Tokens. top-k: ``n // patch_size`` patches; static: the length of every patch."""
    max_patch_length: int | None = None
    """Tokens. A longer patch is cut into pieces of this length and a rest."""
    published: bool = False
    """Reproduce the published code where it departs from the rule: monotonic and combined always
    start a patch at token 2, combined never at token 3, static counts from token 0, top-k breaks
    ties as ``torch.topk`` does and may choose the last entropy, and a delimiter at the end of a
    document starts no patch of the next token (bpe)."""
    tokenizer: str | None = None
    """bpe: SHA-256, hexadecimal, of the ``tokenizer.json`` whose tokens become patches of plain
    text; None for streams that hold delimiters (id 3)."""

    def __post_init__(self) -> None:
        rule = find_rule(self.rule)
        needed = rule.settings
        if self.tokenizer is not None and rule.ends_from != "tokenizer":
            raise ValueError(f"tokenizer: the {self.rule} rule does not use it")
        for name in SETTINGS:
            self._check(name, name in needed)
        if not isinstance(self.published, bool):
            raise ValueError(f"published: {self.published!r:.80} is neither true nor false")
        if not isinstance(self.max_patch_length, Integral | None) or self.max_patch_length is True:
            raise ValueError(f"max_patch_length: {self.max_patch_length!r:.80} is no whole number")
        if self.patch_size is not None and self.patch_size < 1:
            raise ValueError(f"patch_size: must be at least 1, got {self.patch_size}")
        if self.max_patch_length is not None and not 1 <= self.max_patch_length <= LONGEST_PATCH:
            raise ValueError(
                f"max_patch_length: must be 1 to {LONGEST_PATCH}, got {self.max_patch_length}; "
                "leave it out for patches of any length"
            )

    def _check(self, name: str, needed: bool) -> None:
        value = getattr(self, name)
        if needed and value is None:
            raise ValueError(f"{name}: the {self.rule} rule needs it")
        if not needed and value is not None:
            raise ValueError(f"{name}: the {self.rule} rule does not use it")
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ValueError(f"{name}: {value!r:.80} is no number")
        # JSON, which manifests and checkpoints are, has no other numbers.
        if value is not None and not isfinite(value):
            raise ValueError(f"{name}: must be a finite number, got {value}")

    def __str__(self) -> str:
        """The rule in words, such as ``global (threshold 1.5)``."""
        given: dict[str, Any] = {k: v for k, v in self.to_json().items() if v is not False}
        if self.tokenizer is not None:
            given["tokenizer"] = self.tokenizer[:SHOWN_DIGITS]
        listed = ", ".join(
            name if value is True else f"{name} {value}"
            for name, value in given.items()
            if name != "rule"
        )
        return f"{self.rule} ({listed})" if listed else self.rule

    @property
    def boundary_rule(self) -> BoundaryRule:
        """The rule that is applied, as published if that was asked for."""
        return find_rule(self.rule, published=self.published)

    @property
    def compares(self) -> Compared | None:
        """The value that is compared with the threshold; None for a rule without one."""
        return self.boundary_rule.compares

    @property
    def has_threshold(self) -> bool:
        """True if the rule has a threshold, so that another one can be tried."""
        return self.compares is not None

    @property
    def reads_entropies(self) -> bool:
        """True if boundaries depend on entropies; otherwise any values of their shape will do."""
        return self.boundary_rule.reads_entropies

    @property
    def reads_tokens(self) -> bool:
        """True if boundaries depend on token ids; otherwise the ids can be left out."""
        return self.boundary_rule.reads_tokens

    @property
    def needs_whole_document(self) -> bool:
        """True if a boundary may depend on tokens after it, as those of a tokenizer do."""
        return self.boundary_rule.whole_document or self.tokenizer is not None

    @property
    def ends_from(self) -> EndsFrom | None:
        """The place outside of the text that the boundaries come from, see
        :attr:`model.rules.BoundaryRule.ends_from`; None where the rule finds them itself."""
        return self.boundary_rule.ends_from

    def to_json(self) -> PatcherValues:
        """Plain values for :meth:`from_json`; what is None is left out."""
        values: dict[str, Any] = vars(self)
        return {name: value for name, value in values.items() if value is not None}  # type: ignore[return-value]

    @classmethod
    def from_json(cls, values: PatcherValues) -> Patcher:
        """The Patcher that :meth:`to_json` wrote.

        Raises:
            ValueError: the settings do not fit together; the message names the setting.
            TypeError: a setting is unknown.
        """
        return cls(**values)

    def __getstate__(self) -> dict[str, Any]:
        # Another process (a Ray worker) knows only the rules that model.rules comes with.
        return {"settings": dict(vars(self)), "added_rule": added_rule(self.rule)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state["settings"])
        if state["added_rule"] is not None:
            RULES[self.rule] = state["added_rule"]

    def patch_lengths(
        self,
        entropies_BS: Tensor,
        tokens_BS: Tensor | None = None,
        *,
        lengths_B: Tensor | None = None,
        include_next_token: bool = False,
    ) -> Tensor:
        """Patch lengths of a batch, one document per row.

        Args:
            entropies_BS: nats, any float dtype. Rules that ignore entropies use its shape only.
            tokens_BS: token ids; needed by the rules that read them (space and bpe).
            lengths_B: tokens of each row where rows are right-padded; all of them by default.
            include_next_token: count one more slot per row, the token being predicted, as BLT does
                in training: lengths then sum to ``n + 1``.

        Returns:
            ``[batch, max_patches]`` int64, right-padded with 0; each row sums to ``n``.

        Raises:
            ValueError: the rule reads tokens, and there are none.
        """
        import torch

        batch, width = entropies_BS.shape
        device = entropies_BS.device
        if lengths_B is None:
            lengths_B = torch.full((batch,), width, device=device)
        inside_BS = torch.arange(width, device=device) < lengths_B[:, None]
        flat_P, patches_B = self.patch_lengths_flat(
            entropies_BS[inside_BS],
            lengths_B,
            None if tokens_BS is None else tokens_BS[inside_BS],
            include_next_token=include_next_token,
        )
        most = int(patches_B.max()) if batch else 0
        padded_BP = flat_P.new_zeros(batch, most)
        padded_BP[torch.arange(most, device=device) < patches_B[:, None]] = flat_P
        return padded_BP

    def patch_lengths_flat(
        self,
        entropies_T: Tensor,
        lengths_D: Tensor,
        tokens_T: Tensor | None = None,
        *,
        include_next_token: bool = False,
        ends_T: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Patch lengths of documents laid end to end.

        Args:
            entropies_T: nats, all documents after one another.
            lengths_D: tokens of each document; sums to ``len(entropies_T)``.
            tokens_T: token ids; needed by the rules that read them.
            ends_T: bool: the tokens with which patches end; needed by the rules that take them
                from outside (given, and bpe with a tokenizer).

        Returns:
            ``lengths_P`` of all patches in order, and ``patches_D``, how many each document has;
            both int64.

        Raises:
            ValueError: lengths do not fit, or the rule reads tokens or ends, and there are none.
        """
        import torch

        from model.segments import cut_long

        if int(lengths_D.sum()) != len(entropies_T) or bool((lengths_D < 1).any()):
            raise ValueError(
                f"lengths: must be 1 or more and sum to {len(entropies_T)} tokens, "
                f"got {lengths_D.tolist()}"
            )
        lengths_D = lengths_D.to(entropies_T.device)
        # A document of n tokens has n slots, or n + 1 with the next token.
        slots_D = lengths_D + int(include_next_token)
        first_D = slots_D.cumsum(0) - slots_D
        whole_D = torch.zeros_like(lengths_D)
        pieces = Pieces(entropies_T, tokens_T, lengths_D, whole_D, include_next_token, ends_T)
        starts_S = self._starts(pieces, slots_D, first_D)
        start_P = _where(starts_S)
        lengths_P = torch.diff(start_P, append=start_P.new_tensor([len(starts_S)]))
        if self.max_patch_length is not None:
            lengths_P = cut_long(lengths_P, self.max_patch_length)
            start_P = lengths_P.cumsum(0) - lengths_P
        # Every document's first slot starts a patch.
        first_patch_D = torch.searchsorted(start_P, first_D)
        return lengths_P, torch.diff(first_patch_D, append=first_D.new_tensor([len(start_P)]))

    def _starts(self, documents: Pieces, slots_D: Tensor, first_D: Tensor) -> Tensor:
        """Mark each slot that starts a patch; long patches are not cut here."""
        import torch

        ends_T = self._ends(documents)
        starts_S = ends_T.new_zeros(len(ends_T) + documents.next_token * len(slots_D))
        if documents.next_token:
            after_T = torch.arange(1, len(ends_T) + 1, device=ends_T.device)
            starts_S[after_T + torch.repeat_interleave(documents.lengths_D)] = ends_T
        else:
            starts_S[1:] = ends_T[:-1]
        for slot, starts in self.boundary_rule.first_starts.items():
            starts_S[first_D[slots_D > slot] + slot] = starts
        return starts_S

    def ends_in_piece(
        self,
        entropies_BS: np.ndarray,
        tokens_BS: np.ndarray,
        position_B: np.ndarray,
        patch_start_B: np.ndarray,
    ) -> np.ndarray:
        """Mark each token that ends a patch, in documents that are read piece by piece.

        Arrays of numpy: of so few numbers, a torch tensor takes three times as long, and whoever
        writes waits for it with every byte.

        Args:
            entropies_BS: nats; the piece, and before it one column for the token before it (at the
                start of a document, anything).
            tokens_BS: token ids of the same.
            position_B: position in its document of the piece's first token.
            patch_start_B: position of the first token of the patch that the piece continues.

        Returns:
            ``[batch, piece]`` bool.

        Raises:
            ValueError: the rule needs the whole document (top-k).
        """
        import numpy as np
        from torch import from_numpy

        if self.needs_whole_document:
            raise ValueError(f"rule: {self.rule} chooses among a whole document, not in pieces")
        rows, columns = tokens_BS.shape
        pieces = Pieces(
            from_numpy(entropies_BS.ravel()),
            from_numpy(tokens_BS.ravel()),
            from_numpy(np.full(rows, columns)),
            from_numpy(position_B - 1),
        )
        # The slot after a token starts a patch where the token ends one.
        starts_BS = self._ends(pieces).numpy().reshape(rows, columns)
        first_starts = self.boundary_rule.first_starts
        begins = bool((position_B < max(first_starts)).any())
        if not begins and self.max_patch_length is None:
            return starts_BS[:, 1:]
        slot_BS = position_B[:, None] + np.arange(columns)
        if begins:
            for slot, starts in first_starts.items():
                starts_BS = np.where(slot_BS == slot, starts, starts_BS)
        if self.max_patch_length is not None:
            natural_BS = np.where(starts_BS, slot_BS, 0)
            natural_BS[:, 0] = patch_start_B
            since_BS = slot_BS - np.maximum.accumulate(natural_BS, 1)
            starts_BS = starts_BS | (since_BS % self.max_patch_length == 0)
        return starts_BS[:, 1:]

    def _ends(self, pieces: Pieces) -> Tensor:
        """Mark each token that ends a patch, as the rule's function says."""
        rule = self.boundary_rule
        if (rule.ends_from == "column" or self.tokenizer is not None) and pieces.ends_T is None:
            raise ValueError(f"ends: the {self} rule takes boundaries from a {rule.ends_from}")
        if rule.reads_tokens and pieces.tokens_T is None and pieces.ends_T is None:
            raise ValueError(f"tokens: the {self.rule} rule needs them")
        return rule.ends(pieces, *(getattr(self, name) for name in rule.settings))


def _where(mask_S: Tensor) -> Tensor:
    """Indices of what is true."""
    import numpy as np
    import torch

    if mask_S.device.type == "cpu":  # numpy finds them several times as fast there
        return torch.from_numpy(np.flatnonzero(mask_S.numpy()))
    return mask_S.nonzero()[:, 0]
