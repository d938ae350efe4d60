"""Pages: one file each, without scripts, that asks nothing of a network.

A template of such a page extends ``base.html.j2``, which has the head and the style, light and
dark, and fills its blocks ``title`` and ``main``.
"""

import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from pipeline.drawing.plots import SERIES_COLOURS
from pipeline.drawing.scrolling import scrolling_css

_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_WHOLE = re.compile(r"(--\w+)([\w.-]*)|\d[\d.,]*\+? \(\d+ %\)")
"""Parts of a text that stay on one line: the beginning of a flag, or a figure with its share."""


def render_page(template: Path, filters: dict[str, Any], **values: Any) -> str:
    """A page, made of the template in a file and its values. Whatever the values hold shows as
    text, unless it is :class:`markupsafe.Markup`.

    Args:
        filters: functions that the template uses as filters, by name.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"count": "{:,}".format, "folded": folded, **filters}
    environment.globals["scrolling_css"] = scrolling_css
    page = environment.get_template(template.name).render(colours=SERIES_COLOURS, **values)
    return printable(page)


def folded(text: str) -> Markup:
    """Text for narrow places: a path folds behind a slash, a flag behind a dot or a hyphen that is
    not its first, and a figure with its share, 4 (50 %), nowhere."""
    parts, end = [], 0
    for match in _WHOLE.finditer(text):
        begun, rest = (match[1], match[2]) if match[1] else (match[0], "")
        parts.append(_foldable(text[end : match.start()], "/"))
        parts.append(f'<span class="whole">{escape(begun)}</span>{_foldable(rest, ".")}')
        end = match.end()
    return Markup("".join([*parts, _foldable(text[end:], "/")]))


def _foldable(text: str, mark: str) -> str:
    """HTML of a text that may fold behind a mark."""
    return re.sub(f"({re.escape(mark)})(?=[^{mark}])", r"\1<wbr>", str(escape(text)))


def printable(text: str) -> str:
    """Replace what pages and terminals cannot hold: control characters, which ids and names of
    files may have in them, also those that turn the numbers after a name around, and the surrogates
    that stand for bytes of a file's name that are not UTF-8."""
    return _CONTROLS.sub("\ufffd", text).encode(errors="replace").decode()
