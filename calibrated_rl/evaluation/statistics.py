"""Means with 95 % confidence intervals: bootstrap over scenarios, dialogues and training seeds.

All intervals are *expanded percentile* intervals (Hesterberg, "What Teachers Should Know about the Bootstrap",
2015): the bootstrap distribution of a mean over ``n`` units is too narrow by ``sqrt((n - 1) / n)`` and its
quantiles are those of a normal where a t with ``n - 1`` degrees of freedom is due. With hundreds of scenarios
that is nothing; with five training seeds it is a factor of 1.6, and leaving it out would claim certainty that
is not there. The same arguments give the same figures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtrit

RESAMPLES = 2000
LEVEL = 0.95

Scores = Mapping[str, float]
"""Scenario (or scenario and person) to score."""
SeedScores = Mapping[int, Scores]
"""Training seed to its scores."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % confidence interval; the limits are NaN where one unit alone cannot give them."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of ``value``; False where the limits are unknown."""
        return self.low > value or self.high < value

    def as_dict(self) -> dict[str, float | None]:
        """For JSON: figures that are not finite become None."""
        named = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in named.items()}


def expansion(units: int) -> float:
    """By how much deviations of a bootstrap over ``units`` units are widened; NaN for a single unit."""
    if units < 2:
        return math.nan
    tail = 1 - (1 - LEVEL) / 2
    return float(stdtrit(units - 1, tail) / ndtri(tail) * math.sqrt(units / (units - 1)))


def _shares(rng: np.random.Generator, units: int) -> Floats:
    """How often each of ``units`` is drawn in each resample, as a share: [RESAMPLES, units]."""
    return rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES) / units


def _interval(mean: float, resampled: Floats) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, 1 - (1 - LEVEL) / 2])
    return Interval(float(mean), float(low), float(high))


def mean_interval(values: ArrayLike, seed: int = 0) -> Interval:
    """Mean of independent ``values`` [N].

    Raises:
        ValueError: there are none, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    return ratio_interval(array, np.ones_like(array), np.arange(len(array)), seed)


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, clusters: Sequence[Any] | NDArray[Any], seed: int = 0
) -> Interval:
    """``sum(numerators) / sum(denominators)``, whole clusters (dialogues) being resampled. All are [N].

    With denominators of 1 it is the mean of values that are dependent within a cluster.

    Raises:
        ValueError: there is nothing to average, or a figure is not finite.
    """
    upper = np.asarray(numerators, dtype=np.float64)
    lower = np.asarray(denominators, dtype=np.float64)
    if not len(upper) or lower.sum() <= 0:
        raise ValueError("a mean of no values is undefined")
    if not (np.isfinite(upper).all() and np.isfinite(lower).all()):
        raise ValueError("a mean needs finite values")
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=part, minlength=len(names)) for part in (upper, lower)])
    mean = sums[0].sum() / sums[1].sum()
    drawn = _shares(np.random.default_rng(seed), len(names)) @ sums.T
    drawn = drawn[drawn[:, 1] > 0]  # a resample of nothing but empty clusters says nothing
    return _interval(mean, mean + expansion(len(names)) * (drawn[:, 0] / drawn[:, 1] - mean))


def paired_difference(a: Scores, b: Scores, seed: int = 0) -> Interval:
    """Mean of ``a - b`` over the scenarios that both have.

    Raises:
        ValueError: they have none in common.
    """
    return hierarchical_bootstrap({0: a}, {0: b}, seed=seed)


def hierarchical_bootstrap(values: SeedScores, other: SeedScores | None = None, seed: int = 0) -> Interval:
    """Mean over training seeds and scenarios of ``values``, or of ``values - other`` where ``other`` is given.

    Seeds are resampled, and scenarios: jointly for all seeds where all seeds were judged on the same ones
    (so that a scenario that favours an arm with every seed counts as one), else within each seed. With one
    seed only scenarios are resampled. Pairs are formed where both arms have the seed and the scenario.

    Raises:
        ValueError: there is no common seed, or a seed without a common scenario.
    """
    arms = [values] if other is None else [values, other]
    means, resampled = _resample(arms, seed)
    sign = np.array([1.0, -1.0])[: len(arms)]
    return _interval(float(means @ sign), resampled @ sign)


def gap_closed(static: SeedScores, arm: SeedScores, oracle: SeedScores, seed: int = 0) -> Interval | None:
    """``(arm - static) / (oracle - static)``: 0 is no better than static, 1 as good as the oracle.

    None where the interval of ``oracle - static`` contains 0 (or is unknown): then there is no gap to close.

    Raises:
        ValueError: the arms have no seed and scenario in common.
    """
    means, resampled = _resample([static, arm, oracle], seed)
    gap = np.array([-1.0, 0.0, 1.0])
    if not _interval(float(means @ gap), resampled @ gap).excludes(0.0):
        return None
    ratio = (means[1] - means[0]) / (means[2] - means[0])
    return _interval(ratio, (resampled[:, 1] - resampled[:, 0]) / (resampled @ gap))


def _resample(arms: Sequence[SeedScores], seed: int) -> tuple[Floats, Floats]:
    """Means [A] of the arms, and their means in each resample [RESAMPLES, A]; all arms see the same draws."""
    seeds = sorted(set(arms[0]).intersection(*arms[1:]))
    keys = {s: sorted(set(arms[0][s]).intersection(*(arm[s] for arm in arms[1:]))) for s in seeds}
    if not seeds or not all(keys.values()):
        raise ValueError("the arms have no training seed and scenario in common, so nothing can be compared")
    rng = np.random.default_rng(seed)
    crossed = all(keys[s] == keys[seeds[0]] for s in seeds)
    shared = _shares(rng, len(keys[seeds[0]])) if crossed else None
    per_seed = np.empty((len(arms), len(seeds)))
    drawn = np.empty((len(arms), RESAMPLES, len(seeds)))
    for j, s in enumerate(seeds):
        scores_AN = np.array([[arm[s][key] for key in keys[s]] for arm in arms], dtype=np.float64)
        shares = shared if shared is not None else _shares(rng, len(keys[s]))
        per_seed[:, j] = scores_AN.mean(axis=1)
        deviation = scores_AN @ shares.T - per_seed[:, j, None]
        drawn[:, :, j] = per_seed[:, j, None] + expansion(len(keys[s])) * deviation
    middle = drawn.mean(axis=2)
    if len(seeds) > 1:
        over_seeds = np.einsum("ars,rs->ar", drawn, _shares(rng, len(seeds)))
        middle = middle + expansion(len(seeds)) * (over_seeds - middle)
    return per_seed.mean(axis=1), middle.T
