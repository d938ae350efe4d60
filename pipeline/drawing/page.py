"""Pages: one file each, without scripts, that asks nothing of a network.

A template of such a page extends ``base.html.j2``, which has the head and the style, light and
dark, and fills its blocks ``title`` and ``main``.
"""

import re
from pathlib import Path
from typing import Any

import jinja2

from pipeline.drawing.plots import SERIES_COLOURS
from pipeline.drawing.scrolling import scrolling_css

_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")


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
    environment.filters |= {"count": "{:,}".format, **filters}
    environment.globals["scrolling_css"] = scrolling_css
    page = environment.get_template(template.name).render(colours=SERIES_COLOURS, **values)
    return printable(page)


def printable(text: str) -> str:
    """Replace what pages and terminals cannot hold: control characters, which ids and names of
    files may have in them, and the surrogates that stand for bytes of a file's name that are not
    UTF-8."""
    return _CONTROLS.sub("\ufffd", text).encode(errors="replace").decode()
