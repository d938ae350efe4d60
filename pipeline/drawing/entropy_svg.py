"""The entropy before every byte of a text, as an SVG picture to scroll through on a page."""

from html import escape
from itertools import pairwise

import numpy as np

COLUMN = 11
"""Width of a byte in pixels."""
HEIGHT, BELOW, LEFT = 150, 24, 34
"""Pixels: height of the bars, room for letters below them, room for the axis on the left."""
SHOWN_BYTES = 600
"""Bytes that are drawn, at most: a page with many thousand elements is slow."""
_NAMES = {" ": "␣", "\n": "↵", "\t": "⇥"}

CURVE_CSS = """
.curve svg { display: block; }
.curve text { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: currentColor; }
.curve .axis { opacity: .65; font-size: 10px; }
.curve .odd { fill: #8aa4d6; fill-opacity: .22; }
.curve .bar { fill: #7a8699; } .curve .bar.start { fill: #d9622b; }
.curve .threshold { stroke: currentColor; stroke-dasharray: 5 4; }
.curve .start-line { stroke: #8aa4d6; stroke-opacity: .7; }
"""


def curve_svg(
    data: bytes, h_T: np.ndarray, patch_lengths_P: np.ndarray, threshold: float | None
) -> str:
    """A bar for the entropy before each byte, shades for the patches, and a line at the threshold.

    Args:
        data: UTF-8 text; its beginning is drawn.
        h_T: nats, one per token (BOS, bytes, EOS).
        patch_lengths_P: tokens.
        threshold: nats; None if the rule compares no entropies with a threshold.
    """
    shown = min(len(data), SHOWN_BYTES)
    highest = max(float(h_T[:shown].max(initial=0)), threshold or 0, 1.0) * 1.05
    # Byte i is token i + 1, so the entropy before it is the one after token i. Patches count
    # tokens: [1, 2, 1] are BOS, bytes 0 and 1, and EOS; minus BOS their edges are 0, 0, 2, 2.
    ends = patch_lengths_P[: shown + 2].cumsum()  # each patch has at least one token
    edges = np.clip(np.concatenate([[0], ends]) - 1, 0, shown).tolist()
    spans = [(a, b) for a, b in pairwise(edges) if a < b]
    parts = [_patches(spans), _bars(data, h_T, spans, shown, highest), _letters(data, shown)]
    if threshold is not None:
        y = _y(threshold, highest)
        parts.append(
            f'<line class="threshold" x1="{LEFT}" x2="{LEFT + shown * COLUMN}" y1="{y}" y2="{y}"/>'
        )
    for nats in range(int(0.97 * highest) + 1):
        parts.append(f'<text class="axis" x="4" y="{_y(nats, highest) + 3}">{nats}</text>')
    width = LEFT + shown * COLUMN + 8
    size = f'width="{width}" height="{HEIGHT + BELOW}" viewBox="0 0 {width} {HEIGHT + BELOW}"'
    label = 'role="img" aria-label="entropy before each byte, in nats"'
    return f'<div class="curve"><svg {size} {label}>{"".join(parts)}</svg></div>'


def _y(nats: float, highest: float) -> float:
    return round(HEIGHT * (1 - nats / highest), 1)


def _patches(spans: list[tuple[int, int]]) -> str:
    shapes = []
    for number, (start, stop) in enumerate(spans):
        x, width = LEFT + start * COLUMN, (stop - start) * COLUMN
        if number % 2:
            shape = f'<rect class="odd" x="{x}" y="0" width="{width}" height="{HEIGHT + BELOW}"/>'
            shapes.append(shape)
        shapes.append(f'<line class="start-line" x1="{x}" x2="{x}" y1="0" y2="{HEIGHT + BELOW}"/>')
    return "".join(shapes)


def _bars(
    data: bytes, h_T: np.ndarray, spans: list[tuple[int, int]], shown: int, highest: float
) -> str:
    starts = {start for start, _ in spans}
    bars = []
    for i, h in enumerate(h_T[:shown].astype(float).tolist()):
        x, y = LEFT + i * COLUMN + 1.5, _y(h, highest)
        kind = "bar start" if i in starts else "bar"
        title = f"byte {i}: 0x{data[i]:02X}, {h:.3f} nats before it"
        bars.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{COLUMN - 3}" '
            f'height="{round(HEIGHT - y, 1)}"><title>{title}</title></rect>'
        )
    return "".join(bars)


def _letters(data: bytes, shown: int) -> str:
    """The characters, each below the middle of its bytes."""
    letters, position = [], 0
    for character in data[: shown + 3].decode(errors="ignore"):
        size = len(character.encode())
        if position + size > shown:
            break
        x = LEFT + (position + size / 2) * COLUMN
        name = _NAMES.get(character, character if character.isprintable() else "·")
        # Without a direction of its own, a right-to-left letter would move its neighbours.
        letters.append(
            f'<text x="{x}" y="{HEIGHT + 15}" text-anchor="middle" direction="ltr">'
            f"{escape(name)}</text>"
        )
        position += size
    return "".join(letters)
