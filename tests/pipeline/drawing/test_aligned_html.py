"""Aligned rows: each row shows the whole text in its units, and columns are the same in all."""

import xml.dom.minidom
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.drawing.aligned_html import MOST_CELLS, WIDEST, Row, aligned_html, columns

LETTERS = st.text("ab \n日é𝄞", max_size=60)
"""Of one to four bytes."""


def row(key: str, *edges: int) -> Row:
    return Row(key, f"cut {key}", np.array(edges), lambda unit: f"{key}{unit}")


def cells(html: str) -> list[list[list[tuple[str, str, str]]]]:
    """Columns of cells of parts: title, class, text."""
    found = []
    for column in elements(xml.dom.minidom.parseString(html), "column"):
        found.append(
            [
                [
                    (part.getAttribute("title"), part.getAttribute("class"), text_of(part))
                    for part in cell.childNodes
                ]
                for cell in column.childNodes
            ]
        )
    return found


def elements(tree, kind: str) -> list:
    spans = tree.getElementsByTagName("span")
    return [span for span in spans if span.getAttribute("class").split()[0] == kind]


def text_of(element) -> str:
    """Chips in brackets; the mark of a newline as the newline."""
    if element.nodeType == element.TEXT_NODE:
        return element.data
    inner = "".join(map(text_of, element.childNodes))
    kind = element.getAttribute("class")
    return f"[{inner}]" if kind == "chip" else "\n" if kind == "mark" else inner


def bytes_of(text: str) -> bytes:
    parts = text.split("[")
    shown = [parts[0].encode()]
    for part in parts[1:]:
        digits, rest = part.split("]")
        shown += [bytes.fromhex(digits), rest.encode()]
    return b"".join(shown)


def test_by_hand():
    """The first row cuts the é, the second leaves it whole."""
    html, shown = aligned_html("abé".encode(), [row("A", 0, 1, 3, 4), row("B", 0, 4)])
    assert shown == 4
    assert cells(html) == [
        [[("A0", "patch p0 first last", "a")], [("B0", "patch p0 first", "a")]],
        [[("A1", "patch p1 first", "b")], [("B0", "patch p0", "b")]],
        [
            [("A1", "patch p1 last", "[C3]"), ("A2", "patch p2 first last", "[A9]")],
            [("B0", "patch p0 last", "é")],
        ],
    ]


@settings(max_examples=40)
@given(LETTERS, st.lists(st.lists(st.integers(0, 200)), min_size=1, max_size=4))
def test_each_row_shows_the_text_in_its_units(text, cuts):
    data = text.encode()
    size = len(data)
    edges = [sorted({0, size} | {cut for cut in some if cut < size}) for some in cuts]
    rows = [row("ABCD"[i], *some) for i, some in enumerate(edges)]
    html, shown = aligned_html(data, rows)
    assert shown == size
    found = cells(html)
    starts = columns(data, [np.array(some) for some in edges])
    assert len(found) == len(starts) - 1
    for (a, b), column in zip(pairwise(starts), found, strict=True):
        piece = data[a:b].decode()  # whole characters
        assert 0 < len(piece) <= WIDEST and "\n" not in piece[:-1]
        assert all(bytes_of("".join(part[2] for part in cell)) == data[a:b] for cell in column)
    for i, some in enumerate(edges):
        units: dict[str, bytes] = {}
        for column in found:
            for title, kind, shown_text in column[i]:
                assert ("first" in kind) == (title not in units)
                units[title] = units.get(title, b"") + bytes_of(shown_text)
        assert list(units.values()) == [data[a:b] for a, b in pairwise(some)]


def test_of_a_long_text_the_beginning_is_shown():
    data = ("日" * 2500).encode()
    rows = [row("A", *range(0, len(data) + 1, 3)), row("B", 0, len(data))]
    html, shown = aligned_html(data, rows)
    assert shown == 3 * (MOST_CELLS // 2) and len(cells(html)) == MOST_CELLS // 2
    assert html.count('class="key"') >= 2 * shown // 3 // 30  # as many as a phone has lines


def test_markup_and_hidden_characters_show_as_text():
    html, _ = aligned_html("<b>\u202e".encode(), [row("<i>", 0, 3, 6)])
    assert "<b>" not in html and "<i>" not in html and "\u202e" not in html
    assert "U+202E" in html
