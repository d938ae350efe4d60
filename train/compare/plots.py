"""The plots of a comparison, drawn from its results; see :mod:`pipeline.drawing.plots`.

To add one, write a function and add an entry to :data:`PLOTS`.
"""

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter

from pipeline.drawing.plots import (
    SERIES_COLOURS,
    Plot,
    colour_of,
    legend_below,
    palette_colour,
    short_label,
)
from train.compare.figures import Results, RunResult
from train.compare.wording import in_words

BEGINNING = 0.2
"""The share of the training whose losses may be cut off: they would hide how the rest differs."""
LABEL_WIDTH = 18
"""Letters of a line of a label beside an axis."""
LABEL_LINE = 0.18
"""Inches that a line of such a label takes."""
ROWS_HEIGHT = 1.3
"""Inches that the rows of a plot have for the labels beside them."""
MARKERS = "os^Dv*PX"
"""Arms have them in turn, and can then be told apart without their colours."""


def draw_losses(results: Results, axes: Axes) -> None:
    """Draw bits per byte against training FLOPs: of each arm, the mean of the finished runs and
    their range; runs that did not finish, or diverged, are dotted."""
    late: list[float] = []
    for place, arm in enumerate(results.arms):
        look = _look(place)
        counted = arm.losses(results.clean).by_seed
        curves = [(run.seed in counted, _curve(results, run)) for run in arm.runs]
        finished = [curve for done, curve in curves if done and curve]
        if finished:
            flops, mean, low, high = _joined(finished)
            axes.plot(flops, mean, ms=4, lw=1.6, **look, label=short_label(arm.label))
            if len(finished) > 1:
                axes.fill_between(flops, low, high, color=look["color"], alpha=0.2, lw=0)
        unfinished = [curve for done, curve in curves if not done and curve]
        for number, curve in enumerate(unfinished):
            name = None if finished or number else short_label(arm.label)
            dotted = {**look, "ls": ":"}
            axes.plot(*np.array(list(curve.values())).T, ms=3, lw=1, **dotted, label=name)
        ends = np.array([point for _, curve in curves for point in curve.values()])
        if len(ends):
            late += list(ends[ends[:, 0] >= BEGINNING * ends[:, 0].max(), 1])
    if late:
        room = 0.06 * (max(late) - min(late)) or 0.1
        axes.set_ylim(min(late) - room, max(late) + room)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("training FLOPs")
    axes.set_ylabel("bits per byte")
    legend_below(axes)


Curve = dict[int, tuple[float, float]]
"""FLOPs and bits per byte, by step."""


def _curve(results: Results, run: RunResult) -> Curve:
    found = ((p.step, p.flops, p.bits_per_byte.get(results.clean)) for p in run.points)
    return {step: (flops, bits) for step, flops, bits in found if bits and math.isfinite(bits)}


def _joined(curves: list[Curve]) -> np.ndarray:
    """FLOPs, the mean, the lowest and the highest bits per byte, at the steps that all have."""
    steps = sorted(set.intersection(*map(set, curves)))
    points_RSF = np.array([[curve[step] for step in steps] for curve in curves]).reshape(
        len(curves), len(steps), 2
    )
    bits = points_RSF[..., 1]
    return np.array([points_RSF[..., 0].mean(0), bits.mean(0), bits.min(0), bits.max(0)])


def draw_differences(results: Results, axes: Axes) -> None:
    """Draw the difference of each arm from the first one: a dot per seed, a line for the mean."""
    others = results.arms[1:]
    for row, arm in enumerate(others):
        spread = results.differences(arm, results.clean)
        if not spread:
            continue
        colour = colour_of(row + 1)
        values = list(spread.by_seed.values())
        axes.plot(values, [row] * len(values), "o", color=colour, ms=6, alpha=0.8, mew=0)
        axes.plot([spread.low, spread.high], [row, row], color=colour, lw=1.2, alpha=0.6)
        axes.plot([spread.mean] * 2, [row - 0.18, row + 0.18], color=colour, lw=2.4)
    axes.axvline(0, color=palette_colour("text.color"), lw=1, ls="--")
    _arm_rows(axes, others)
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.margins(x=0.08)
    name = textwrap.wrap(results.arms[0].label, LABEL_WIDTH)[:3]
    axes.set_xlabel("\n".join(["bits per byte above", *name]))


def draw_patch_sizes(results: Results, axes: Axes) -> None:
    """Draw bits per byte against patch size; the line of a model without patches is level."""
    for place, arm in enumerate(results.arms):
        spread = arm.losses(results.clean)
        if not spread:
            continue
        look, label = _look(place), short_label(arm.label)
        if arm.patch_size is None:
            axes.axhline(spread.mean, color=look["color"], ls="--", lw=1.4, label=label)
            continue
        axes.errorbar(
            arm.patch_size,
            spread.mean,
            [[spread.mean - spread.low], [spread.high - spread.mean]],
            fmt=look["marker"],
            color=look["color"],
            ms=6,
            capsize=4,
            label=label,
        )
    axes.margins(x=0.12, y=0.15)
    axes.set_xlabel("bytes per patch, or per token")
    axes.set_ylabel("bits per byte")
    legend_below(axes)


