"""Every rule against cases worked out by hand, and against a plain loop over its definition."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import ByteTokenizer, Patcher
from model.rules import RULES, BoundaryRule, Pieces
from model.segments import NEWLINE_ID

H = torch.tensor([[9.0, 1.0, 3.0, 2.0, 2.5, 0.5, 4.0, 1.0]])


def lengths(patcher: Patcher, h=H, **more) -> list[int]:
    return patcher.patch_lengths(h, **more)[0].tolist()


def words(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.tensor([ByteTokenizer().encode(text)])
    return torch.zeros(tokens.shape), tokens


def test_global():
    # Entropies 2 (3.0), 4 (2.5) and 6 (4.0) are above 2: patches start at 0, 1, 3, 5 and 7.
    assert lengths(Patcher(2.0)) == [1, 2, 2, 2, 1]
    # Strictly above: 2.5 itself does not start a patch.
    assert lengths(Patcher(2.5)) == [1, 2, 4, 1]
    # The last token's entropy is about a token that this form does not have ...
    assert lengths(Patcher(0.9)) == [1, 1, 1, 1, 1, 2, 1]
    # ... and the next-token form has: one slot more, started by it.
    assert lengths(Patcher(0.9), include_next_token=True) == [1, 1, 1, 1, 1, 2, 1, 1]
    assert lengths(Patcher(2.0), include_next_token=True) == [1, 2, 2, 2, 2]


def test_monotonic():
    # Rises: 1→3 by 2 at 2, 2→2.5 by 0.5 at 4, 0.5→4 by 3.5 at 6.
    assert lengths(Patcher(0.4, "monotonic")) == [1, 2, 2, 2, 1]
    assert lengths(Patcher(0.5, "monotonic")) == [1, 2, 4, 1]
    assert lengths(Patcher(0.4, "monotonic", published=True)) == [1, 1, 1, 2, 2, 1]


def test_combined():
    assert lengths(Patcher(2.4, "combined", threshold_add=0.4)) == [1, 2, 2, 2, 1]
    # Strictly above both: neither 2.5 itself nor a rise by 0.5 itself starts a patch.
    assert lengths(Patcher(2.5, "combined", threshold_add=0.4)) == [1, 2, 4, 1]
    assert lengths(Patcher(2.4, "combined", threshold_add=0.5)) == [1, 2, 4, 1]
    # As published: a start at 2 whatever the entropies, none at 3 although 3.0 rose by 2.
    published = Patcher(2.0, "combined", threshold_add=0.4, published=True)
    assert lengths(published) == [1, 1, 3, 2, 1]


def test_top_k():
    # 8 // 2 - 2 = 2 highest of those after tokens 1 to 6: tokens 6 and 2.
    assert lengths(Patcher(rule="top-k", patch_size=2)) == [1, 2, 4, 1]
    # 8 // 1.6 - 2 = 3: token 4 as well. Token 7 only counts with the next token.
    assert lengths(Patcher(rule="top-k", patch_size=1.6)) == [1, 2, 2, 2, 1]
    assert lengths(Patcher(rule="top-k", patch_size=4)) == [1, 7]
    assert lengths(Patcher(rule="top-k", patch_size=1)) == [1] * 8
    tie = torch.tensor([[0.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    assert lengths(Patcher(rule="top-k", patch_size=2), tie) == [1, 1, 4]
    published = Patcher(rule="top-k", patch_size=4 / 3, published=True)
    # 8 / (4 / 3) - 2 = 4 highest after tokens 1 to 7: tokens 6, 2, 4 and 3.
    assert lengths(published) == [1, 2, 1, 1, 2, 1]
    # The last entropy is chosen, too: a patch that only the next token has.
    last = torch.tensor([[0.0, 1.0, 5.0, 2.0, 3.0, 9.0]])
    published = Patcher(rule="top-k", patch_size=1.5, published=True)
    assert lengths(published, last) == [1, 2, 3]
    assert lengths(published, last, include_next_token=True) == [1, 2, 3, 1]
    assert lengths(replace(published, published=False), last) == [1, 2, 2, 1]
    # 66 / 4.4 is 15 in float32, and 14.999... in float64, which the published code divides in.
    by_size = Patcher(rule="top-k", patch_size=4.4), torch.arange(66.0)[None]
    assert len(lengths(*by_size)) == 15
    assert len(lengths(replace(by_size[0], published=True), by_size[1])) == 14 - 1  # the last one


def test_space():
    h, tokens = words("ab, cd1 e")
    # BOS | a b , | space c d 1 space | e EOS: of ", " only the comma ends a patch.
    assert lengths(Patcher(rule="space"), h, tokens_BS=tokens) == [1, 3, 5, 2]
    h, tokens = words("é è")
    # The first byte of a character ends a patch, unless it follows BOS or a space, as both here do;
    # the space between them does end one.
    assert lengths(Patcher(rule="space"), h, tokens_BS=tokens) == [1, 3, 3]
    # A special id ends one even after a space; the byte 0 is no special id.
    tokens = torch.tensor([[1, 101, 36, 2, 1, 101]])
    assert lengths(Patcher(rule="space"), tokens.float(), tokens_BS=tokens) == [1, 2, 1, 1, 1]
    h, tokens = words("ab\0\0c")
    assert lengths(Patcher(rule="space"), h, tokens_BS=tokens) == [1, 3, 3]


def test_static():
    assert lengths(Patcher(rule="static", patch_size=3)) == [1, 3, 3, 1]
    # Starts at 1 + floor(k * 2.5): 1, 3, 6, 8.
    assert lengths(Patcher(rule="static", patch_size=2.5)) == [1, 2, 3, 2]
    assert lengths(Patcher(rule="static", patch_size=3, published=True)) == [3, 3, 2]
    assert lengths(Patcher(rule="static", patch_size=100)) == [1, 7]


def test_byte():
    assert lengths(Patcher(rule="byte")) == [1] * 8


def test_bpe_delimiter():
    tokens = torch.tensor([[3, 101, 3, 101, 101, 3, 101, 3]])
    # Patches start after a delimiter; one at token 0 changes nothing, 1 starts a patch anyway.
    assert lengths(Patcher(rule="bpe"), tokens_BS=tokens) == [1, 2, 3, 2]
    assert lengths(Patcher(rule="bpe"), tokens_BS=tokens, include_next_token=True) == [
        1,
        2,
        3,
        2,
        1,
    ]
    # As published, the delimiter at the end starts no patch of the next token.
    published = Patcher(rule="bpe", published=True)
    assert lengths(published, tokens_BS=tokens) == [1, 2, 3, 2]
    assert lengths(published, tokens_BS=tokens, include_next_token=True) == [1, 2, 3, 3]
    # In pieces nobody knows where a document ends.
    one = np.array([1])
    ends = published.ends_in_piece(H.numpy(), tokens.numpy(), one, one)
    assert ends.tolist() == [[False, True, False, False, True, False, True]]


def test_ends_that_a_tokenizer_or_a_column_gives():
    """Two documents of 5 and 3 tokens; ends at their first and last tokens change nothing."""
    ends = torch.tensor([1, 0, 1, 0, 1, 1, 0, 1], dtype=torch.bool)
    h, counts = torch.zeros(8), torch.tensor([5, 3])
    for patcher in (Patcher(rule="given"), Patcher(rule="bpe", tokenizer="ab" * 32)):
        found, patches = patcher.patch_lengths_flat(h, counts, ends_T=ends)
        assert (found.tolist(), patches.tolist()) == ([1, 2, 2, 1, 2], [3, 2])
        published = replace(patcher, published=True)
        for one in (patcher, published):  # which does not change what it is given
            one.patch_lengths_flat(h, counts, ends_T=ends, include_next_token=True)
        assert ends.tolist() == [1, 0, 1, 0, 1, 1, 0, 1]
        cut = replace(patcher, max_patch_length=1)
        assert cut.patch_lengths_flat(h, counts, ends_T=ends)[0].tolist() == [1] * 8
        with pytest.raises(ValueError, match=f"ends: the {patcher.rule} .*takes boundaries from a"):
            patcher.patch_lengths_flat(h, counts, torch.zeros(8, dtype=torch.long))
        assert patcher.needs_whole_document and not patcher.has_threshold
    assert str(Patcher(rule="bpe", tokenizer="ab" * 32)) == "bpe (tokenizer abababababab)"
    assert not Patcher(rule="bpe").needs_whole_document  # a stream of ids with delimiters
    with pytest.raises(ValueError, match="tokenizer: the space rule does not use it"):
        Patcher(rule="space", tokenizer="ab")


def newline_ends(pieces: Pieces) -> torch.Tensor:
    return pieces.tokens_T == NEWLINE_ID


def test_an_added_rule(monkeypatch):
    rule = BoundaryRule(newline_ends, "after every newline", reads_tokens=True)
    monkeypatch.setitem(RULES, "newline", rule)
    patcher = Patcher(rule="newline")
    assert patcher.reads_tokens and not patcher.reads_entropies and not patcher.has_threshold
    h, tokens = words("a\n\nbc")
    # BOS | a newline | newline | b c EOS
    assert lengths(patcher, h, tokens_BS=tokens) == [1, 2, 1, 3]
    one = np.array([1])
    ends = patcher.ends_in_piece(h.numpy(), tokens.numpy(), one, one)
    assert ends.tolist() == [[False, True, True, False, False, False]]
    # A process that has not added it learns of it from the Patcher.
    sent = pickle.dumps(patcher)
    del RULES["newline"]
    with pytest.raises(ValueError, match="rule: 'newline' is not one of global, monotonic"):
        Patcher(rule="newline")
    received = pickle.loads(sent)
    assert received == patcher and RULES["newline"].reads_tokens
    assert lengths(received, h, tokens_BS=tokens) == [1, 2, 1, 3]


def test_a_rules_facts_are_asked_of_the_patcher():
    facts = {p.rule: (p.compares, p.reads_entropies, p.reads_tokens) for p in ALL}
    assert facts == {
        "global": ("entropy", True, False),
        "monotonic": ("rise", True, False),
        "combined": ("both", True, False),
        "top-k": (None, True, False),
        "space": (None, False, True),
        "static": (None, False, False),
        "byte": (None, False, False),
        "bpe": (None, False, True),
    }
    assert {*facts, "given"} == RULES.keys()  # which asks for ends, see below
    assert [p.rule for p in ALL if p.needs_whole_document] == ["top-k"] * 3


@pytest.mark.parametrize("published", [False, True])
def test_what_a_rule_does_not_read_changes_nothing(published):
    random = torch.Generator().manual_seed(0)
    h = torch.rand(1, 300, generator=random) * 5
    tokens = torch.randint(4, 260, (1, 300), generator=random)
    for patcher in ALL:
        patcher = replace(patcher, published=published)
        expected = lengths(patcher, h, tokens_BS=tokens)
        if not patcher.reads_tokens:
            assert lengths(patcher, h) == expected
        if not patcher.reads_entropies:
            assert lengths(patcher, h * torch.nan, tokens_BS=tokens) == expected


def test_plain_values_give_the_patcher_again():
    for patcher in ALL:
        values = json.loads(json.dumps(patcher.to_json()))
        assert None not in values.values() and Patcher.from_json(values) == patcher
    assert Patcher(2.0).to_json() == {"threshold": 2.0, "rule": "global", "published": False}


@pytest.mark.parametrize("size", [1, 1.1, 4 / 3, 2.5, 3, 5.6, 7.7, 100])
@pytest.mark.parametrize("published", [False, True])
def test_evenly_spaced_slots_are_found_in_pieces_however_far_into_a_document(size, published):
    patcher = Patcher(rule="static", patch_size=size, published=published)
    origin = 0 if published else 1
    # Positions that neighbouring float32 numbers skip, too, and one from which on the first slot is
    # two further than a division tells: 252 / 5.6 is rounded to 45, and 45 * 5.6 to less than 252.
    for position in (0, 1, 2, 50, 252, 12345, 2**31 + 7):
        h, begin = np.zeros((1, 41), np.float32), np.array([position])
        ends = patcher.ends_in_piece(h, h.astype(np.int64), begin, np.array([0]))
        near = range(max(int(position / size) - 2, 0), int((position + 41) / size) + 2)
        starts = {0, *(int(k * size) + origin for k in near)}
        assert ends[0].tolist() == [position + i in starts for i in range(1, 41)]


def test_max_patch_length():
    assert lengths(Patcher(3.5, max_patch_length=4)) == [1, 4, 2, 1]
    assert lengths(Patcher(100.0, max_patch_length=3)) == [1, 3, 3, 1]
    assert lengths(Patcher(rule="static", patch_size=5, max_patch_length=2)) == [1, 2, 2, 1, 2]


ALL: list[Patcher] = [
    Patcher(2.0),
    Patcher(2.0, max_patch_length=3),
    Patcher(0.2, "monotonic"),
    Patcher(0.2, "monotonic", published=True),
    Patcher(1.0, "combined", threshold_add=0.1),
    Patcher(1.0, "combined", threshold_add=0.1, published=True),
    Patcher(rule="top-k", patch_size=1),
    Patcher(rule="top-k", patch_size=2.3, max_patch_length=2),
    Patcher(rule="top-k", patch_size=2.3, published=True),
    Patcher(rule="space"),
    Patcher(rule="static", patch_size=3.3),
    Patcher(rule="static", patch_size=1.1, published=True),
    Patcher(rule="byte"),
    Patcher(rule="bpe"),
    Patcher(rule="bpe", published=True),
]


def by_definition(patcher: Patcher, h: list[float], tokens: list[int], end: int) -> list[int]:
    """Patch lengths of one document of ``end`` slots, by a loop over the rule's definition."""
    n, rule = len(h), patcher.rule
    starts = {0, 1}
    for i in range(1, end - 1):
        rises = h[i] - h[i - 1]
        ends = {
            "global": lambda i=i: h[i] > patcher.threshold,
            "monotonic": lambda rises=rises: rises > np.float32(patcher.threshold),
            "combined": lambda i=i, rises=rises: (
                rises > np.float32(patcher.threshold_add) and h[i] > patcher.threshold
            ),
            "space": lambda i=i: space_ends(tokens, i),
            "bpe": lambda i=i: tokens[i] == 3 and not (patcher.published and i == n - 1),
            "byte": lambda: True,
        }.get(rule, lambda: False)
        if ends():
            starts.add(i + 1)
    if rule == "top-k":
        k = max(int(n / patcher.patch_size) - 2, 0)
        chosen = sorted(range(1, end - 1), key=lambda i: -h[i])[:k]
        if patcher.published:
            chosen = (torch.tensor(h[1:]).topk(min(k, n - 1)).indices + 1).tolist()
        starts |= {i + 1 for i in chosen}
    if rule == "static":
        first = 0 if patcher.published else 1
        starts = {0} | {first + int(k * patcher.patch_size) for k in range(end)}
    elif patcher.published and rule in ("monotonic", "combined"):
        starts.add(2)
        if rule == "combined":
            starts.discard(3)
    if patcher.max_patch_length:
        cuts = sorted(s for s in starts if s < end)
        for a, b in zip(cuts, [*cuts[1:], end], strict=True):
            starts |= set(range(a, b, patcher.max_patch_length))
    cuts = [s for s in sorted(starts) if s < end] + [end]
    return np.diff(cuts).tolist()


