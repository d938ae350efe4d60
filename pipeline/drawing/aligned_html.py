"""One text cut in several ways, as HTML: a row for each way, the same bytes under each other.

The text becomes *columns*, small pieces that stand beside each other; those of a word wrap together
where there is room. A column holds its piece once for each row, so that rows stay aligned in any
font and width. Columns end wherever a unit (a patch or a token) of any row ends, and at the end of
each line. Within a row the pieces of one unit have one colour and no gap between them.

Example: ``abcd`` with the units ``ab|cd`` and ``abc|d`` has the columns ``ab``, ``c`` and ``d``.
The first row colours them 0, 1, 1 and the second 0, 0, 1.

A column never ends inside a character. If a row cuts a character, the character is a column by
itself: that row shows its bytes as hexadecimal digits, each in the colour of its unit, and rows
that leave it whole show the character.
"""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.drawing.patches_html import COLOURS, shown_html

MOST_CELLS = 4000
"""Columns times rows: a page with more elements is slow."""
WIDEST = 12
"""Characters of a column, so that it fits on a phone."""
NARROWEST = 12
"""Letters that lines hold on average at least, for the number of lines: a phone has room for about
30, and a line and the first word of the next together are longer than that."""
MOST_SHOWN = 20_000
"""Bytes that are looked at, at most."""

# Room below lines is padding: Gradio takes the margin from whatever is the last child of another.
ALIGNED_CSS = """
.aligned { position: relative; display: flex; flex-wrap: wrap; overflow: hidden;
  padding-left: 2.1em; direction: ltr;
  font: .92em/1.75em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.aligned .keys { position: absolute; left: 0; top: 0; bottom: 0; overflow: hidden;
  width: 1.9em; user-select: none; opacity: .75; }
.aligned .keys div, .aligned .column { padding-bottom: .9em; }
.aligned .key { display: block; height: 1.75em; overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }
.aligned .name { display: none; }
.aligned .word { display: flex; flex-wrap: wrap; max-width: 100%; }
.aligned .column { display: block; }
.aligned .cell { display: flex; height: 1.75em; white-space: pre; margin-top: 0; }
.aligned .cell + .cell { user-select: none; }
.aligned .patch { padding: 0; border-radius: 0; margin: 1px 0; }
.aligned .patch:last-child { flex: 1; }
.aligned .patch.first { border-radius: 3px 0 0 3px; }
.aligned .patch.last { border-radius: 0 3px 3px 0; }
.aligned .patch.first.last { border-radius: 3px; }
.aligned .break { flex-basis: 100%; height: 0; }
@media (min-width: 700px) {
  .aligned { padding-left: 10.5em; }
  .aligned .keys { width: 10em; }
  .aligned .name { display: inline; }
}
"""
"""Styles of :func:`aligned_html`, beside those of :mod:`pipeline.drawing.patches_html`."""


class Row(NamedTuple):
    """One way to cut a text."""

    key: str
    """A letter or so, shown before each line."""
    name: str
    """Shown behind it where there is room."""
    edges_U: np.ndarray
    """int64, bytes: where units start, and last the text's end; they begin with 0 and rise."""
    title: Callable[[int], str]
    """The tooltip of a unit, by its index."""


def aligned_html(data: bytes, rows: Sequence[Row]) -> tuple[str, int]:
    """A text and the units of several rows, aligned.

    Args:
        data: UTF-8; its beginning is shown.
        rows: at least one.

    Returns:
        HTML, and how many bytes of the text it shows.
    """
    starts = columns(data[:MOST_SHOWN], [row.edges_U for row in rows])
    starts = starts[: MOST_CELLS // len(rows) + 1]
    drawn, word = [], []
    lines = 2 + _width(data[: starts[-1]]) // NARROWEST
    for start, stop in pairwise(starts):
        cells = "".join(_cell(data, start, stop, row) for row in rows)
        word.append(f'<span class="column">{cells}</span>')
        if stop < starts[-1] and not data[stop - 1 : stop].isspace():
            continue
        drawn.append(f'<span class="word">{"".join(word)}</span>')
        word = []
        if data[stop - 1] == ord("\n"):
            drawn.append('<span class="break"></span>')
            lines += 1
    keys = f'<div class="keys" aria-hidden="true">{_keys(rows) * lines}</div>'
    return f'<div class="aligned">{keys}{"".join(drawn)}</div>', starts[-1]


def columns(data: bytes, edges: Sequence[np.ndarray]) -> list[int]:
    """Where columns start (bytes), and last the end of the last one.

    Args:
        data: UTF-8, of which the end may be missing; columns hold whole characters.
        edges: of each row.
    """
    size = len(data)
    bytes_B = np.frombuffer(data, np.uint8)
    character_C = np.flatnonzero((bytes_B & 0xC0) != 0x80)
    if len(character_C) and not _is_whole(data[character_C[-1] :]):
        size = int(character_C[-1])
        character_C = character_C[:-1]
    bounds_C = np.append(character_C, size)
    wanted = np.unique(np.concatenate([*edges, [0, size]]))
    wanted = wanted[wanted <= size]
    # The characters around a cut: the last that starts at or before it, the first at or behind it.
    before = bounds_C[np.searchsorted(bounds_C, wanted, side="right") - 1]
    behind = bounds_C[np.searchsorted(bounds_C, wanted)]
    newline_N = np.flatnonzero(bytes_B[:size] == ord("\n"))
    cuts = np.unique(np.concatenate([before, behind, newline_N + 1]))
    # In characters: long columns are cut every so many.
    place = np.searchsorted(bounds_C, cuts)
    fine = [np.arange(a, b, WIDEST) for a, b in pairwise(place)]
    return bounds_C[np.concatenate([*fine, place[-1:]])].tolist()


def _is_whole(character: bytes) -> bool:
    try:
        character.decode()
    except UnicodeDecodeError:
        return False
    return True


def _width(data: bytes) -> int:
    """About how many letters wide a text is: others than ASCII's, and digits in their place, take
    more room."""
    text = data.decode()
    return len(text) + 2 * sum(not character.isascii() for character in text)


def _cell(data: bytes, start: int, stop: int, row: Row) -> str:
    return f'<span class="cell">{"".join(_parts(data, start, stop, row))}</span>'


def _parts(data: bytes, start: int, stop: int, row: Row) -> Iterator[str]:
    """What each unit has of a column."""
    unit = int(np.searchsorted(row.edges_U, start, side="right")) - 1
    while start < stop:
        first, end = row.edges_U[unit : unit + 2].tolist()
        kind = f"patch p{unit % COLOURS}" + " first" * (start == first)
        kind += " last" * (end <= stop)
        piece = data[start : min(end, stop)]
        shown = shown_html(piece).replace("\n", "")
        yield f'<span class="{kind}" title="{escape(row.title(unit))}">{shown}</span>'
        start, unit = end, unit + 1


def _keys(rows: Sequence[Row]) -> str:
    """The letters and names before one line. Lines have one height, so that these repeated are
    those of all lines."""
    names = (
        f'<span class="key">{escape(row.key)}<span class="name"> {escape(row.name)}</span></span>'
        for row in rows
    )
    return f"<div>{''.join(names)}</div>"
