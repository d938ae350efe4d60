"""The boundary rules: where patches start, and what is to be known about each rule.

A rule is one entry of :data:`RULES`: a function that says with which tokens patches end, and the
facts that the rest of the project asks for (what it reads, which settings it takes, what it
compares with its threshold). :class:`model.patcher.Patcher` applies the rules; commands and pages
take their names from here. Sources: arXiv 2412.09871, sections 2.2-2.4, and the behaviour of the
code that the published weights were trained with.

To add a rule, write its function, add an entry, and work out a case by hand in
``tests/model/test_patcher.py``. This rule makes every line a patch::

    def _newline_ends(pieces: Pieces) -> Tensor:
        return pieces.tokens_T == NEWLINE_ID

    RULES["newline"] = BoundaryRule(_newline_ends, "after every newline", reads_tokens=True)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

# Commands read this table to parse their flags: functions import torch, the module does not.

Setting = Literal["threshold", "threshold_add", "patch_size"]
EndsFrom = Literal["tokenizer", "column"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)
Compared = Literal["entropy", "rise", "both"]
DEFAULT_RULE = "global"


@dataclass(frozen=True)
class Pieces:
    """Documents, or pieces of documents, laid end to end: the input of a rule.

    T tokens in D pieces. The *slot* after a token is the place of the token that follows it.
    """

    entropies_T: Tensor
    """Nats, any float dtype; rules that do not read entropies use the shape only."""
    tokens_T: Tensor | None
    """Token ids; present wherever the rule reads them."""
    lengths_D: Tensor
    """int64: tokens of each piece."""
    position_D: Tensor
    """int64: position of each piece's first token in its document, 0 for whole documents. A piece
    that begins one token before its document has -1; the rule's answer for that token is unused."""
    next_token: bool = False
    """True if a slot follows the last token of each document."""
    ends_T: Tensor | None = None
    """bool: the tokens with which patches end, as a tokenizer or a column of the input says;
    present where a rule takes them from there (see :attr:`BoundaryRule.ends_from`)."""


@dataclass(frozen=True)
class BoundaryRule:
    """One rule: how it finds patches, and what is to be known about it."""

    ends: Callable[..., Tensor]
    """``ends(pieces, *settings) -> bool[T]``: whether a patch ends with each token of
    :class:`Pieces`, so that the slot after the token starts the next patch. It is called with the
    values of :attr:`settings` in their order. Its answer for a document's first token is unused."""
    description: str
    """The rule in words for people; they complete "patches start"."""
    settings: tuple[Setting, ...] = ()
    """The settings that the rule needs; it takes no others."""
    compares: Compared | None = None
    """The value that the rule compares with its threshold: ``h[i]`` (entropy), ``h[i] - h[i-1]``
    (rise), or (both) ``h[i]`` with the threshold and the rise with ``threshold_add``. None for a
    rule without a threshold. Patches must end exactly where a value exceeds its threshold: counts
    for other thresholds rely on it."""
    reads_entropies: bool = False
    reads_tokens: bool = False
    whole_document: bool = False
    """The rule chooses among all tokens of a document: it cannot be applied to pieces."""
    ends_from: EndsFrom | None = None
    """The place outside of the text that says with which tokens patches end; None for a rule that
    finds them itself. Text alone cannot be patched by such a rule."""
    first_starts: Mapping[int, bool] = field(default_factory=lambda: {0: True, 1: True})
    """Slots at the beginning of a document that start a patch, or do not, whatever the rule's
    function says. Slot 0 always starts one."""
    published: BoundaryRule | None = None
    """The rule as the published code applies it, where that differs."""


def _nats(value: float, h_T: Tensor) -> Tensor:
    import torch

    # A 0-d float32 tensor: a Python number would be compared in double precision or rounded
    # to the other side's type, depending on the device and library.
    return torch.tensor(value, dtype=torch.float32, device=h_T.device)


def _high(pieces: Pieces, threshold: float) -> Tensor:
    h_T = pieces.entropies_T.float()
    return h_T > _nats(threshold, h_T)


def _rising(pieces: Pieces, threshold: float) -> Tensor:
    rise_T = _rises(pieces.entropies_T.float())
    return rise_T > _nats(threshold, rise_T)


def _high_and_rising(pieces: Pieces, threshold: float, threshold_add: float) -> Tensor:
    h_T = pieces.entropies_T.float()
    return (_rises(h_T) > _nats(threshold_add, h_T)) & (h_T > _nats(threshold, h_T))


