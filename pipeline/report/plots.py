"""The plots of a report, drawn from its figures: PNG files, and SVG that takes the page's colours.

To add a plot, write a function and add an entry to :data:`PLOTS`; the page, the PNG files and the
colours follow::

    def draw_shard_bytes(sets: Sequence[SetFigures], axes: Axes) -> None:
        for figures, colour in coloured(sets):
            axes.plot([shard.bytes for shard in figures.drift], color=colour, label=label(figures))
        axes.set_ylabel("bytes of text")

    PLOTS["shard-bytes"] = Plot("Text in each shard", draw_shard_bytes)

The function draws the figures of all sets that a report compares, in one colour per set. All other
colours have the right values by default, on paper and on a page that may be dark. A caption below
the plot on the page, if there is one, stands in ``page.html.j2``.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, MaxNLocator

from model.rules import find_rule
from pipeline.drawing.plots import (
    Plot,
    colour_of,
    legend_below,
    line_style,
    palette_colour,
    plot_png,
    plot_svg,
    short_label,
)
from pipeline.report.figures import SetFigures

LONGEST_SHOWN = 32
"""Tokens; the last point of the plot of lengths also counts all longer patches."""
MOST_POINTS = 200
"""Points of the plot over the shards; if there are more shards, neighbours share a point."""
CUT_OFF = 1.15
"""Height of the plot of entropies, as a multiple of its second highest bar."""
STEPPED_MEAN = 40.0
"""Bytes per patch up to which the curve is drawn: hardly anything exceeds the thresholds beyond."""


def draw_lengths(sets: Sequence[SetFigures], axes: Axes) -> None:
    """Draw the share of patches by length."""
    for place, (figures, colour) in enumerate(coloured(sets)):
        share = np.zeros(LONGEST_SHOWN + 1)
        for length, count in figures.patch_lengths.counts.items():
            share[min(length, LONGEST_SHOWN)] += 100 * count / figures.patches
        places = np.arange(1, LONGEST_SHOWN + 1)
        if len(sets) == 1:
            axes.bar(places, share[1:], color=colour, width=0.85)
        else:
            look = {"color": colour, "ls": line_style(place), "lw": 1.5}
            axes.plot(places, share[1:], marker=".", ms=5, label=label(figures), **look)
    axes.set_xticks([1, *range(4, LONGEST_SHOWN, 4), LONGEST_SHOWN])
    axes.set_xticklabels(["1", *map(str, range(4, LONGEST_SHOWN, 4)), f"{LONGEST_SHOWN}+"])
    axes.set_xlabel("patch length (tokens)")
    axes.set_ylabel("% of patches")


def draw_entropies(sets: Sequence[SetFigures], axes: Axes) -> None:
    """Draw the share of tokens by entropy, and a line at the threshold."""
    highest = 0.0
    for number, (figures, colour) in enumerate(coloured(sets)):
        counts = np.array(figures.entropies.counts, float)
        width = figures.entropies.bin
        if counts.any():
            edges = np.arange(len(counts) + 1) * width
            share = 100 * counts / counts.sum()
            line = {"lw": 1.4, "ls": line_style(number)}
            look: dict[str, Any] = {"fill": True, "alpha": 0.85} if len(sets) == 1 else line
            axes.stairs(share, edges, color=colour, label=label(figures), **look)
            # The lowest entropies are so frequent that the others would look like zero: the highest
            # bar is cut off, and a note says how high it is.
            highest = max(highest, np.sort(share[share > 0])[-2:][0])
            if len(sets) == 1 and share.max() > CUT_OFF * highest:
                bin_ = int(share.argmax())
                note, place = f" {share[bin_]:.0f} % ↑", (edges[bin_ + 1], CUT_OFF * highest)
                axes.annotate(note, place, va="top")
        if figures.threshold is not None and find_rule(figures.rule).compares != "rise":
            axes.axvline(figures.threshold, color=_threshold_colour(sets, colour), ls="--", lw=1)
    if highest:
        axes.set_ylim(0, CUT_OFF * highest)
    axes.set_xlim(left=0)
    axes.set_xlabel("entropy of the next byte (nats)")
    axes.set_ylabel("% of tokens")


def draw_curve(sets: Sequence[SetFigures], axes: Axes) -> None:
    """Draw the mean patch size by threshold, with the current and the suggested thresholds."""
    inside = palette_colour("figure.facecolor")
    for number, (figures, colour) in enumerate(coloured(sets)):
        curve = figures.curve
        thresholds, means = np.array(curve.thresholds), np.array(curve.mean_patch_bytes)
        shown = means <= STEPPED_MEAN
        look = {"color": colour, "ls": line_style(number), "lw": 1.8}
        axes.plot(thresholds[shown], means[shown], label=label(figures), **look)
        for suggested in figures.suggested:
            reached = suggested.mean_patch_bytes
            if suggested.threshold is not None and reached is not None and reached <= STEPPED_MEAN:
                axes.plot(suggested.threshold, reached, "o", color=colour, ms=5, mfc=inside)
        if figures.threshold is not None and figures.curve.thresholds:
            place = (figures.threshold, figures.mean_patch_bytes)
            axes.axvline(place[0], color=_threshold_colour(sets, colour), ls="--", lw=1)
            axes.plot(*place, "D", color=colour, ms=6)
            if len(sets) == 1:
                note = f"{place[1]:.2f} bytes\nat {place[0]:.3f} nats"
                # The curve rises to the right, so a note has room on its upper left or lower right.
                left = len(thresholds) > 0 and place[0] > np.mean(thresholds[[0, -1]])
                offset, side = ((-8, 4), "right") if left else ((8, -4), "left")
                up = "bottom" if left else "top"
                where = ("data", "offset points")
                axes.annotate(note, place, offset, *where, ha=side, va=up)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("threshold (nats)")
    axes.set_ylabel("mean bytes per patch")


def draw_drift(sets: Sequence[SetFigures], axes: Axes) -> None:
    """Draw the mean patch size of the shards, in their order."""
    for number, (figures, colour) in enumerate(coloured(sets)):
        means = np.array([shard.mean_patch_bytes for shard in figures.drift])
        if not len(means):
            continue
        edges = np.linspace(0, len(means), min(len(means), MOST_POINTS) + 1).astype(int)
        parts = [means[a:b] for a, b in pairwise(edges)]
        places = (edges[:-1] + edges[1:] - 1) / 2 + 1
        middle = [part.mean() for part in parts]
        look = {"color": colour, "ls": line_style(number), "lw": 1.2}
        axes.plot(places, middle, marker=".", ms=4, label=label(figures), **look)
        if len(means) > MOST_POINTS:
            low, high = [part.min() for part in parts], [part.max() for part in parts]
            axes.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    most = max((len(figures.drift) for figures in sets), default=0)
    axes.set_xlim(0.5, max(most, 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("shard")
    axes.set_ylabel("mean bytes per patch")


def draw_flops(sets: Sequence[SetFigures], axes: Axes) -> None:
    """Draw inference FLOPs per byte of the paper's sizes; hatched, those of a BPE model."""
    shown = [(f, colour) for f, colour in coloured(sets) if f.flops]
    bars: list[tuple[list[float], dict[str, Any]]] = []
    for figures, colour in shown:
        rows = figures.flops
        look: dict[str, Any] = {"color": colour, "label": label(figures)}
        bars.append(([row.inference for row in rows], look))
        if figures.tokenizer:
            edge = colour if len(sets) > 1 else palette_colour("text.color")
            look = {"fill": False, "ec": edge, "hatch": "///", "lw": 0.8, "label": " BPE"}
            bars.append(([row.bpe.inference for row in rows if row.bpe], look))
    width = 0.8 / max(len(bars), 1)
    for i, (flops, look) in enumerate(bars):
        places = np.arange(len(flops)) - 0.4 + (i + 0.5) * width
        axes.bar(places, flops, width * 0.92, **look)
    if shown:
        sizes = [row.size for row in shown[0][0].flops]
        axes.set_xticks(range(len(sizes)), sizes)
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_ylabel("inference FLOPs per byte")
    if len(sets) == 1:
        legend_below(axes)