def space_ends(tokens: list[int], i: int) -> bool:
    def is_space(token: int) -> bool:
        byte = token - 4
        kept = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
        return not ((byte >= 0 and byte in kept) or 0x80 <= byte < 0xC0)

    return tokens[i] < 4 or (is_space(tokens[i]) and not (i > 0 and is_space(tokens[i - 1])))


documents = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(np.linspace(0, 5.5, 23).tolist()),
            st.sampled_from([0, 1, 2, 3, 36, 48, 52, 61, 62, 69, 94, 101, 126, 127, 132, 195, 196]),
        ),
        min_size=1,
        max_size=20,
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize(
    "patcher", ALL, ids=lambda p: f"{p.rule}-{p.max_patch_length}-{p.published}"
)
@pytest.mark.parametrize("next_token", [False, True])
@settings(max_examples=60)
@given(documents=documents)
def test_flat_and_batch_forms_are_the_definition(patcher, next_token, documents):
    hs = [[h for h, _ in document] for document in documents]
    tokens = [[token for _, token in document] for document in documents]
    sizes = torch.tensor([len(h) for h in hs])
    expected = [
        by_definition(patcher, h, t, len(h) + next_token) for h, t in zip(hs, tokens, strict=True)
    ]
    flat, counts = patcher.patch_lengths_flat(
        torch.tensor(sum(hs, [])),
        sizes,
        torch.tensor(sum(tokens, [])),
        include_next_token=next_token,
    )
    assert flat.tolist() == sum(expected, [])
    assert counts.tolist() == [len(lengths) for lengths in expected]

    width = int(sizes.max())
    batch = patcher.patch_lengths(
        torch.tensor([h + [7.0] * (width - len(h)) for h in hs]),
        torch.tensor([t + [-1] * (width - len(t)) for t in tokens]),
        lengths_B=sizes,
        include_next_token=next_token,
    )
    most = max(map(len, expected))
    assert batch.tolist() == [lengths + [0] * (most - len(lengths)) for lengths in expected]


