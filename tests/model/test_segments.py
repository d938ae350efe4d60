"""Cutting documents into segments, and segments into packs."""

from itertools import chain

import torch
from hypothesis import given
from hypothesis import strategies as st

from model.segments import NEWLINE_ID, cut_segments, fill_packs, pack_segments

documents = st.lists(
    st.lists(st.sampled_from([NEWLINE_ID, 36, 101]), min_size=1, max_size=30), max_size=6
)


def cut(documents: list[list[int]], context_length: int | None, newline: bool) -> list[int]:
    lengths = cut_segments(
        torch.tensor([*chain(*documents)], dtype=torch.int64),
        torch.tensor([len(d) for d in documents], dtype=torch.int64),
        context_length=context_length,
        reset_at_newline=newline,
    )
    assert lengths.dtype == torch.int64
    return lengths.tolist()


def test_by_hand():
    a, n = 101, NEWLINE_ID
    two = [[a, n, n, a, a, a, a], [a, a, n]]
    assert cut(two, None, False) == [7, 3]
    assert cut(two, 7, False) == [7, 3]
    assert cut(two, 3, False) == [3, 3, 1, 3]
    assert cut(two, None, True) == [2, 1, 4, 3]
    assert cut(two, 3, True) == [2, 1, 3, 1, 3]
    assert cut([], 3, True) == []


@given(documents=documents, context_length=st.none() | st.integers(1, 12), newline=st.booleans())
def test_cut_is_its_definition(documents, context_length, newline):
    expected = []
    for document in documents:
        length = 0
        for i, token in enumerate(document):
            length += 1
            last = i == len(document) - 1 or (newline and token == NEWLINE_ID)
            if last or length == context_length:
                expected.append(length)
                length = 0
    assert cut(documents, context_length, newline) == expected


@given(documents=documents, context_length=st.integers(1, 12), newline=st.booleans())
def test_cut_properties(documents, context_length, newline):
    lengths = cut(documents, context_length, newline)
    assert sum(lengths) == sum(map(len, documents))
    assert all(1 <= n <= context_length for n in lengths)
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    assert set(torch.tensor([0, *map(len, documents)]).cumsum(0).tolist()) <= set(ends)
    if newline:
        tokens = enumerate(chain(*documents), 1)
        assert {end for end, token in tokens if token == NEWLINE_ID} <= set(ends)


def test_cut_leaves_its_arguments_alone():
    tokens, lengths = torch.tensor([101, NEWLINE_ID, 101]), torch.tensor([3])
    cut_segments(tokens, lengths, context_length=1, reset_at_newline=True)
    assert tokens.tolist() == [101, NEWLINE_ID, 101]
    assert lengths.tolist() == [3]


@given(lengths=st.lists(st.integers(1, 30), max_size=20), budget=st.integers(1, 60))
def test_packs(lengths, budget):
    packs = list(pack_segments(torch.tensor(lengths, dtype=torch.int64), budget))
    segment = token = 0
    for i, (segments, tokens) in enumerate(packs):
        # Without gaps, never empty, and each slice of tokens is that of its segments.
        assert (segments.start, tokens.start) == (segment, token)
        segment, token = segments.stop, tokens.stop
        held = lengths[segments]
        assert held
        assert sum(held) == tokens.stop - tokens.start
        assert sum(held) <= budget or len(held) == 1
        # Next-fit: what opens the next pack would not have gone into this one.
        if i + 1 < len(packs):
            assert sum(held) + lengths[segment] > budget
    assert (segment, token) == (len(lengths), sum(lengths))


@given(lengths=st.lists(st.integers(1, 8), max_size=60), most=st.sampled_from([8, 16, 64]))
def test_full_packs(lengths, most):
    packs = list(fill_packs(torch.tensor(lengths, dtype=torch.int64), (8, most)))
    assert sorted(chain(*packs)) == list(range(len(lengths)))
    held = [sum(lengths[i] for i in pack) for pack in packs]
    assert all(0 < size <= most for size in held)
    # What is left at the end takes small packs; one of the largest is at least as full as they say.
    large = [size for size in held if size > 8]
    assert all(4 * size >= 3 * most - 4 * 8 for size in large)
    # A pack is closed when nothing more fits.
    for pack, size in zip(packs, held, strict=True):
        room = (8 if size <= 8 else most) - size
        later = packs[packs.index(pack) + 1 :]
        assert all(lengths[i] > room for i in chain(*later))


def test_full_packs_of_an_example():
    packs = fill_packs(torch.tensor([8, 2, 5, 6, 3]), (8, 16))
    assert list(packs) == [[0, 3, 1], [2, 4]]
    assert list(fill_packs(torch.tensor([], dtype=torch.int64), (8, 16))) == []
    # Of a pack of 64 at most 16 may stay empty; else what is left goes into the largest but one.
    for lengths, sizes, held in (
        ([8] * 6, (8, 64), [48]),
        ([8] * 5 + [7], (8, 64), [8, 8, 8, 8, 8, 7]),
        ([8] * 12, (8, 64), [64, 8, 8, 8, 8]),
        ([8] * 12, (8, 16, 64), [64, 16, 16]),
        ([8] * 3, (8, 32, 64), [24]),
    ):
        packs = fill_packs(torch.tensor(lengths), sizes)
        assert [sum(lengths[i] for i in pack) for pack in packs] == held


def test_full_packs_leave_little_empty():
    """A batch of a megabyte, as scoring has them: before, a pack that was almost empty was left."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(200, 8192, (260,), generator=generator)
    lengths = lengths[: int((lengths.cumsum(0) < (1 << 20)).sum()) + 1] + 2
    total = int(lengths.sum())
    held = [sum(lengths[pack].tolist()) for pack in fill_packs(lengths, (8192, 65536))]
    filled = sum(65536 if size > 8192 else 8192 for size in held)
    assert filled < 1.01 * total
    assert len(list(pack_segments(lengths, 65536))) * 65536 > 1.05 * total
