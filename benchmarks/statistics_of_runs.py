"""Intervals and tests for a few runs each, of which some may have no spread at all."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The mean, and half of Student's confidence interval around it.

    Example:
      >>> middle, half = interval([1.0, 2.0, 3.0])
      >>> print(round(middle, 3), round(half, 3))
      2.0 2.484
    """
    array = np.asarray(values, float)
    quantile = stats.t.ppf(0.5 + level / 2, len(array) - 1)
    return float(array.mean()), float(quantile * stats.sem(array))


def welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """The difference of two means, half of its 95 % interval, and Welch's two-sided p-value.

    Example:
      >>> difference, half, p = welch([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
      >>> print(difference, round(half, 3), p)
      0.0 2.267 1.0

    Reference:
      Welch, The Generalization of Student's Problem, 1947.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    difference, shares = (
        float(a.mean() - b.mean()),
        (a.var(ddof=1) / a.size, b.var(ddof=1) / b.size),
    )
    if sum(shares) == 0:  # no spread at all: the t statistic is 0 / 0
        return difference, 0.0, float(difference == 0)
    error = np.sqrt(sum(shares))
    freedom = sum(shares) ** 2 / (shares[0] ** 2 / (a.size - 1) + shares[1] ** 2 / (b.size - 1))
    half = stats.t.ppf(0.975, freedom) * error
    return difference, float(half), float(2 * stats.t.sf(abs(difference) / error, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the k-th smallest of n times n + 1 - k, never falling.

    Example:
      >>> holm([0.01, 0.04, 0.03])
      [0.03, 0.06, 0.06]

    Reference:
      Holm, A Simple Sequentially Rejective Multiple Test Procedure, 1979.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    factors = len(p) - np.arange(len(p))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return corrected.tolist()
