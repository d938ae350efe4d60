"""The bootstrap: how far a figure over documents would vary if other documents had been drawn.

Documents, not bytes, are drawn: bytes of one document are not independent of one another.
"""

import numpy as np

RESAMPLES = 2000
DRAWN_AT_ONCE = 1 << 21
"""Documents that are drawn at a time: they bound the memory."""


def resampled_sums(of_each_DK: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Sums over documents that are drawn with replacement, as many as there are.

    Args:
        of_each_DK: K numbers of each document; at least one document.

    Returns:
        float64 ``[resamples, K]``.
    """
    documents, numbers = of_each_DK.shape
    values_DK = of_each_DK.astype(np.float64)
    random = np.random.default_rng(seed)
    sums_RK = np.empty((resamples, numbers))
    step = max(DRAWN_AT_ONCE // documents, 1)
    for start in range(0, resamples, step):
        drawn_RD = random.integers(documents, size=(min(step, resamples - start), documents))
        sums_RK[start : start + step] = values_DK[drawn_RD].sum(axis=1)
    return sums_RK


def percentile_interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """The ends between which a share of ``confidence`` of the resamples lies, around the middle."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_R, [tail, 1 - tail])
    return float(low), float(high)
