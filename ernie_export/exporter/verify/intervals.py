"""Intervals that hold the true value in 95 of 100 samples."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.96  # standard deviations of 95 %
RESAMPLES = 2000


def proportion_interval(hits: int, total: int) -> tuple[float, float]:
    """Return Wilson's interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    share = hits / total
    middle = share + Z**2 / (2 * total)
    half_width = Z * math.sqrt(share * (1 - share) / total + Z**2 / (4 * total**2))
    scale = 1 + Z**2 / total
    return max((middle - half_width) / scale, 0.0), min((middle + half_width) / scale, 1.0)


def mean_interval(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Return the interval of a weighted mean over independent samples, by the bootstrap (percentiles, fixed seed)."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (RESAMPLES, len(values)))
    chosen = np.asarray(weights, np.float64)[drawn]
    means = (np.asarray(values, np.float64)[drawn] * chosen).sum(1) / chosen.sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