def draw_costs(results: Results, axes: Axes) -> None:
    """Draw the training FLOPs per byte of each arm, by part: a part is a shade. The first part of
    a model is its largest transformer, whatever its kind, and has the full colour."""
    first = dict.fromkeys(next(iter(arm.flops_per_byte), "") for arm in results.arms)
    others = [part for part in results.parts if part not in first]
    lighter = np.linspace(0.7, 0.2, len(others))
    shades = dict.fromkeys(first, 1.0) | dict(zip(others, lighter, strict=True))
    for row, arm in enumerate(results.arms):
        left = 0.0
        for part, flops in arm.flops_per_byte.items():
            axes.barh(row, flops, 0.7, left, color=colour_of(row), alpha=shades[part])
            left += flops
    _arm_rows(axes, results.arms)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("training FLOPs per byte")
    colour = palette_colour("text.color")
    names = ((part, in_words(part)) for part in others)
    names_of_first = [in_words(part) for part in first]
    full = names_of_first[0] if len(first) == 1 else "latent or only transformer"
    keys = [Patch(color=colour, lw=0, label=full)]
    keys += [Patch(color=colour, lw=0, alpha=shades[p], label=name) for p, name in names]
    legend_below(axes, keys)


def draw_inference(results: Results, axes: Axes) -> None:
    """Draw the FLOPs per byte at inference; those of the entropy model are hatched."""
    for row, arm in enumerate(results.arms):
        model, entropies = arm.inference_flops_per_byte, arm.entropy_model_flops_per_byte or 0
        axes.barh(row, model, 0.7, color=colour_of(row))
        axes.barh(row, entropies, 0.7, model, fill=False, ec=colour_of(row), hatch="///", lw=0.8)
    _arm_rows(axes, results.arms)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("FLOPs per byte at inference")
    colour = palette_colour("text.color")
    keys = [Patch(color=colour, label="model", lw=0)]
    if any(arm.entropy_model_flops_per_byte for arm in results.arms):
        keys.append(Patch(fill=False, ec=colour, hatch="///", lw=0.8, label="entropy model"))
    legend_below(axes, keys)


def draw_robustness(results: Results, axes: Axes) -> None:
    """Draw by how much the loss of each other text exceeds that of the clean one."""
    width = 0.8 / len(results.arms)
    for place, arm in enumerate(results.arms):
        label: str | None = short_label(arm.label)
        for column, text in enumerate(results.noised):
            over = results.rise(arm, text)
            if over:
                x = column - 0.4 + (place + 0.5) * width
                error = [[over.mean - over.low], [over.high - over.mean]]
                look: dict[str, Any] = {"lw": 1, "ecolor": palette_colour("text.color")}
                shown = error if len(over.by_seed) > 1 else None
                axes.bar(x, over.mean, width * 0.92, color=colour_of(place), label=label)
                axes.errorbar(x, over.mean, shown, fmt="none", **look)
                label = None
    tilted: dict[str, Any] = {"rotation": 60 if len(results.noised) > 5 else 35, "ha": "right"}
    tilted = tilted | {"rotation_mode": "anchor"} if len(results.noised) > 3 else {}
    names = [textwrap.shorten(in_words(n), LABEL_WIDTH, placeholder="…") for n in results.noised]
    axes.set_xticks(range(len(names)), names, **tilted)
    axes.set_ylabel("rise in bits per byte")
    legend_below(axes)


def _look(place: int) -> dict[str, Any]:
    """The colour and the mark of an arm, and another line for each round of them."""
    style = ("-", "--", "-.")[place // len(SERIES_COLOURS) % 3]
    marker = MARKERS[place % len(MARKERS)]
    return {"color": colour_of(place), "ls": style, "marker": marker}


def _arm_rows(axes: Axes, arms: Any) -> None:
    """A row for each arm, with its name on the left. The plot becomes higher if the names need
    it."""
    names = [textwrap.wrap(arm.label, LABEL_WIDTH)[:3] for arm in arms]
    axes.set_yticks(range(len(arms)), ["\n".join(lines) for lines in names])
    figure = axes.figure
    assert isinstance(figure, Figure)
    higher = len(arms) * LABEL_LINE * max(map(len, names)) - ROWS_HEIGHT
    figure.set_figheight(figure.get_figheight() + max(higher, 0))
    axes.grid(False)
    axes.grid(axis="x", lw=0.6)


def _measured(results: Results) -> bool:
    return any(_curve(results, run) for arm in results.arms for run in arm.runs)


def _paired(results: Results) -> bool:
    return any(results.differences(arm, results.clean) for arm in results.arms[1:])


def _sizes_vary(results: Results) -> bool:
    """If patch sizes differ by more than what thresholds leave when they are fitted to one."""
    sizes = [arm.patch_size for arm in results.arms if arm.patch_size and arm.losses(results.clean)]
    return len(sizes) > 1 and max(sizes) > 1.02 * min(sizes)


def _noised(results: Results) -> bool:
    return any(results.rise(arm, text) for arm in results.arms for text in results.noised)


PLOTS: dict[str, Plot[Results]] = {
    "losses": Plot("In the course of training", draw_losses, _measured),
    "differences": Plot("Differences, seed by seed", draw_differences, _paired),
    "patch-sizes": Plot("Patch sizes", draw_patch_sizes, _sizes_vary),
    "robustness": Plot("Other texts", draw_robustness, _noised),
    "costs": Plot("What training costs", draw_costs),
    "inference": Plot("What inference costs", draw_inference),
}
"""The plots by the name of their PNG file, in the order of the page."""