@pytest.mark.parametrize("rule", ["global", "monotonic"])
def test_comparison_is_in_float32_whatever_the_dtype(rule):
    # 1.335 is not a float16 number: rounded to one it would equal the entropy and not exceed it.
    threshold = 1.335
    above = torch.tensor([[0.0, 0.0, np.float16(1.3359375), 0.0]], dtype=torch.float16)
    assert Patcher(threshold, rule).patch_lengths(above).tolist() == [[1, 2, 1]]
    same = Patcher(threshold, rule).patch_lengths(above.double())
    assert same.tolist() == [[1, 2, 1]]


def test_empty_batch():
    assert Patcher(1.0).patch_lengths(torch.zeros(0, 5)).shape == (0, 0)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"rule": "words"}, "rule: 'words' is not one of"),
        ({}, "threshold: the global rule needs it"),
        ({"threshold": float("nan")}, "threshold: must be a finite number, got nan"),
        ({"threshold": float("-inf")}, "threshold: must be a finite number, got -inf"),
        (
            {"threshold": 1.0, "rule": "combined", "threshold_add": float("inf")},
            "threshold_add: must be a finite number, got inf",
        ),
        ({"rule": "static", "patch_size": float("inf")}, "patch_size: must be a finite number"),
        ({"threshold": 1.0, "rule": "combined"}, "threshold_add: the combined rule needs it"),
        ({"threshold": 1.0, "rule": "byte"}, "threshold: the byte rule does not use it"),
        ({"rule": "static"}, "patch_size: the static rule needs it"),
        ({"rule": "static", "patch_size": 0.5}, "patch_size: must be at least 1"),
        ({"threshold": 1.0, "max_patch_length": 0}, "max_patch_length: must be 1 to 2147483647"),
        ({"threshold": 1.0, "max_patch_length": 2**63 - 1}, "any length"),
        # JSON by other hands.
        ({"threshold": "1.0"}, "threshold: '1.0' is no number"),
        ({"threshold": True}, "threshold: True is no number"),
        ({"threshold": 1.0, "max_patch_length": float("nan")}, "max_patch_length: nan is no whole"),
        ({"threshold": 1.0, "max_patch_length": True}, "max_patch_length: True is no whole"),
        ({"threshold": 1.0, "published": "false"}, "published: 'false' is neither true nor false"),
    ],
)
def test_settings_that_do_not_fit(settings_: dict, message):
    with pytest.raises(ValueError, match=message):
        Patcher(**settings_)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="space rule needs them"):
        Patcher(rule="space").patch_lengths(H)
    with pytest.raises(ValueError, match="sum to 8"):
        Patcher(1.0).patch_lengths_flat(H[0], torch.tensor([3, 4]))
