"""How far two raters agree, with bootstrap intervals over the units that both have rated.

All statistics take resamples: ``x_BN`` has B of them, of N units each; they return [B], NaN where a resample leaves the
statistic undefined, such as ratings that are all alike.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from calibrated_rl.statistics.absolute import debiased_absolute
from calibrated_rl.statistics.intervals import LEVEL, RESAMPLES, Interval, expansion

Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[np.int64]], Floats]
"""From indices of units [B, N] to [B]."""

FEWEST = 5
"""Of fewer units a statistic of agreement is undefined: it says nothing."""
DEFINED = 0.9
"""Share of the resamples in which a statistic must be defined for it to have an interval."""
_CHUNK = 2_000_000
"""Numbers that are resampled at once."""
_INSIDE = 1 - 1e-12
UNDEFINED = Interval(math.nan, math.nan, math.nan)


def bootstrap_interval(
    statistic: Statistic, units: int, *, seed: int = 0, correlation: bool = False, distance: bool = False
) -> Interval:
    """The statistic of all ``units`` with its expanded percentile interval (``intervals.py``), whole units being
    resampled; undefined for fewer than ``FEWEST``.

    Args:
        correlation: it lies between -1 and 1: the interval is made on Fisher's scale, ``atanh``, and stays inside. Of
            one that is -1 or 1 itself it is undefined: each resample of it is the same.
        distance: it is 0 at best, which resamples lie above on average even where it is 0: their mean is taken to be
            its value, and nothing lies below 0.
    """
    if units < FEWEST:
        return UNDEFINED
    value = float(statistic(np.arange(units)[None])[0])
    if not math.isfinite(value):
        return UNDEFINED
    if correlation and abs(value) > _INSIDE:
        return Interval(value, math.nan, math.nan)
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // units)
    chunks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    resampled = np.concatenate([statistic(rng.integers(units, size=(count, units))) for count in chunks])
    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) < DEFINED * RESAMPLES:
        return Interval(value, math.nan, math.nan)
    if correlation:
        centre, resampled = (
            math.atanh(np.clip(value, -_INSIDE, _INSIDE)),
            np.arctanh(np.clip(resampled, -_INSIDE, _INSIDE)),
        )
    else:
        centre = value
    middle = float(resampled.mean()) if distance else centre
    tail = (1 - LEVEL) / 2
    low, high = (centre + expansion(units) * (np.quantile(resampled, [tail, 1 - tail]) - middle)).tolist()
    if correlation:
        return Interval(value, math.tanh(low), math.tanh(high))
    return Interval(max(0.0, value), max(0.0, low), max(0.0, high)) if distance else Interval(value, low, high)


def pearson(x_BN: Floats, y_BN: Floats) -> Floats:
    """Correlation of each row."""
    x_BN, y_BN = (each - each.mean(axis=-1, keepdims=True) for each in (x_BN, y_BN))
    with np.errstate(invalid="ignore", divide="ignore"):
        r_B = (x_BN * y_BN).sum(axis=-1) / np.sqrt((x_BN**2).sum(axis=-1) * (y_BN**2).sum(axis=-1))
    return np.asarray(np.clip(r_B, -1.0, 1.0))


def spearman(x_BN: Floats, y_BN: Floats) -> Floats:
    """Correlation of the ranks, ties at their mean rank."""
    return pearson(rankdata(x_BN, axis=-1), rankdata(y_BN, axis=-1))


def partial_spearman(x_BN: Floats, y_BN: Floats, given_BN: Floats) -> Floats:
    """Correlation of the ranks of ``x`` and ``y`` once those of ``given`` are taken out linearly:
    ``(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))`` (Yule, Proc. R. Soc. A 79, 1907)."""
    xy_B, xz_B, yz_B = spearman(x_BN, y_BN), spearman(x_BN, given_BN), spearman(y_BN, given_BN)
    left_B = (1 - xz_B**2) * (1 - yz_B**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(left_B > 1e-12, (xy_B - xz_B * yz_B) / np.sqrt(left_B), np.nan))


def quadratic_kappa(a_BN: Floats, b_BN: Floats) -> Floats:
    """Cohen's kappa with squared differences as weights (Psychological Bulletin 70, 1968).

    The weighted disagreement is the mean of ``(a - b)^2``, and what chance gives, with the same margins,
    ``var(a) + var(b) + (mean(a) - mean(b))^2``; kappa is 1 less their ratio. With two categories it is the unweighted
    kappa.
    """
    means = (a_BN.mean(axis=-1) - b_BN.mean(axis=-1)) ** 2
    chance_B = a_BN.var(axis=-1) + b_BN.var(axis=-1) + means
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(chance_B > 0, 1 - ((a_BN - b_BN) ** 2).mean(axis=-1) / chance_B, np.nan))


def slope(x_BN: Floats, y_BN: Floats) -> Floats:
    """Of the least-squares line of ``y`` over ``x``."""
    centred_BN = x_BN - x_BN.mean(axis=-1, keepdims=True)
    squares_B = (centred_BN**2).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(squares_B > 0, (centred_BN * y_BN).sum(axis=-1) / squares_B, np.nan))


def calibration_error(predicted_N: Floats, actual_N: Floats, bins: int) -> Statistic:
    """``sum_b n_b / N |mean actual - mean predicted|`` over ``bins`` of equal width of ``predicted``, from 0 to 1
    (expected calibration error; Naeini, Cooper, Hauskrecht, AAAI 2015), of resamples of these N units.

    Few units raise it, also where all is calibrated: most of that is taken out, bin by bin (``absolute.py``).
    """
    units = len(predicted_N)
    bin_N = np.minimum((predicted_N * bins).astype(np.int64), bins - 1)
    gap_N = (actual_N - predicted_N) / units
    spread_K = np.sqrt(units * (gap_N[:, None] * np.eye(bins)[bin_N]).var(axis=0, ddof=min(1, units - 1)))

    def error(index_BN: NDArray[np.int64]) -> Floats:
        rows = len(index_BN)
        place_BN = bin_N[index_BN] + bins * np.arange(rows)[:, None]
        gap_BK = np.bincount(place_BN.ravel(), gap_N[index_BN].ravel(), minlength=rows * bins).reshape(rows, bins)
        with np.errstate(divide="ignore", invalid="ignore"):
            nearer_BK = spread_K * debiased_absolute(gap_BK / spread_K)
        return np.asarray(np.where(spread_K > 0, nearer_BK, np.abs(gap_BK)).sum(axis=-1))

    return error


def alpha(count_BN: Floats, sum_BN: Floats, squares_BN: Floats) -> Floats:
    """Krippendorff's alpha for numbers ("Content Analysis", 2004, chapter 11): 1 less the disagreement within units
    over that among all values. 1: the values of each unit are alike; 0: as much as by chance.

    Args:
        count_BN: values of each unit, at least 2.
        sum_BN, squares_BN: their sum, and that of their squares.
    """
    total_B = count_BN.sum(axis=-1)
    # Over pairs: sum of (v_i - v_j)^2 is 2 (m sum v^2 - (sum v)^2).
    within_B = ((count_BN * squares_BN - sum_BN**2) / (count_BN - 1)).sum(axis=-1) / total_B
    among_B = (total_B * squares_BN.sum(axis=-1) - sum_BN.sum(axis=-1) ** 2) / (total_B * (total_B - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(among_B > 1e-12, 1 - within_B / among_B, np.nan))
