"""Paired comparisons over random splits of one data set."""

from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """A mean difference with a 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, factor: float = 1.0, digits: int = 2) -> str:
        """`mean [low, high]`, each times `factor`."""
        mean, low, high = (f"{factor * x:+.{digits}f}" for x in self)
        return f"{mean} [{low}, {high}]"

    def verdict(self) -> str:
        """Better (lower), worse, or not to be told apart."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "not to be told apart"


def paired(ours: np.ndarray, theirs: np.ndarray, overlap: float) -> Difference:
    """ours - theirs over splits, with Nadeau and Bengio's (2003) corrected resampled t interval.

    Random splits of one data set share examples, so that their differences are correlated and the
    plain interval is too narrow; the variance of the mean is taken as (1/k + overlap) s^2.

    Args:
        ours, theirs: one value a split.
        overlap: test examples over the examples that a method learns from.
    """
    from scipy.stats import t

    gaps = np.asarray(ours, float) - np.asarray(theirs, float)
    mean, count = gaps.mean(), len(gaps)
    if count < 2:
        return Difference(float(mean), float("-inf"), float("inf"))
    width = t.ppf(0.975, count - 1) * np.sqrt((1 / count + overlap) * gaps.var(ddof=1))
    return Difference(float(mean), float(mean - width), float(mean + width))
