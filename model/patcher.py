"""Boundary rules: where patches start, given next-byte entropies or the tokens themselves.

One vectorised implementation works on documents laid end to end (the *flat* form); the batch form
is a view of it. Sources: arXiv 2412.09871, sections 2.2-2.4 and 4.4, and the behaviour of the code
that the published weights were trained with.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from model.segments import cut_long
from model.tokenizer import BPE_ID, BYTE_OFFSET

Rule = Literal["global", "monotonic", "combined", "top-k", "space", "static", "byte", "bpe"]
ENTROPY_RULES = ("global", "monotonic", "combined", "top-k")
THRESHOLD_RULES = ("global", "monotonic", "combined")
TOKEN_RULES = ("space", "bpe")


@dataclass(frozen=True)
class Patcher:
    """Cuts documents into patches by one rule.

    Tokens of a document are numbered from 0 (BOS). Whatever the rule, patches start at token 0 and
    at token 1; ``h[i]`` is the entropy of the prediction after token ``i``. Comparisons are made in
    float32, so float16 entropies give the same boundaries wherever they are computed.

    Raises:
        ValueError: the settings do not fit together; the message names the setting.
    """

    threshold: float | None = None
    """Nats. global, combined: ``h[i] > threshold``; monotonic: ``h[i] - h[i-1] > threshold``."""
    rule: Rule = "global"
    threshold_add: float | None = None
    """Nats. combined: also ``h[i] - h[i-1] > threshold_add``."""
    patch_size: float | None = None
    """Tokens. top-k: ``n // patch_size`` patches; static: the length of every patch."""
    max_patch_length: int | None = None
    """Tokens. A longer patch is cut into pieces of this length and a rest."""
    published: bool = False
    """Reproduce the published code where it departs from the rule: monotonic and combined always
    start a patch at token 2, combined never at token 3, static counts from token 0."""

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"rule: {self.rule!r} is not one of {', '.join(get_args(Rule))}")
        self._check("threshold", self.rule in THRESHOLD_RULES)
        self._check("threshold_add", self.rule == "combined")
        self._check("patch_size", self.rule in ("top-k", "static"))
        if self.patch_size is not None and not 1 <= self.patch_size < float("inf"):
            raise ValueError(f"patch_size: must be at least 1, got {self.patch_size}")
        if self.max_patch_length is not None and self.max_patch_length < 1:
            raise ValueError(f"max_patch_length: must be at least 1, got {self.max_patch_length}")

    def _check(self, name: str, needed: bool) -> None:
        value = getattr(self, name)
        if needed and value is None:
            raise ValueError(f"{name}: the {self.rule} rule needs it")
        if not needed and value is not None:
            raise ValueError(f"{name}: the {self.rule} rule does not use it")
        if value is not None and value != value:
            raise ValueError(f"{name}: is not a number")

    def patch_lengths(
        self,
        entropies_BS: Tensor,
        tokens_BS: Tensor | None = None,
        *,
        lengths_B: Tensor | None = None,
        include_next_token: bool = False,
    ) -> Tensor:
        """Patch lengths of a batch, one document a row.

        Args:
            entropies_BS: nats, any float dtype. Rules that ignore entropies use its shape only.
            tokens_BS: token ids; needed by the space and bpe rules.
            lengths_B: tokens in each row where rows are right-padded; all of them by default.
            include_next_token: count one more slot a row, the token being predicted, as BLT does
                in training: lengths then sum to ``n + 1``.

        Returns:
            ``[batch, max_patches]`` int64, right-padded with 0; each row sums to ``n``.
        """
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
    ) -> tuple[Tensor, Tensor]:
        """Patch lengths of documents laid end to end.

        Args:
            entropies_T: nats, all documents after one another.
            lengths_D: tokens of each document; sums to ``len(entropies_T)``.

        Returns:
            ``lengths_P`` of all patches in order, and ``patches_D``, how many each document has;
            both int64.
        """
        if int(lengths_D.sum()) != len(entropies_T) or bool((lengths_D < 1).any()):
            raise ValueError(
                f"lengths: must be 1 or more and sum to {len(entropies_T)} tokens, "
                f"got {lengths_D.tolist()}"
            )
        lengths_D = lengths_D.to(entropies_T.device)
        # A document of n tokens has n slots, or n + 1 with the next token.
        slots_D = lengths_D + int(include_next_token)
        first_D = slots_D.cumsum(0) - slots_D
        starts_S = self._starts(entropies_T, lengths_D, tokens_T, slots_D, first_D)
        start_P = _where(starts_S)
        lengths_P = torch.diff(start_P, append=start_P.new_tensor([len(starts_S)]))
        if self.max_patch_length is not None:
            lengths_P = cut_long(lengths_P, self.max_patch_length)
            start_P = lengths_P.cumsum(0) - lengths_P
        # Every document's first slot starts a patch.
        first_patch_D = torch.searchsorted(start_P, first_D)
        return lengths_P, torch.diff(first_patch_D, append=first_D.new_tensor([len(start_P)]))

    def _starts(
        self,
        h_T: Tensor,
        lengths_D: Tensor,
        tokens_T: Tensor | None,
        slots_D: Tensor,
        first_D: Tensor,
    ) -> Tensor:
        """Which slots start a patch; long patches are not cut here."""
        slots, next_token = int(slots_D.sum()), len(h_T) < int(slots_D.sum())
        if self.rule == "byte":
            return torch.ones(slots, dtype=torch.bool, device=h_T.device)
        starts_S = torch.zeros(slots, dtype=torch.bool, device=h_T.device)

        def put(position: int, value: bool) -> None:
            starts_S[first_D[slots_D > position] + position] = value

        if self.rule == "static":
            starts_S[self._static(slots_D, first_D)] = True
        else:
            # The slot after a token that ends a patch starts one.
            ends_T = self._ends(h_T, lengths_D, tokens_T, next_token)
            if next_token:
                after_T = torch.arange(1, len(h_T) + 1, device=h_T.device)
                starts_S[after_T + torch.repeat_interleave(lengths_D)] = ends_T
            else:
                starts_S[1:] = ends_T[:-1]
            put(1, True)
            if self.published and self.rule in ("monotonic", "combined"):
                put(2, True)
            if self.published and self.rule == "combined":
                put(3, False)
        put(0, True)
        return starts_S

    def ends_in_piece(
        self,
        entropies_BS: Tensor,
        tokens_BS: Tensor,
        position_B: Tensor,
        patch_start_B: Tensor,
    ) -> Tensor:
        """Whether a patch ends with each token, for documents that are read piece by piece.

        Args:
            entropies_BS: nats; the piece, and before it one column for the token before it (at the
                start of a document, anything).
            tokens_BS: token ids of the same.
            position_B: position in its document of the piece's first token.
            patch_start_B: where the patch began that is open there.

        Returns:
            ``[batch, piece]`` bool.

        Raises:
            ValueError: the rule needs the whole document (top-k).
        """
        if self.rule == "top-k":
            raise ValueError("rule: top-k chooses among a whole document, not in pieces")
        rows, columns = tokens_BS.shape
        # The slot after a token starts a patch where the token ends one.
        slot_BS = position_B[:, None] + torch.arange(columns, device=tokens_BS.device)
        if self.rule == "byte":
            starts_BS = torch.ones_like(slot_BS, dtype=torch.bool)
        elif self.rule == "static":
            starts_BS = self._is_static(slot_BS)
        else:
            lengths_B = torch.full((rows,), columns, device=tokens_BS.device)
            ends_T = self._ends(entropies_BS.flatten(), lengths_B, tokens_BS.flatten(), False)
            starts_BS = ends_T.view(rows, columns) | (slot_BS < 2)
            if self.published and self.rule in ("monotonic", "combined"):
                starts_BS |= slot_BS == 2
            if self.published and self.rule == "combined":
                starts_BS &= slot_BS != 3
        if self.max_patch_length is not None:
            natural_BS = torch.where(starts_BS, slot_BS, 0)
            natural_BS[:, 0] = patch_start_B
            since_BS = slot_BS - natural_BS.cummax(1).values
            starts_BS = starts_BS | (since_BS % self.max_patch_length == 0)
        return starts_BS[:, 1:]

    def _ends(
        self,
        h_T: Tensor,
        lengths_D: Tensor,
        tokens_T: Tensor | None,
        next_token: bool,
    ) -> Tensor:
        """Whether a patch ends with each token; what it says of token 0 is not used."""
        if self.rule in TOKEN_RULES:
            if tokens_T is None:
                raise ValueError(f"tokens: the {self.rule} rule needs them")
            return tokens_T == BPE_ID if self.rule == "bpe" else _space_ends(tokens_T, lengths_D)
        h_T = h_T.float()
        if self.rule == "top-k":
            return self._top_k(h_T, lengths_D, next_token)
        # A 0-d float32 tensor: a Python number would be compared in double precision or rounded
        # to the other side's type, depending on the device and library.
        threshold = torch.tensor(self.threshold, dtype=torch.float32, device=h_T.device)
        if self.rule == "global":
            return h_T > threshold
        rise_T = torch.diff(h_T, prepend=h_T[:1])
        if self.rule == "monotonic":
            return rise_T > threshold
        threshold_add = torch.tensor(self.threshold_add, dtype=torch.float32, device=h_T.device)
        return (rise_T > threshold_add) & (h_T > threshold)

    def _top_k(self, h_T: Tensor, lengths_D: Tensor, next_token: bool) -> Tensor:
        """The ``n // patch_size - 2`` highest entropies of each document; ties go to the first."""
        assert self.patch_size is not None
        wanted_D = ((lengths_D / self.patch_size).floor().long() - 2).clamp(min=0)
        document_T = torch.repeat_interleave(lengths_D)
        first_D = lengths_D.cumsum(0) - lengths_D
        position_T = torch.arange(len(h_T), device=h_T.device) - first_D[document_T]
        # The last token's entropy decides about the slot after it, which may not exist.
        candidate_T = (position_T > 0) & (position_T < (lengths_D - 1 + next_token)[document_T])
        key_T = torch.where(candidate_T, h_T, -torch.inf)
        order_T = key_T.argsort(descending=True, stable=True)
        order_T = order_T[document_T[order_T].argsort(stable=True)]
        ends_T = torch.empty_like(candidate_T)
        # After the second sort a document's tokens stand together again, highest entropy first,
        # so that their rank is the position within the document.
        ends_T[order_T] = position_T < wanted_D[document_T]
        return ends_T & candidate_T

    def _static(self, slots_D: Tensor, first_D: Tensor) -> Tensor:
        """Slots ``floor(k * patch_size)``, counted from token 1 (from token 0 as published)."""
        assert self.patch_size is not None
        origin = 0 if self.published else 1
        most_D = (slots_D / self.patch_size).long() + 2
        document_K = torch.repeat_interleave(most_D)
        k_K = torch.arange(len(document_K), device=slots_D.device)
        k_K -= (most_D.cumsum(0) - most_D)[document_K]
        position_K = (k_K.double() * self.patch_size).floor().long() + origin
        inside_K = position_K < slots_D[document_K]
        return (first_D[document_K] + position_K)[inside_K]

    def _is_static(self, slot_S: Tensor) -> Tensor:
        """Whether a slot is one of those that :meth:`_static` gives."""
        assert self.patch_size is not None
        past_S = slot_S if self.published else slot_S - 1
        k_S = (past_S.double() / self.patch_size).ceil()
        # Division may round k to a neighbour: ask for the neighbours too.
        starts_S = slot_S == 0
        for step in (-1, 0, 1):
            starts_S |= ((k_S + step) * self.patch_size).floor() == past_S
        return starts_S


def _where(mask_S: Tensor) -> Tensor:
    """Indices of what is true."""
    if mask_S.device.type == "cpu":  # numpy finds them several times as fast there
        return torch.from_numpy(np.flatnonzero(mask_S.numpy()))
    return mask_S.nonzero()[:, 0]


def _space_ends(tokens_T: Tensor, lengths_D: Tensor) -> Tensor:
    """Ends of words: bytes that are neither letters, digits nor the rest of a character.

    Of a run of such bytes only the first ends a patch. Special ids count as such bytes and always
    end one.
    """
    byte_T = tokens_T - BYTE_OFFSET
    letter_or_digit_T = torch.zeros_like(byte_T, dtype=torch.bool)
    for first, last in ((ord("0"), ord("9")), (ord("A"), ord("Z")), (ord("a"), ord("z"))):
        letter_or_digit_T |= (byte_T >= first) & (byte_T <= last)
    continuation_T = (byte_T >= 0x80) & (byte_T < 0xC0)
    space_T = ~(letter_or_digit_T | continuation_T)
    after_space_T = space_T.roll(1)
    after_space_T[lengths_D.cumsum(0) - lengths_D] = False
    return (space_T & ~after_space_T) | (byte_T < 0)
