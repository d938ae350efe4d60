"""A picture of a sentence: its entropies and its patches."""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw to files only: there may be no screen

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from model.tokenizer import BYTE_OFFSET, encode_documents
from pipeline.errors import PipelineError
from pipeline.shards.format import PatchedDocument
from pipeline.shards.shard_set import ShardSet

EXAMPLE_BYTES = 110
PATCH_COLOURS = ("#e8eef7", "#c9d8ee")


def draw_patches(shards: ShardSet, example: PatchedDocument, path: Path) -> None:
    """Entropy by byte over the example's beginning, with its patches.

    Args:
        example: a document whose entropies are stored.
        path: the PNG file to write.

    Raises:
        PipelineError: entropies are not in the shards.
    """
    if example.entropies is None:
        raise PipelineError(f"{example.sample_id}: no entropies stored, nothing to draw")
    figure, axes = plt.subplots(figsize=(15, 4.8))
    _draw_entropies(axes, shards, example)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_entropies(axes: Axes, shards: ShardSet, example: PatchedDocument) -> None:
    assert example.entropies is not None
    tokens_T, _ = encode_documents([example.text.encode()])
    shown = min(EXAMPLE_BYTES, len(tokens_T))
    starts = np.concatenate([[0], example.patch_lengths.cumsum()])
    for number, (start, stop) in enumerate(pairwise(starts)):
        if start < shown:
            colour = PATCH_COLOURS[number % 2]
            axes.axvspan(start - 0.5, min(stop, shown) - 0.5, color=colour, lw=0)
            axes.axvline(start - 0.5, color="#5b7db1", lw=0.8)
    # Above a byte stands how uncertain it was: the entropy after the token before it.
    h_T = example.entropies[: shown - 1].astype(np.float32)
    axes.step(np.arange(1, shown), h_T, where="mid", color="#c2410c", lw=1.4)
    axes.plot(np.arange(1, shown), h_T, ".", color="#c2410c", ms=4)
    threshold = shards.patcher.threshold
    if threshold is not None:
        axes.axhline(threshold, color="#444", ls="--", lw=1)
        axes.text(shown - 0.3, threshold, f" {threshold:.2f}", va="center", fontsize=9)
    axes.set_xticks(range(shown), [_label(token) for token in tokens_T[:shown].tolist()])
    axes.tick_params(axis="x", length=0, labelsize=9, labelfontfamily="monospace")
    axes.set_xlim(-0.5, shown - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("entropy before the byte (nats)")
    axes.set_title(
        f"{example.sample_id!r}: a patch (shaded) starts where the next byte is uncertain",
        loc="left",
    )


def _label(token: int) -> str:
    byte = token - BYTE_OFFSET
    special = {ord(" "): "␣", ord("\n"): "↵", -3: "B", -2: "E"}
    if byte in special:
        return special[byte]
    # A lone dollar sign would begin a formula.
    return chr(byte).replace("$", r"\$") if 0x20 < byte < 0x7F else "·"
