"""Patches as HTML: text in colours that change where a patch ends.

Whatever the text holds shows as text: markup is escaped, and characters that are invisible or
change the direction of writing show as their names.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from html import escape

COLOURS = 4
"""Patches take them in turns, so that neighbours never have the same. Each second one is darker:
neighbours differ in any kind of colour blindness, and on paper without colours."""
_HIDDEN = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f]"
    # Joiners, which Persian letters and families of emoji need, where they join nothing.
    "|(?<![^\u200c\u200d])[\u200c\u200d]"
)
_DOTTED_CIRCLE = "\u25cc"

LIGHT_PATCHES = """
.patches { font: .92em/1.9 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: break-spaces; overflow-wrap: anywhere; }
.patch { unicode-bidi: isolate; border-radius: 3px; padding: 2px 0; print-color-adjust: exact; }
.patch.p0 { background: #dbe8fd; } .patch.p1 { background: #f7cb9f; }
.patch.p2 { background: #d3f2df; } .patch.p3 { background: #d8bdf0; }
.patch.outlined { outline: 2px solid currentColor; outline-offset: -1px; }
.patch.marked { box-shadow: inset 2px 0 0 #b3261e; }
:is(.patches, .aligned) .chip { font-size: .72em; border: 1px solid currentColor;
  border-radius: 3px; padding: 0 2px; margin: 0 1px; opacity: .95; display: inline-block;
  line-height: 1.3; white-space: nowrap; }
:is(.patches, .aligned) .mark { opacity: .7; }
"""
"""Styles of :func:`patches_html` on a light page."""
DARK_PATCHES = (
    *(".patch.p0 { background: #1e3c70; }", ".patch.p1 { background: #8a5522; }"),
    *(".patch.p2 { background: #164a30; }", ".patch.p3 { background: #6e449a; }"),
    ".patch.marked { box-shadow: inset 2px 0 0 #ff8a80; }",
)
"""Rules that replace some of them on a dark page."""
_DARK = "@media screen and (prefers-color-scheme: dark)"
PATCHES_CSS = f"{LIGHT_PATCHES}{_DARK} {{ {' '.join(DARK_PATCHES)} }}\n"
"""Styles for a page that follows the system's choice of light or dark."""


def patches_html(
    patches: Sequence[bytes],
    titles: Sequence[str] | None = None,
    outlined: int | None = None,
    marked: Collection[int] = (),
) -> str:
    """Consecutive patches of a text as one HTML element.

    If a character lies in more than one patch, its bytes show as hexadecimal digits.

    Args:
        patches: UTF-8; an empty patch shows nothing, but takes a colour.
        titles: the tooltip of each patch.
        outlined: the index of a patch to outline.
        marked: the indices of patches to mark where they begin.
    """
    spans = []
    for number, patch in enumerate(patches):
        title = f' title="{escape(titles[number])}"' if titles else ""
        kind = f"patch p{number % COLOURS}" + " outlined" * (number == outlined)
        kind += " marked" * (number in marked)
        spans.append(f'<span class="{kind}"{title}>{shown_html(patch)}</span>')
    return f'<div class="patches">{"".join(spans)}</div>'


def shown_html(patch: bytes) -> str:
    """The text of a patch, or of a part of one; bytes of characters that are cut as digits."""
    parts = []
    while patch:
        try:
            parts.append(_visible(patch.decode()))
            break
        except UnicodeDecodeError as error:
            parts.append(_visible(patch[: error.start].decode()))
            parts += [_chip(f"{byte:02X}") for byte in patch[error.start : error.end]]
            patch = patch[error.end :]
    return "".join(parts)


def _visible(text: str) -> str:
    # A mark, be it a vowel or an emoji's variation, would combine with the patch before.
    if text and unicodedata.category(text[0])[0] == "M" and not _HIDDEN.match(text):
        text = _DOTTED_CIRCLE + text
    parts = _HIDDEN.split(escape(text))
    hidden = _HIDDEN.findall(text)
    named = (_name(character) for character in hidden)
    return parts[0] + "".join(mark + part for mark, part in zip(named, parts[1:], strict=True))


def _name(character: str) -> str:
    if character == "\n":
        return '<span class="mark">↵</span>\n'
    if character == "\t":
        return '<span class="mark">⇥</span>\t'
    return _chip(f"{ord(character):02X}" if ord(character) < 0x20 else f"U+{ord(character):04X}")


def _chip(text: str) -> str:
    return f'<span class="chip">{text}</span>'
