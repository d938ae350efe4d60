"""The plots of a report, from its figures: PNG files, and SVG that takes the page's colours."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draw to files only: there may be no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from model.rules import find_rule

LONGEST_NAME = 32
"""Characters of a set's name in a legend."""
LONGEST_SHOWN = 32
"""Tokens; longer patches share the last point."""
MOST_POINTS = 200
"""Of the drift over shards; neighbours share a point beyond that."""
CUT_OFF = 1.15
"""Height of the plot of entropies, where the second highest bar is 1."""
STEPPED_MEAN = 40.0
"""Bytes a patch up to which the curve is drawn: beyond lie thresholds that nothing exceeds."""
WIDTH, HEIGHT = 5.5, 3.4
"""Inches: on a phone, where they are scaled down, letters still have 7 points."""

Figures = dict[str, Any]


@dataclass(frozen=True)
class Palette:
    """Colours of a plot."""

    text: str
    grid: str
    sets: tuple[str, ...]
    background: str


SET_COLOURS = (
    *("#2f6fde", "#c9551f", "#1f8a54", "#8e44c8"),
    *("#b8860b", "#0e8a99", "#c2388a", "#6b7280"),
)
PAPER = Palette("#1f2733", "#d9dee7", SET_COLOURS, "#ffffff")
"""Of pictures; the page, which has the same colours of sets, has others for them in the dark."""
# Stand for the page's own, which differ between light and dark: replaced in the SVG.
_PLACEHOLDERS = Palette(
    "#010203", "#010204", tuple(f"#0102{i:02x}" for i in range(5, 5 + len(SET_COLOURS))), "none"
)
_VARIABLES = {
    _PLACEHOLDERS.text: "var(--text)",
    _PLACEHOLDERS.grid: "var(--line)",
    **{colour: f"var(--set{i})" for i, colour in enumerate(_PLACEHOLDERS.sets)},
}


def draw_lengths(axes: Axes, sets: Sequence[Figures], palette: Palette) -> None:
    """Share of patches by length."""
    for figures, colour in _coloured(sets, palette):
        counts = {int(k): v for k, v in figures["patch_lengths"]["counts"].items()}
        share = np.zeros(LONGEST_SHOWN + 1)
        for length, count in counts.items():
            share[min(length, LONGEST_SHOWN)] += 100 * count / figures["patches"]
        places = np.arange(1, LONGEST_SHOWN + 1)
        if len(sets) == 1:
            axes.bar(places, share[1:], color=colour, width=0.85)
        else:
            axes.plot(places, share[1:], ".-", color=colour, lw=1.5, ms=5, label=_label(figures))
    axes.set_xticks([1, *range(4, LONGEST_SHOWN, 4), LONGEST_SHOWN])
    axes.set_xticklabels(["1", *map(str, range(4, LONGEST_SHOWN, 4)), f"{LONGEST_SHOWN}+"])
    axes.set_xlabel("patch length (tokens)")
    axes.set_ylabel("% of patches")


def draw_entropies(axes: Axes, sets: Sequence[Figures], palette: Palette) -> None:
    """Share of tokens by entropy, and where the threshold lies."""
    highest = 0.0
    for figures, colour in _coloured(sets, palette):
        counts = np.array(figures["entropies"]["counts"], float)
        width = figures["entropies"]["bin"]
        if counts.any():
            edges = np.arange(len(counts) + 1) * width
            share = 100 * counts / counts.sum()
            fill: dict[str, Any] = {"fill": True, "alpha": 0.85} if len(sets) == 1 else {"lw": 1.4}
            axes.stairs(share, edges, color=colour, label=_label(figures), **fill)
            # The very lowest entropies are so many that the others would look like none.
            highest = max(highest, np.sort(share)[-2] if len(share) > 1 else share[0])
            if len(sets) == 1 and share.max() > CUT_OFF * highest:
                bin_ = int(share.argmax())
                note, place = f" {share[bin_]:.0f} % ↑", (edges[bin_ + 1], CUT_OFF * highest)
                axes.annotate(note, place, va="top", color=palette.text)
        compared = find_rule(figures["rule"]).compares
        if figures["threshold"] is not None and compared != "rise":
            axes.axvline(figures["threshold"], color=_marked(palette, sets, colour), ls="--", lw=1)
    if highest:
        axes.set_ylim(0, CUT_OFF * highest)
    axes.set_xlim(left=0)
    axes.set_xlabel("entropy of the next byte (nats)")
    axes.set_ylabel("% of tokens")


def draw_curve(axes: Axes, sets: Sequence[Figures], palette: Palette) -> None:
    """Mean patch size by threshold, with the current and the suggested thresholds."""
    for figures, colour in _coloured(sets, palette):
        curve = figures["curve"]
        thresholds, means = np.array(curve["thresholds"]), np.array(curve["mean_patch_bytes"])
        shown = means <= STEPPED_MEAN
        axes.plot(thresholds[shown], means[shown], color=colour, lw=1.8, label=_label(figures))
        for suggested in figures["suggested"]:
            if suggested["threshold"] is not None and suggested["mean_patch_bytes"] <= STEPPED_MEAN:
                place = (suggested["threshold"], suggested["mean_patch_bytes"])
                axes.plot(*place, "o", color=colour, ms=5, mfc=palette.background)
        if figures["threshold"] is not None and figures["curve"]["thresholds"]:
            place = (figures["threshold"], figures["mean_patch_bytes"])
            axes.axvline(place[0], color=_marked(palette, sets, colour), ls="--", lw=1)
            axes.plot(*place, "D", color=colour, ms=6)
            if len(sets) == 1:
                note = f"{place[1]:.2f} bytes\nat {place[0]:.3f} nats"
                # Left of it, where there is room.
                left = len(thresholds) > 0 and place[0] > np.mean(thresholds[[0, -1]])
                offset, side = ((-8, 4), "right") if left else ((8, -4), "left")
                up = "bottom" if left else "top"
                where = ("data", "offset points")
                axes.annotate(note, place, offset, *where, ha=side, va=up, color=palette.text)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("threshold (nats)")
    axes.set_ylabel("mean bytes a patch")


