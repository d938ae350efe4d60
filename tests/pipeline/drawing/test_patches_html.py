"""Patches as HTML: nothing in a text is markup, and every byte can be seen."""

from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.drawing.patches_html import patches_html


class Read(HTMLParser):
    """The elements of a piece of HTML, and the text in each patch."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.classes.append(found.get("class") or "")
        assert set(found) <= {"class", "title"}
        if "patch " in self.classes[-1]:
            self.texts.append("")
            self.titles.append(found.get("title"))

    def handle_data(self, data):
        self.texts[-1] += data


def texts(*patches: bytes) -> list[str]:
    return Read(patches_html(patches)).texts


def test_neighbours_differ_in_colour():
    classes = Read(patches_html([b"a"] * 9)).classes[1:]
    assert all(a != b for a, b in pairwise(classes))


def test_one_is_outlined():
    classes = Read(patches_html([b"a", b"b", b"c"], outlined=1)).classes[1:]
    assert ["outlined" in name for name in classes] == [False, True, False]


def test_bytes_of_a_character_that_is_cut_show_as_digits():
    euro = "€".encode()
    assert texts(b"5 " + euro[:1], euro[1:], b"!") == ["5 E2", "82AC", "!"]
    assert texts(b"5 " + euro) == ["5 €"]
    assert texts(b"\xff\xfe", b"ok\xc3") == ["FFFE", "okC3"]


def test_what_cannot_be_seen_is_named():
    assert texts(b"a b\n", b"\tx", b"\0\x1b") == ["a b↵\n", "⇥\tx", "001B"]
    assert texts("\u202eevil\u2066".encode()) == ["U+202EevilU+2066"]
    assert texts("a\u3164\U000e0041b".encode()) == ["aU+3164U+E0041b"]
    assert texts(b"e", "\u0301x".encode()) == ["e", "\u25cc\u0301x"]
    assert texts(b"", b"x") == ["", "x"]
    assert texts("👨\u200d👩".encode()) == ["👨\u200d👩"]


def test_what_belongs_to_the_patch_before_is_seen_in_its_own():
    """As bytes, a family of emoji is often cut around its joiners, and Thai before a vowel."""
    family = ["👨", "\u200d", "👩", "\u200d👧", "\ufe0f"]
    shown = ["👨", "U+200D", "👩", "U+200D👧", "\u25cc\ufe0f"]
    assert texts(*map(str.encode, family)) == shown
    vowels = ["ท", "\u0e31ว", "क", "\u093e\u200dक"]
    assert texts(*map(str.encode, vowels)) == ["ท", "\u25cc\u0e31ว", "क", "\u25cc\u093e\u200dक"]
    assert texts("\u034fx".encode()) == ["U+034Fx"]


@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", "</span></div><img src=x onerror=alert(1)>", "\"&<>'"]
)
def test_markup_shows_as_text(hostile):
    page = Read(patches_html([hostile.encode(), b"x"], [hostile, "fine"]))
    assert set(page.tags) == {"div", "span"}
    assert page.texts == [hostile, "x"] and page.titles == [hostile, "fine"]


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_any_bytes_give_one_span_a_patch(patches):
    page = Read(patches_html(patches))
    assert len(page.texts) == len(patches) and set(page.tags) <= {"div", "span"}


def test_patches_are_marked_where_they_begin():
    classes = Read(patches_html([b"a", b"b", b"c"], outlined=1, marked={1, 2})).classes[1:]
    assert classes == ["patch p0", "patch p1 outlined marked", "patch p2 marked"]
