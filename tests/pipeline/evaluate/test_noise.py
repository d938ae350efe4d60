"""Noise: how much it changes, and that it is the same everywhere."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.tasks.noise import NOISES, noised

TEXT = "abcdefgh i" * 1000


def test_noises_change_as_much_as_they_should():
    draw = random.Random(0)
    found = {kind: noise(TEXT, draw) for kind, noise in NOISES.items()}
    assert 8900 < len(found["drop"]) < 9100
    repeated = found["repeat"]
    assert 13_800 < len(repeated) < 14_200  # a fifth, three times on average
    assert "".join(c for i, c in enumerate(repeated) if repeated[i - 1] != c) == TEXT
    assert 4300 < sum(map(str.isupper, found["random_case"])) < 4700  # of 9,000 letters
    assert 950 < len(found["spaces_added"]) - len(TEXT) < 1050
    assert 440 < len(TEXT) - len(found["spaces_lost"]) < 560  # of 1,000 spaces
    for kind in ("spaces_added", "spaces_lost"):
        assert found[kind].replace(" ", "") == TEXT.replace(" ", "")
    # Of pairs, a tenth begin a swap unless the character before took part in one.
    moved = sum(a != b for a, b in zip(TEXT, found["swap"], strict=True)) / 2
    assert 10_000 / 11 - 90 < moved < 10_000 / 11 + 90
    assert Counter(found["swap"]) == Counter(TEXT)
    assert found["upper_case"] == TEXT.upper()
    assert found["antspeak"].startswith("A B C D")


@pytest.mark.parametrize("kind", NOISES)
def test_noise_follows_from_kind_and_seed(kind):
    one = noised(TEXT, kind, "document 1")
    assert one == noised(TEXT, kind, "document 1") != TEXT
    same = kind in ("upper_case", "antspeak")
    assert (one == noised(TEXT, kind, "document 2")) == same


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("drop", "The quick brown fox jumps ove the lzy dog."),
        ("repeat", "The quickkk bbroooown foooox juuumps oveeer tttthe lazyy   dog."),
        ("spaces_lost", "The quickbrownfoxjumpsover thelazydog."),
        ("swap", "Theq ucik brwon fox jumps over the lazyd og."),
    ],
)
def test_noise_is_the_same_in_every_release(kind, expected):
    """Results of different machines and years can be compared."""
    assert noised("The quick brown fox jumps over the lazy dog.", kind, "0") == expected


@settings(max_examples=40)
@given(text=st.text(max_size=50), kind=st.sampled_from(sorted(NOISES)), seed=st.text(max_size=5))
def test_any_text_can_be_noised(text, kind, seed):
    changed = noised(text, kind, seed)
    assert changed.encode("utf-8", "surrogatepass") is not None
    if kind in ("swap", "spaces_added", "repeat", "antspeak"):
        assert len(changed) >= len(text)


def test_a_swap_is_of_neighbours():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    places = [text.index(c) for c in noised(text, "swap", "0")]
    assert all(abs(place - i) <= 1 for i, place in enumerate(places))
    assert places != list(range(500))