def _rises(h_T: Tensor) -> Tensor:
    """``h[i] - h[i-1]``. For the first token of a piece the token before is another document's, but
    the answer for that token is unused."""
    import torch

    return torch.diff(h_T, prepend=h_T[:1])


def _highest(pieces: Pieces, patch_size: float) -> Tensor:
    """The ``n // patch_size - 2`` highest entropies of each document; ties go to the first."""
    import torch

    h_T, lengths_D = pieces.entropies_T.float(), pieces.lengths_D
    # Not a Python number, whose reciprocal a GPU multiplies by: 66 / 4.4 would be 14 there, not 15.
    size = torch.tensor(patch_size, dtype=torch.float32, device=lengths_D.device)
    wanted_D = ((lengths_D / size).floor().long() - 2).clamp(min=0)
    document_T = torch.repeat_interleave(lengths_D)
    first_D = lengths_D.cumsum(0) - lengths_D
    position_T = torch.arange(len(h_T), device=h_T.device) - first_D[document_T]
    # The last token's entropy decides about the slot after it, which may not exist.
    last_D = lengths_D - 1 + pieces.next_token
    candidate_T = (position_T > 0) & (position_T < last_D[document_T])
    key_T = torch.where(candidate_T, h_T, -torch.inf)
    order_T = key_T.argsort(descending=True, stable=True)
    order_T = order_T[document_T[order_T].argsort(stable=True)]
    ends_T = torch.empty_like(candidate_T)
    # After the second sort a document's tokens stand together again, highest entropy first,
    # so that their rank is the position within the document.
    ends_T[order_T] = position_T < wanted_D[document_T]
    return ends_T & candidate_T


def _highest_published(pieces: Pieces, patch_size: float) -> Tensor:
    """As :func:`_highest`, chosen by ``torch.topk``: ties go to whichever it takes.

    The last token's entropy is always among those to choose from. Without the next token it starts
    no patch, and a document that it is chosen in has one fewer.
    """
    import torch

    ends_T = torch.zeros_like(pieces.entropies_T, dtype=torch.bool)
    first = 0
    for length in pieces.lengths_D.tolist():
        h_T = pieces.entropies_T[first + 1 : first + length].float()
        wanted = min(max(int(length / patch_size) - 2, 0), len(h_T))
        ends_T[first + 1 + h_T.topk(wanted).indices] = True
        first += length
    return ends_T


def _space_ends(pieces: Pieces) -> Tensor:
    """Ends of words: bytes that are neither letters, digits nor the rest of a character.

    Of a run of such bytes only the first ends a patch. Special ids count as such bytes and always
    end one.
    """
    import torch

    from model.tokenizer import BYTE_OFFSET

    assert pieces.tokens_T is not None
    byte_T = pieces.tokens_T - BYTE_OFFSET
    letter_or_digit_T = torch.zeros_like(byte_T, dtype=torch.bool)
    for first, last in ((ord("0"), ord("9")), (ord("A"), ord("Z")), (ord("a"), ord("z"))):
        letter_or_digit_T |= (byte_T >= first) & (byte_T <= last)
    continuation_T = (byte_T >= 0x80) & (byte_T < 0xC0)
    space_T = ~(letter_or_digit_T | continuation_T)
    # The first token's predecessor is another document's, but the answer for it is unused.
    return (space_T & ~space_T.roll(1)) | (byte_T < 0)


def _evenly_spaced(pieces: Pieces, patch_size: float, origin: int = 1) -> Tensor:
    """Slots ``origin + floor(k * patch_size)`` start patches, for k = 0, 1, 2, ...

    A piece of L tokens from position p decides about the slots p + 1 to p + L. Only the k that lie
    there are visited, so that the cost is that of the patches, not of the tokens.
    """
    import torch

    def slot_of(k: Tensor) -> Tensor:
        return (k.double() * patch_size).floor().long() + origin

    lengths_D, position_D = pieces.lengths_D, pieces.position_D
    # The first k by division, which rounds: begin one earlier and go on to the one that it is.
    k_D = ((position_D + 1 - origin).double() / patch_size).ceil().long().sub(1).clamp(min=0)
    for _ in range(2):
        k_D += slot_of(k_D) <= position_D
    count_D = (lengths_D.double() / patch_size).long() + 2
    piece_K = torch.repeat_interleave(count_D)
    k_K = torch.arange(len(piece_K), device=lengths_D.device)
    k_K += (k_D - count_D.cumsum(0) + count_D)[piece_K]
    stop_D = lengths_D.cumsum(0)
    index_K = slot_of(k_K) + (stop_D - lengths_D - position_D - 1)[piece_K]
    ends_T = torch.zeros_like(pieces.entropies_T, dtype=torch.bool)
    ends_T[index_K[index_K < stop_D[piece_K]]] = True
    return ends_T


