"""Intervals and tests for a few runs each, by SciPy but for Holm's correction."""

from collections.abc import Sequence
from typing import Any

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
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.var() == b.var() == 0:  # no spread at all: the t statistic is 0 / 0
        return float(a.mean() - b.mean()), 0.0, 1.0 if a.mean() == b.mean() else 0.0
    test: Any = stats.ttest_ind(a, b, equal_var=False)  # its attributes are not typed
    low, high = test.confidence_interval(0.95)
    return float(a.mean() - b.mean()), float(high - low) / 2, float(test.pvalue)


def paired(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of differences, half of its 95 % interval, and the paired t-test's p-value.

    Example:
      >>> [round(number, 3) for number in paired([1.0, 2.0, 3.0])]
      [2.0, 2.484, 0.074]
    """
    middle, half = interval(differences)
    if half == 0:
        return middle, half, 1.0 if middle == 0 else 0.0
    test: Any = stats.ttest_1samp(differences, 0.0)
    return middle, half, float(test.pvalue)


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
