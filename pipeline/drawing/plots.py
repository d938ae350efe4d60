"""Plots for pages and documents: PNG files, and SVG elements that take the colours of their page.

A plot is a function that draws some data on a pair of axes. It uses the colours ``C0``, ``C1``, …
for what it compares (:func:`colour_of`), and finds the right values of all other colours in
matplotlib's defaults, on paper and on a page that may be dark.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import matplotlib

matplotlib.use("Agg")  # draw to files only: there may be no screen

from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

LONGEST_LABEL = 28
"""Characters of a name in a legend, at most: more have no room in a narrow plot."""
LEGEND_LINE = 0.17
"""Inches that a line of a legend below a plot takes."""
FREE_LINES = 3
"""Lines of a legend for which a broad plot has room."""
BROAD, NARROW = (5.5, 3.4), (3.6, 2.9)
"""Width and height in inches. A page shows one or the other, so that letters have about their size
(10 points) on a phone as on a desk."""

Data = TypeVar("Data")


@dataclass(frozen=True)
class Plot(Generic[Data]):
    """A plot of a page, with its title."""

    title: str
    draw: Callable[[Data, Axes], None]
    applies: Callable[[Data], bool] = lambda data: True
    """True if the data have something to draw; a page leaves the plot out otherwise."""


@dataclass(frozen=True)
class Palette:
    """Colours that plots are drawn in."""

    text: str
    grid: str
    series: tuple[str, ...]
    background: str

    def settings(self) -> dict[str, Any]:
        """The palette as settings of matplotlib; ``C0``, ``C1``, … are the colours of series."""
        return {
            "axes.prop_cycle": cycler(color=self.series),
            "figure.facecolor": self.background,
            "axes.edgecolor": self.grid,
            "grid.color": self.grid,
            **dict.fromkeys(("text.color", "axes.labelcolor"), self.text),
            **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), self.text),
        }


# Searched for, here and for dark pages in base.html.j2: readers with any kind of colour blindness
# can tell them apart, the first ones best, and all have a contrast of 3 with the page.
SERIES_COLOURS = (
    *("#2f6fde", "#a04516", "#2fa36b", "#4f2370"),
    *("#c2890c", "#0b524b", "#d96ac4", "#5c6080"),
)
PAPER = Palette("#1f2733", "#d9dee7", SERIES_COLOURS, "#ffffff")
"""The palette of PNG files. A light page has the same colours of series, a dark one has others."""
# Placeholders for the page's colours, which differ between light and dark; replaced in the SVG.
_PLACEHOLDERS = Palette(
    "#010203", "#010204", tuple(f"#0102{i:02x}" for i in range(5, 5 + len(SERIES_COLOURS))), "none"
)
_VARIABLES = {
    _PLACEHOLDERS.text: "var(--text)",
    _PLACEHOLDERS.grid: "var(--line)",
    **{colour: f"var(--series{i})" for i, colour in enumerate(_PLACEHOLDERS.series)},
}


def plot_png(plot: Plot[Data], data: Data, *, legend: bool) -> bytes:
    """Render a plot as a PNG picture.

    Args:
        legend: show the labels of what is drawn, where there are any.
    """
    return _render(plot, data, PAPER, "png", legend)


def plot_svg(plot: Plot[Data], data: Data, *, legend: bool) -> str:
    """Render a plot as an element of a page, which holds it as two SVG elements, broad and narrow,
    and shows the one that fits (``base.html.j2``). Its title describes it. Its colours are
    variables of the page: ``--text``, ``--line``, and ``--series0`` to ``--series7``."""
    both = _svg(plot, data, legend, "broad", BROAD) + _svg(plot, data, legend, "narrow", NARROW)
    return f'<div class="plot">{both}</div>'


def _svg(plot: Plot[Data], data: Data, legend: bool, kind: str, size: tuple[float, float]) -> str:
    text = _render(plot, data, _PLACEHOLDERS, "svg", legend, size).decode()
    text = text[text.index("<svg") :]
    # Colours are replaced in styles only, because names may look like colours.
    text = re.sub(r"(?<=: )#0102[0-9a-f]{2}(?=[;\"])", lambda match: _VARIABLES[match[0]], text)
    # The page decides how large a plot is.
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} class="{kind}" role="img" aria-label="{plot.title}">{rest}'


def _render(
    plot: Plot[Data],
    data: Data,
    palette: Palette,
    kind: str,
    legend: bool,
    size: tuple[float, float] = BROAD,
) -> bytes:
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # letters stay letters: they take the page's font
        # Ids that are the same each time, and differ between the plots of a page.
        "svg.hashsalt": f"{plot.title} {size}",
        "font.size": 10,
        "text.parse_math": False,  # a name may hold dollar signs
        "legend.frameon": False,
        **palette.settings(),
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Letters that the font lacks show as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure, axes = plt.subplots(figsize=size)
        try:
            axes.set_facecolor("none")
            axes.grid(axis="y", lw=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            plot.draw(data, axes)
            if kind == "png":
                axes.set_title(plot.title, loc="left", fontweight="bold")
            if legend:
                legend_below(axes)
            if figure.get_layout_engine() is None:  # unless the plot has chosen one
                figure.tight_layout()
            file = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        finally:
            plt.close(figure)
    return file.getvalue()


def colour_of(place: int) -> str:
    """The colour, as matplotlib names it, of what stands at this place of a comparison."""
    return f"C{place % len(SERIES_COLOURS)}"


def line_style(place: int) -> Any:
    """A line, dashes or dots: where lines lie on each other, each shows through the next one."""
    styles = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
    return styles[place % len(styles)]


def legend_below(axes: Axes, keys: Sequence[Artist] | None = None) -> None:
    """Add a legend that hides nothing, as there are bars or marks anywhere in a plot. It has two
    columns where they have room, and the plot becomes higher by what the legend takes.

    Args:
        keys: what the legend shows instead of what is drawn; one alone needs no legend.
    """
    shown = axes.get_legend_handles_labels()[0] if keys is None else keys
    if len(shown) < 2:
        return
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.set_layout_engine("constrained")  # which makes room outside of the axes
    broad = figure.get_figwidth() == BROAD[0]
    legend = figure.legend(handles=shown, loc="outside lower left", ncol=2 if broad else 1)
    lines = -(-len(shown) // 2) - FREE_LINES if broad else len(shown)
    if broad and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        figure.legend(handles=shown, loc="outside lower left")
        lines = len(shown) - FREE_LINES
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(lines, 0))


def short_label(name: str) -> str:
    """A name for legends, shortened. It begins with a space, because matplotlib leaves out labels
    that begin with an underscore."""
    name = " ".join(name.split())
    if len(name) > LONGEST_LABEL:
        half = LONGEST_LABEL // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return f" {name}"


def palette_colour(name: Literal["text.color", "figure.facecolor"]) -> str:
    """A colour of the palette that is drawn in."""
    colour: str = matplotlib.rcParams[name]
    return colour