PLOTS: dict[str, Plot[Sequence[SetFigures]]] = {
    "threshold": Plot(
        "What a threshold does", draw_curve, lambda sets: any(f.curve.thresholds for f in sets)
    ),
    "patch-lengths": Plot("Patch lengths", draw_lengths, lambda sets: any(f.patches for f in sets)),
    "entropies": Plot(
        "Entropies", draw_entropies, lambda sets: any(any(f.entropies.counts) for f in sets)
    ),
    "drift": Plot("Over the shards", draw_drift, lambda sets: any(len(f.drift) > 1 for f in sets)),
    "flops": Plot("What it costs", draw_flops, lambda sets: any(f.flops for f in sets)),
}
"""The plots by the name of their PNG file, in the order of the page."""


def png(name: str, sets: Sequence[SetFigures]) -> bytes:
    """Render a plot as a PNG picture."""
    return plot_png(PLOTS[name], sets, legend=len(sets) > 1)


def svg(name: str, sets: Sequence[SetFigures]) -> str:
    """Render a plot as an SVG element of a page."""
    return plot_svg(PLOTS[name], sets, legend=len(sets) > 1)


def coloured(sets: Sequence[SetFigures]) -> Iterator[tuple[SetFigures, str]]:
    """The sets, each with its colour as matplotlib names it."""
    for i, figures in enumerate(sets):
        yield figures, colour_of(i)


def label(figures: SetFigures) -> str:
    """The name of a set for legends."""
    return short_label(figures.name)


def _threshold_colour(sets: Sequence[SetFigures], colour: str) -> str:
    """The colour of the line at a set's threshold: the set's, if there are several sets."""
    return palette_colour("text.color") if len(sets) == 1 else colour
