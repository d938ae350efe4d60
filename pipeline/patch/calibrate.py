"""The threshold that gives a corpus a mean patch size, from windows of its text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import numpy as np

from model.patcher import Patcher
from model.tokenizer import BYTE_OFFSET
from pipeline.corpus.splits import Split
from pipeline.errors import PipelineError, listed
from pipeline.patch.fit_ngram import MOST_TIMES
from pipeline.patch.scoring import Scorer
from pipeline.patch.shards_config import ShardsConfig
from pipeline.patch.stored import StoredScorer
from pipeline.patch.windows import WINDOW, Places, Window
from pipeline.patches import recut

ENOUGH = 0.003
"""Relative standard error of the mean patch size that a calibration stops at."""
FIRST_ROUND, LEAST_WINDOWS = 4, 32
"""The part of --calibration-bytes that is scored at first, and the windows, at least."""


class Calibration(NamedTuple):
    """A threshold, and how good it is."""

    patcher: Patcher
    patch_size: float
    """Bytes per patch of the text that was scored."""
    error: float
    """Standard error of the mean patch size, relative to it; 0 if all of the corpus was scored."""
    text_bytes: int
    """Text that was scored."""
    left_out: Sequence[str] = ()
    """Why files gave nothing, or not all that they hold."""


def calibrate(
    scorer: Scorer | StoredScorer,
    splits: Sequence[Split],
    config: ShardsConfig,
    target_patch_size: float,
    most: int,
) -> Calibration:
    """The scorer's rule with the threshold that gives a corpus a mean patch size.

    A corpus of at most ``config.calibration_bytes`` is scored as a whole. Of a larger one windows
    are (:mod:`pipeline.patch.windows`), in rounds that double their number, until the mean patch
    size is known with a standard error of ENOUGH, or the next round would score more than ``most``.
    If it would score about as much as there is, all of the corpus is scored. How much there is, is
    an estimate: windows are scored, too, of a corpus that holds more than MOST_TIMES as much.

    Args:
        target_patch_size: bytes of text per patch.
        most: bytes of text that are scored, at most.

    Raises:
        PipelineError: there is no text.
    """
    context = scorer.model.context_length if isinstance(scorer, Scorer) else None
    places = Places(splits, config, context)

    def calibrated(sample: _Sample, error: float | None = None) -> Calibration:
        _check_text(sample.text_bytes, places.failures)
        patcher = sample.threshold(scorer.patcher, target_patch_size)
        error = sample.error(patcher) if error is None else error
        size = sample.patch_size(patcher)
        return Calibration(patcher, size, error, sample.tokens, sorted(set(places.failures)))

    def all_of(about: int) -> Calibration | None:
        """All of a corpus that has about so many bytes of text; None if it has more."""
        if places.text_bytes > about:
            return None
        found = places.everything(MOST_TIMES * about)
        return None if found is None else calibrated(_Sample.of(found, scorer), 0.0)

    if (whole := all_of(config.calibration_bytes)) is not None:
        return whole
    first = float(np.random.default_rng(config.seed).random())
    count = max(config.calibration_bytes // FIRST_ROUND // (WINDOW + places.lead), LEAST_WINDOWS)
    sample = _Sample.of(places.at((first + np.arange(count)) / count), scorer)
    while True:
        calibration = calibrated(sample)
        if calibration.error <= ENOUGH or 2 * sample.tokens > most:
            return calibration
        if (whole := all_of(2 * sample.tokens)) is not None:
            return whole
        # The places halfway between those that there are.
        more = _Sample.of(places.at((first + 0.5 + np.arange(count)) / count % 1), scorer)
        sample, first, count = sample + more, 2 * first % 1, 2 * count


@dataclass(frozen=True)
class _Sample:
    """Windows with their entropies, and what counts of them."""

    place_W: np.ndarray
    weight_W: np.ndarray
    bytes_W: np.ndarray
    """Bytes that count."""
    lengths_D: np.ndarray
    """Tokens of each piece."""
    window_D: np.ndarray
    """Number of the window that each piece belongs to."""
    counts_T: np.ndarray
    """bool: true of each token that counts."""
    h_T: np.ndarray
    """float16, nats."""

    @classmethod
    def of(cls, windows: Sequence[Window], scorer: Scorer | StoredScorer) -> Self:
        """Score windows."""
        pieces = [piece for window in windows for piece in window.pieces]
        lengths_D = np.array([len(piece.tokens_T) for piece in pieces], np.int64)
        tokens_T = np.concatenate([np.zeros(0, np.int32), *(piece.tokens_T for piece in pieces)])
        first_D = np.array([piece.first for piece in pieces], np.int64)
        begin_D = np.cumsum(lengths_D) - lengths_D
        within_T = np.arange(len(tokens_T)) - np.repeat(begin_D, lengths_D)
        counts_T = within_T >= np.repeat(first_D, lengths_D)
        window_D = np.repeat(np.arange(len(windows)), [len(w.pieces) for w in windows])
        is_text_T = counts_T & (tokens_T >= BYTE_OFFSET)
        if isinstance(scorer, Scorer):
            h_T = scorer.entropies(tokens_T, lengths_D) if len(tokens_T) else _NO_ENTROPIES
        else:
            given = [piece.entropies_T for piece in pieces if piece.entropies_T is not None]
            h_T = np.concatenate([_NO_ENTROPIES, *given])
        return cls(
            np.array([window.place for window in windows]),
            np.array([window.weight for window in windows]),
            np.bincount(np.repeat(window_D, lengths_D)[is_text_T], minlength=len(windows)),
            lengths_D,
            window_D,
            counts_T,
            h_T,
        )

    def __add__(self, other: Self) -> "_Sample":
        moved = replace(other, window_D=other.window_D + len(self.place_W))
        names = [field.name for field in fields(self)]
        return _Sample(*(np.concatenate([getattr(self, n), getattr(moved, n)]) for n in names))

    @property
    def text_bytes(self) -> int:
        """Bytes of text that count."""
        return int(self.bytes_W.sum())

    @property
    def tokens(self) -> int:
        """Tokens that were scored."""
        return len(self.h_T)

    def _patches_per_window(self, patcher: Patcher) -> np.ndarray:
        """The patches that begin in each window and count."""
        lengths_P = recut(patcher, self.h_T, self.lengths_D).patch_lengths_P
        starts_P = np.cumsum(lengths_P, dtype=np.int64) - lengths_P
        starts_P = starts_P[self.counts_T[starts_P]]
        piece_P = np.searchsorted(np.cumsum(self.lengths_D), starts_P, side="right")
        return np.bincount(self.window_D[piece_P], minlength=len(self.place_W))

    def threshold(self, patcher: Patcher, target_patch_size: float) -> Patcher:
        """The rule with the threshold that brings the windows closest to a mean patch size."""

        def patch_size(threshold: float) -> float:
            return self.patch_size(replace(patcher, threshold=threshold))

        threshold = _nearest(patcher, self.h_T, patch_size, target_patch_size)
        return replace(patcher, threshold=threshold)

    def patch_size(self, patcher: Patcher) -> float:
        """Mean bytes per patch."""
        patches = float(self.weight_W @ self._patches_per_window(patcher))
        return float(self.weight_W @ self.bytes_W) / max(patches, 1e-300)

    def error(self, patcher: Patcher) -> float:
        """Standard error of the mean patch size, relative to it, by the windows as clusters.

        Windows lie at equal distances: what their neighbours differ by is what chance has made.
        """
        if len(self.place_W) < 2:
            return 1.0
        patches_W = self.weight_W * self._patches_per_window(patcher)
        bytes_W = self.weight_W * self.bytes_W
        rate = patches_W.sum() / bytes_W.sum()
        residual_W = (patches_W - rate * bytes_W)[np.argsort(self.place_W, kind="stable")]
        mean_square = float((np.diff(residual_W) ** 2).mean()) / 2
        return float(np.sqrt(mean_square * len(residual_W)) / max(patches_W.sum(), 1e-300))


_NO_ENTROPIES = np.zeros(0, np.float16)


def _check_text(text_bytes: int, failures: Sequence[str]) -> None:
    """
    Raises:
        PipelineError: there is no text.
    """
    if not text_bytes:
        raise PipelineError(
            "--target-patch-size: no text to calibrate on: no document of the sample can be used; "
            "see --text-column and --input-format, or give a "
            f"--threshold{listed(failures)}"
        )


def _nearest(
    patcher: Patcher, h_T: np.ndarray, patch_size: Callable[[float], float], target: float
) -> float:
    """The threshold whose mean patch size is nearest to a target.

    Args:
        h_T: stored entropies: float16, nats.
        patch_size: the mean patch size of a threshold.
    """
    # A rule compares with what is stored: no other thresholds make a difference.
    signal_T = h_T.astype(np.float32)
    if patcher.compares == "rise":
        signal_T = np.diff(signal_T)
    candidates = np.unique(signal_T)
    # Patches get longer with the threshold: find the first that reaches the target, and look at
    # the one before.
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if patch_size(float(candidates[middle])) < target:
            low = middle + 1
        else:
            high = middle
    near = candidates[max(low - 1, 0) : low + 1]
    return float(min(near, key=lambda value: abs(patch_size(float(value)) - target)))
