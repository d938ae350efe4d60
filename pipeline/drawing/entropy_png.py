"""A picture of a sentence for people who read a README: its entropies and its patches, as PNG."""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files only: there may be no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from model.tokenizer import BYTE_OFFSET, encode_documents

SHOWN_TOKENS = 72
"""As many as have room in a column of a README, with letters that can be read there."""
PATCH_COLOURS = ("#e8eef7", "#c9d8ee")


def write_entropy_png(
    path: Path,
    name: str,
    data: bytes,
    h_T: np.ndarray,
    patch_lengths_P: np.ndarray,
    threshold: float | None,
) -> None:
    """Draw the entropy before each byte of a document's beginning, with its patches.

    Args:
        path: the file to write.
        name: of the document, for the title.
        data: UTF-8 text.
        h_T: nats, one per token (BOS, bytes, EOS).
        patch_lengths_P: tokens.
        threshold: nats; None if the rule compares no entropies with a threshold.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    _draw_entropies(axes, data, h_T, patch_lengths_P)
    if threshold is not None:
        right = axes.get_xlim()[1] + 0.2
        axes.axhline(threshold, color="#444", ls="--", lw=1)
        axes.text(right, threshold, f" {threshold:.2f}", va="center", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("entropy before the byte (nats)")
    axes.set_title(
        f"{name!r}: a patch (shaded) starts where the next byte is uncertain", loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=144)
    plt.close(figure)


def _draw_entropies(axes: Axes, data: bytes, h_T: np.ndarray, patch_lengths_P: np.ndarray) -> None:
    tokens_T, _ = encode_documents([data])
    shown = min(SHOWN_TOKENS, len(tokens_T))
    starts = np.concatenate([[0], patch_lengths_P.cumsum()])
    for number, (start, stop) in enumerate(pairwise(starts)):
        if start < shown:
            colour = PATCH_COLOURS[number % 2]
            axes.axvspan(start - 0.5, min(stop, shown) - 0.5, color=colour, lw=0)
            axes.axvline(start - 0.5, color="#5b7db1", lw=0.8)
    # The entropy after a token stands above the next one: it says how uncertain that one was.
    h_T = h_T[: shown - 1].astype(np.float32)
    axes.step(np.arange(1, shown), h_T, where="mid", color="#c2410c", lw=1.4)
    axes.plot(np.arange(1, shown), h_T, ".", color="#c2410c", ms=4)
    axes.set_xticks(range(shown), [_letter(token) for token in tokens_T[:shown].tolist()])
    axes.tick_params(axis="x", length=0, labelsize=9, labelfontfamily="monospace")
    axes.set_xlim(-0.5, shown - 0.5)


def _letter(token: int) -> str:
    byte = token - BYTE_OFFSET
    special = {ord(" "): "␣", ord("\n"): "↵", -3: "B", -2: "E"}
    if byte in special:
        return special[byte]
    # A lone dollar sign would begin a formula.
    return chr(byte).replace("$", r"\$") if 0x20 < byte < 0x7F else "·"