def draw_drift(axes: Axes, sets: Sequence[Figures], palette: Palette) -> None:
    """Mean patch size over the shards, in their order."""
    for figures, colour in _coloured(sets, palette):
        means = np.array([shard["mean_patch_bytes"] for shard in figures["drift"]])
        if not len(means):
            continue
        edges = np.linspace(0, len(means), min(len(means), MOST_POINTS) + 1).astype(int)
        parts = [means[a:b] for a, b in pairwise(edges)]
        places = (edges[:-1] + edges[1:] - 1) / 2 + 1
        middle = [part.mean() for part in parts]
        axes.plot(places, middle, ".-", color=colour, lw=1.2, ms=4, label=_label(figures))
        if len(means) > MOST_POINTS:
            low, high = [part.min() for part in parts], [part.max() for part in parts]
            axes.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("shard")
    axes.set_ylabel("mean bytes a patch")


def draw_flops(axes: Axes, sets: Sequence[Figures], palette: Palette) -> None:
    """Inference FLOPs a byte of the paper's sizes; hatched beside them, of a BPE model."""
    shown = [(f, colour) for f, colour in _coloured(sets, palette) if f["flops"]]
    bars: list[tuple[list[float], dict[str, Any]]] = []
    for figures, colour in shown:
        rows = figures["flops"]
        look: dict[str, Any] = {"color": colour, "label": _label(figures)}
        bars.append(([row["inference"] for row in rows], look))
        if figures["tokenizer"]:
            edge = colour if len(sets) > 1 else palette.text
            look = {"fill": False, "ec": edge, "hatch": "///", "lw": 0.8, "label": " BPE"}
            bars.append(([row["bpe"]["inference"] for row in rows], look))
    width = 0.8 / max(len(bars), 1)
    for i, (flops, look) in enumerate(bars):
        places = np.arange(len(flops)) - 0.4 + (i + 0.5) * width
        axes.bar(places, flops, width * 0.92, **look)
    if shown:
        sizes = [row["size"] for row in shown[0][0]["flops"]]
        axes.set_xticks(range(len(sizes)), sizes)
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylabel("FLOPs a byte, inference")
    if len(sets) == 1 and len(bars) > 1:
        axes.legend(frameon=False, labelcolor=palette.text)


PLOTS: dict[str, tuple[str, Callable[[Axes, Sequence[Figures], Palette], None]]] = {
    "threshold": ("What a threshold does", draw_curve),
    "patch-lengths": ("Patch lengths", draw_lengths),
    "entropies": ("Entropies", draw_entropies),
    "drift": ("Over the shards", draw_drift),
    "flops": ("What it costs", draw_flops),
}
"""By name of the PNG file: title, and how it is drawn."""


def png(name: str, sets: Sequence[Figures]) -> bytes:
    """A plot as a PNG picture."""
    return _render(name, sets, PAPER, "png")


def svg(name: str, sets: Sequence[Figures]) -> str:
    """A plot as an SVG element for a page that has the colours ``--text``, ``--line``,
    ``--set0`` to ``--set3``; it is described by its title."""
    text = _render(name, sets, _PLACEHOLDERS, "svg").decode()
    text = text[text.index("<svg") :]
    # In styles only: names of sets are in there, too.
    text = re.sub(r"(?<=: )#0102[0-9a-f]{2}(?=[;\"])", lambda found: _VARIABLES[found[0]], text)
    # Its size is the page's to give.
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{PLOTS[name][0]}">{rest}'


def _render(name: str, sets: Sequence[Figures], palette: Palette, kind: str) -> bytes:
    title, draw = PLOTS[name]
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # letters stay letters: they take the page's font
        "svg.hashsalt": name,  # ids that are the same each time, and differ between plots
        "font.size": 10,
        "axes.edgecolor": palette.grid,
        "axes.labelcolor": palette.text,
        "text.color": palette.text,
        "xtick.color": palette.text,
        "ytick.color": palette.text,
        "grid.color": palette.grid,
        "text.parse_math": False,  # a name may hold dollar signs
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Letters that its font lacks show as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure, axes = plt.subplots(figsize=(WIDTH, HEIGHT), facecolor=palette.background)
        axes.set_facecolor("none")
        axes.grid(axis="y", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, sets, palette)
        if kind == "png":
            axes.set_title(title, loc="left", fontweight="bold")
        if len(sets) > 1:
            axes.legend(frameon=False, labelcolor=palette.text)
        figure.tight_layout()
        file = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        plt.close(figure)
    return file.getvalue()


def _label(figures: Figures) -> str:
    """A name for legends; without the space, those that begin with an underscore are left out."""
    name = " ".join(figures["name"].split())
    if len(name) > LONGEST_NAME:
        half = LONGEST_NAME // 2
        name = f"{name[: half - 1]}…{name[-half:]}"
    return f" {name}"


def _coloured(sets: Sequence[Figures], palette: Palette) -> list[tuple[Figures, str]]:
    return list(zip(sets, cycle(palette.sets), strict=False))


def _marked(palette: Palette, sets: Sequence[Figures], colour: str) -> str:
    """Colour of the line at a set's threshold."""
    return palette.text if len(sets) == 1 else colour
