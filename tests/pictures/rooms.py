"""Draw the rooms of docs/architecture.md on floors, with lines down to what they import.

A room stands one floor above the highest room that it imports. A line that follows from others
(jobs import errors by way of almost everything) is left out, so that the picture can be read.
"""

import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.jobs import ROOT
from support.rooms import rooms, table

PICTURE = ROOT / "docs" / "rooms.svg"
WIDTH, BOX_HEIGHT, FLOOR_HEIGHT, TOP = 390, 20, 46, 8
SHOWN_WIDTH = 560
"""Pixels, where there is room; a phone shows the picture at about its own width, and letters of 12
pixels as 10."""
CHARACTER, BESIDE = 7.2, 6
"""Width of a character of the labels in most fonts, and of the room beside a label."""
STYLE = """
  text { font: 12px ui-monospace, Menlo, Consolas, monospace; text-anchor: middle; fill: #1f2328 }
  rect { fill: #f6f8fa; stroke: #8c959f; rx: 5px }
  path { fill: none; stroke: #8c959f; stroke-width: 1; opacity: .75 }
  .model rect { fill: #ddf4ff } .train rect { fill: #fff1e5 } .jobs rect { fill: #dafbe1 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } rect { fill: #161b22; stroke: #6e7681 } path { stroke: #6e7681 }
    .model rect { fill: #0c2d6b } .train rect { fill: #5a1e02 } .jobs rect { fill: #033a16 }
  }
"""


def drawn(imports: Mapping[str, Sequence[str]]) -> str:
    """The picture as SVG.

    Args:
        imports: what each room may import, from the top down.
    """
    floors = floors_of(imports)
    highest = max(floors.values())
    places: dict[str, tuple[float, float]] = {}
    boxes = []
    for floor in range(highest, -1, -1):
        y = TOP + (highest - floor) * FLOOR_HEIGHT
        on_floor = [room for room in imports if floors[room] == floor]
        gap = (WIDTH - sum(map(_width, on_floor))) / (len(on_floor) + 1)
        x = 0.0
        for room in on_floor:
            x += gap + _width(room) / 2
            places[room] = x, y
            boxes.append(_box(room, x, y))
            x += _width(room) / 2
    lines = [
        _line(places[room], places[target]) for room in imports for target in direct(room, imports)
    ]
    height = TOP * 2 + highest * FLOOR_HEIGHT + BOX_HEIGHT
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{SHOWN_WIDTH}" height="{SHOWN_WIDTH * height // WIDTH}" role="img">',
            "<title>The rooms of blt-titan; lines lead down to what a room imports</title>",
            f"<style>{STYLE}</style>",
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


def floors_of(imports: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The floor of each room, 0 at the ground. Rooms import only rooms further down the table."""
    floors: dict[str, int] = {}
    for room in reversed(imports):
        floors[room] = 1 + max((floors[target] for target in imports[room]), default=-1)
    return floors


def direct(room: str, imports: Mapping[str, Sequence[str]]) -> list[str]:
    """The imports of a room, without those that it also reaches by way of another."""

    def reached(start: str) -> set[str]:
        return {start}.union(*(reached(target) for target in imports[start]))

    return [
        target
        for target in imports[room]
        if not any(target in reached(other) for other in imports[room] if other != target)
    ]


def _width(room: str) -> float:
    return len(room) * CHARACTER + BESIDE


def _box(room: str, x: float, y: float) -> str:
    width = _width(room)
    package = rooms()[room].files.partition("/")[0]
    return (
        f'<g class="{package}"><rect x="{x - width / 2:.1f}" y="{y}" width="{width:.1f}" '
        f'height="{BOX_HEIGHT}"/><text x="{x:.1f}" y="{y + 14}">{escape(room)}</text></g>'
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    x0, y0 = start[0], start[1] + BOX_HEIGHT
    x1, y1 = end
    bend = (y1 - y0) / 2
    return f'<path d="M{x0:.1f} {y0} C{x0:.1f} {y0 + bend} {x1:.1f} {y1 - bend} {x1:.1f} {y1}"/>'


if __name__ == "__main__":
    PICTURE.write_text(drawn(table()))