def _everywhere(pieces: Pieces) -> Tensor:
    import torch

    return torch.ones_like(pieces.entropies_T, dtype=torch.bool)


def _token_ends(pieces: Pieces) -> Tensor:
    """Ends of a tokenizer's tokens: in plain text as the tokenizer says, in a stream that holds
    delimiters with each of these."""
    from model.tokenizer import BPE_ID

    if pieces.ends_T is not None:
        return pieces.ends_T
    assert pieces.tokens_T is not None
    return pieces.tokens_T == BPE_ID


def _token_ends_published(pieces: Pieces) -> Tensor:
    """As :func:`_token_ends`, but the token that a document ends with starts no patch of the next
    one."""
    ends_T = _token_ends(pieces)
    if pieces.next_token:
        ends_T = ends_T.clone()  # it may be the caller's
        ends_T[pieces.lengths_D.cumsum(0) - 1] = False
    return ends_T


def _given_ends(pieces: Pieces) -> Tensor:
    assert pieces.ends_T is not None
    return pieces.ends_T


_MONOTONIC = BoundaryRule(
    _rising,
    "where the entropy rises by more than the threshold",
    settings=("threshold",),
    compares="rise",
    reads_entropies=True,
)
_COMBINED = BoundaryRule(
    _high_and_rising,
    "where the entropy exceeds the threshold and rises by more than threshold-add",
    settings=("threshold", "threshold_add"),
    compares="both",
    reads_entropies=True,
)
_TOP_K = BoundaryRule(
    _highest,
    "at the highest entropies, as many as tokens / patch-size",
    settings=("patch_size",),
    reads_entropies=True,
    whole_document=True,
)
_BPE = BoundaryRule(
    _token_ends, "after every token of --tokenizer", reads_tokens=True, ends_from="tokenizer"
)
_STATIC = BoundaryRule(_evenly_spaced, "every patch-size tokens", settings=("patch_size",))

RULES: dict[str, BoundaryRule] = {
    "global": BoundaryRule(
        _high,
        "where the entropy exceeds the threshold",
        settings=("threshold",),
        compares="entropy",
        reads_entropies=True,
    ),
    "monotonic": replace(
        _MONOTONIC, published=replace(_MONOTONIC, first_starts={0: True, 1: True, 2: True})
    ),
    "combined": replace(
        _COMBINED,
        published=replace(_COMBINED, first_starts={0: True, 1: True, 2: True, 3: False}),
    ),
    "top-k": replace(_TOP_K, published=replace(_TOP_K, ends=_highest_published)),
    "space": BoundaryRule(_space_ends, "after every word", reads_tokens=True),
    "static": replace(
        _STATIC,
        published=replace(_STATIC, ends=partial(_evenly_spaced, origin=0), first_starts={0: True}),
    ),
    "byte": BoundaryRule(_everywhere, "at every byte"),
    "bpe": replace(_BPE, published=replace(_BPE, ends=_token_ends_published)),
    "given": BoundaryRule(
        _given_ends,
        "where a column of the input says",
        whole_document=True,
        ends_from="column",
    ),
}
"""All rules by name. Rules that are added while a program runs travel with each pickled Patcher."""

_OWN_RULES = dict(RULES)


def find_rule(name: str, *, published: bool = False) -> BoundaryRule:
    """The rule of this name.

    Args:
        published: as the published code applies it.

    Raises:
        ValueError: there is none; lists the names.
    """
    if name not in RULES:
        raise ValueError(f"rule: {name!r} is not one of {', '.join(RULES)}")
    rule = RULES[name]
    return (rule.published or rule) if published else rule


def added_rule(name: str) -> BoundaryRule | None:
    """The rule of this name if it was added while the program runs: other processes lack it."""
    rule = RULES.get(name)
    return None if rule is _OWN_RULES.get(name) else rule


def plain_text_rules() -> tuple[str, ...]:
    """Names of the rules that can patch text by itself: those that all commands and pages offer."""
    return tuple(name for name, rule in RULES.items() if rule.ends_from is None)
