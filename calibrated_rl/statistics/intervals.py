"""Means with 95 % confidence intervals: over scenarios, dialogues and training seeds.

Two kinds. *Over units of one kind* (scenarios, dialogues; ``mean_interval``, ``ratio_interval``): *expanded
percentile* intervals of the bootstrap (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015): the
bootstrap distribution of a mean over ``n`` units is too narrow by ``sqrt((n - 1) / n)`` and its quantiles are those of
a normal where a t with ``n - 1`` degrees of freedom is due.

*Over training seeds and scenarios* (``mean_over_seeds``, ``paired_difference``, ``gap_closed``): no bootstrap, since
one that resamples both counts the noise of each score twice (Owen, "The pigeonhole bootstrap", Annals of Applied
Statistics 1, 2007). The score of seed ``s`` on scenario ``k`` is taken as ``mu + a_s + b_k + e_sk``, all independent.
The variance of the mean over ``S`` seeds and ``K`` scenarios is then

    V = var(a) / S + var(b) / K + var(e) / (S K)  =  A + C,

``A`` the variance of the seeds' means divided by ``S``, which has ``var(a)`` and all of the noise in it once, and ``C``
the covariance of two seeds' means, to which only scenarios that both have met contribute: ``var(b) / K`` where all
seeds met the same ones (crossed), 0 where each met its own (nested), in between where some are missing. These are the
estimators of the analysis of variance (Searle, Casella, McCulloch, "Variance Components", 1992, chapter 4), with a
negative ``C`` taken as 0. ``A`` has ``S - 1`` degrees of freedom and ``C`` many, so the quantile is a t with degrees of
freedom by Satterthwaite (Biometrics Bulletin 2, 1946), which is a little too small for two or three seeds (coverage
down to 92 %), averaged with the mean of both parts' quantiles weighted by ``A`` and ``C``, which is a little too large
(Cochran, Cox, "Experimental Designs", 1957, section 4.14). ``interval_coverage.py`` has the coverage by simulation.

With one seed only scenarios vary: the interval says nothing of what another seed would have given. Scores that are all
0 or 1 get the score interval (Wilson 1927) with as many units as give the same variance, which stays in [0, 1] and does
not shrink to a point where all are alike. The same arguments give the same metrics.
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
_ENDLESS = 1e12
"""A ratio beyond it is as good as infinite."""

Scores = Mapping[str, float]
"""Scenario (or scenario and user) to score."""
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
        """For JSON: metrics that are not finite become None."""
        fields = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in fields.items()}


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

    With denominators of 1 it is the mean of values that are dependent within a cluster; if these are all 0 or 1, of a
    share, for which the interval is ``share_interval``'s.

    Raises:
        ValueError: there is nothing to average, or a metric is not finite.
    """
    numerator_N = np.asarray(numerators, dtype=np.float64)
    denominator_N = np.asarray(denominators, dtype=np.float64)
    if not len(numerator_N) or denominator_N.sum() <= 0:
        raise ValueError("a mean of no values is undefined")
    if not (np.isfinite(numerator_N).all() and np.isfinite(denominator_N).all()):
        raise ValueError("a mean needs finite values")
    if np.isin(numerator_N, (0.0, 1.0)).all() and (denominator_N == 1).all():
        return share_interval(numerator_N, clusters)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.stack(
        [np.bincount(index, weights=values, minlength=len(names)) for values in (numerator_N, denominator_N)]
    )
    mean = sums[0].sum() / sums[1].sum()
    resampled = _shares(np.random.default_rng(seed), len(names)) @ sums.T
    resampled = resampled[resampled[:, 1] > 0]  # a resample of nothing but empty clusters says nothing
    return _interval(mean, mean + expansion(len(names)) * (resampled[:, 0] / resampled[:, 1] - mean))


def score_limits(share: Any, relative: Any) -> tuple[Floats, Floats]:
    """Lower and upper limit of a ``share`` (Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22, 1927). All broadcast.

    Args:
        relative: ``z^2 / n`` for ``n`` independent units and the quantile ``z``.
    """
    middle = (share + relative / 2) / (1 + relative)
    half = np.sqrt(relative * share * (1 - share) + np.square(relative) / 4) / (1 + relative)
    return np.asarray(np.maximum(0.0, middle - half)), np.asarray(np.minimum(1.0, middle + half))


def share_interval(correct: ArrayLike, clusters: Sequence[Any] | NDArray[Any]) -> Interval:
    """Share of ``correct`` [N] (0 or 1), dependent within ``clusters`` [N]: the score interval with the effective
    number of independent values and a t quantile, which stays honest near 0 and 1, where a bootstrap of values that
    are all alike is a point. The limits are NaN for a single cluster."""
    is_correct = np.asarray(correct, np.float64)
    share, count = float(is_correct.mean()), len(is_correct)
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    groups = int(index.max()) + 1
    if groups < 2:
        return Interval(share, math.nan, math.nan)
    residual = np.bincount(index, weights=is_correct - share)
    variance = groups / (groups - 1) * float(residual @ residual) / count**2
    # All alike within every cluster and across them: count clusters, not values.
    effective = min(count, share * (1 - share) / variance) if variance > 0 else groups
    low, high = score_limits(share, t_quantile(groups - 1) ** 2 / effective)
    return Interval(share, float(low), float(high))


def paired_difference(a: Scores, b: Scores) -> Interval:
    """Mean of ``a - b`` over the scenarios that both have.

    Raises:
        ValueError: they have none in common.
    """
    return mean_over_seeds({0: a}, {0: b})


def mean_over_seeds(values: SeedScores, baseline: SeedScores | None = None) -> Interval:
    """Mean over training seeds, each with the mean of its scenarios, of ``values``, or of ``values - baseline`` where
    ``baseline`` is given: then over the seeds and, of each, the scenarios that both have.

    Raises:
        ValueError: there is no common seed, or a seed without a common scenario, or a score is not finite.
    """
    arms = [values] if baseline is None else [values, baseline]
    scores_ASK = _matched(arms)
    return _interval_over_seeds(scores_ASK[0] if baseline is None else scores_ASK[0] - scores_ASK[1])


def gap_closed(static: SeedScores, arm: SeedScores, oracle: SeedScores) -> Interval | None:
    """``(arm - static) / (oracle - static)``: 0 is no better than static, 1 as good as the oracle.

    The interval has every ratio ``r`` for which the mean of ``(arm - static) - r (oracle - static)`` cannot be told
    from 0 (Fieller, "Some problems in interval estimation", JRSS B 16, 1954). None where the interval of ``oracle -
    static`` contains 0 (or is unknown): then there is no gap to close.

    Raises:
        ValueError: as ``mean_over_seeds``.
    """
    static_SK, arm_SK, oracle_SK = _matched([static, arm, oracle])
    gained_SK, gap_SK = arm_SK - static_SK, oracle_SK - static_SK
    gap = _interval_over_seeds(gap_SK)
    if not gap.excludes(0.0):
        return None
    ratio = _interval_over_seeds(gained_SK).mean / gap.mean

    def excludes_zero(r: float) -> bool:
        return _interval_over_seeds(gained_SK - r * gap_SK).excludes(0.0)

    limits = []
    for side in (-1.0, 1.0):
        # For large |r| this is the test of the gap itself, which excludes 0, so that the doubling ends. Bisection then
        # finds the limit between the last ratio that is not excluded and the first one that is.
        inner, outer = 0.0, 1e-6 * max(1.0, abs(ratio))
        while not excludes_zero(ratio + side * outer) and outer < _ENDLESS:
            inner, outer = outer, 2 * outer
        for _ in range(40):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if excludes_zero(ratio + side * middle) else (middle, outer)
        limits.append(ratio + side * outer if outer < _ENDLESS else side * math.inf)
    return Interval(ratio, limits[0], limits[1])


def _matched(arms: Sequence[SeedScores]) -> Floats:
    """Scores [A, S, K] of the seeds that all arms have on all of their scenarios; NaN where an arm lacks one."""
    seeds = sorted(set(arms[0]).intersection(*arms[1:]))
    keys = {s: set(arms[0][s]).intersection(*(arm[s] for arm in arms[1:])) for s in seeds}
    if not seeds or not all(keys.values()):
        raise ValueError("the arms have no training seed and scenario in common, so nothing can be compared")
    place = {key: i for i, key in enumerate(sorted(set().union(*keys.values())))}
    scores_ASK = np.full((len(arms), len(seeds), len(place)), np.nan)
    for i, arm in enumerate(arms):
        for j, s in enumerate(seeds):
            for key in keys[s]:
                if not math.isfinite(arm[s][key]):
                    raise ValueError(f"a mean needs finite values, and that of seed {s} on '{key}' is {arm[s][key]}")
                scores_ASK[i, j, place[key]] = arm[s][key]
    return scores_ASK


def _interval_over_seeds(scores_SK: Floats) -> Interval:
    mean, low, high = limits_over_seeds(scores_SK)
    return Interval(float(mean), float(low), float(high))


def limits_over_seeds(scores_BSK: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean and limits [B] of scores [..., S, K] of S seeds on K scenarios, NaN where a seed did not meet one.

    Each data set of the leading axes is taken by itself. Limits are NaN where one unit alone cannot give them.
    """
    known_BSK = ~np.isnan(scores_BSK)
    count_BS = known_BSK.sum(axis=-1)
    seed_mean_BS = np.where(known_BSK, scores_BSK, 0.0).sum(axis=-1) / count_BS
    mean_B = seed_mean_BS.mean(axis=-1)
    variance_B, quantile_B = _variance_and_quantile(scores_BSK, known_BSK, count_BS, seed_mean_BS)
    half_B = quantile_B * np.sqrt(variance_B)
    low_B, high_B = mean_B - half_B, mean_B + half_B
    shares_B = (~known_BSK | (scores_BSK == 0) | (scores_BSK == 1)).all(axis=(-2, -1))
    if shares_B.any():
        scenarios_B = known_BSK.any(axis=-2).sum(axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            relative_B = half_B**2 / (mean_B * (1 - mean_B))
        # Where all are alike, nothing says whether a scenario's scores with several seeds are independent: it counts
        # once.
        alike_B = (mean_B == 0) | (mean_B == 1)
        relative_B = np.where(alike_B, _t(scenarios_B - 1) ** 2 / scenarios_B, relative_B)
        limits = score_limits(mean_B, relative_B)
        low_B, high_B = (
            np.where(shares_B, score_limit, t_limit)
            for score_limit, t_limit in zip(limits, (low_B, high_B), strict=True)
        )
    return mean_B, low_B, high_B


def t_quantile(degrees: int) -> float:
    """Of Student's t at ``LEVEL``, two-sided; NaN without a degree of freedom."""
    return float(_t(degrees))


def _t(degrees: Any) -> Floats:
    degrees = np.asarray(degrees, np.float64)
    return np.asarray(stdtrit(np.where(degrees > 0, degrees, np.nan), 1 - (1 - LEVEL) / 2))


def _variance_and_quantile(
    scores_BSK: Floats, known_BSK: NDArray[np.bool_], count_BS: NDArray[np.int64], seed_mean_BS: Floats
) -> tuple[Floats, Floats]:
    """``V`` of the module's docstring and the quantile that goes with it: [B] each."""
    seeds = scores_BSK.shape[-2]
    from_mean_BSK = np.where(known_BSK, scores_BSK - seed_mean_BS[..., None], 0.0)
    squares_BS = (from_mean_BSK**2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        within_BS = np.where(count_BS > 1, squares_BS / (count_BS - 1), np.nan)
        if seeds == 1:
            return within_BS[..., 0] / count_BS[..., 0], _t(count_BS[..., 0] - 1)
        between_B = seed_mean_BS.var(axis=-1, ddof=1) / seeds
        # Over pairs of seeds: products of the scores that both have, and how many these are.
        off_diagonal = ~np.eye(seeds, dtype=np.bool_)
        met_BSK = known_BSK.astype(np.float64)
        both_BSS = met_BSK @ np.swapaxes(met_BSK, -1, -2)
        product_BSS = from_mean_BSK @ np.swapaxes(from_mean_BSK, -1, -2)
        usable_BSS = off_diagonal & (both_BSS > 1)
        freedom_B = ((both_BSS - 1) * usable_BSS).sum(axis=(-2, -1))
        covariance_B = (product_BSS * usable_BSS).sum(axis=(-2, -1)) / freedom_B  # of one scenario with two seeds
        share_B = (both_BSS * off_diagonal / (count_BS[..., None] * count_BS[..., None, :])).sum(axis=(-2, -1))
        share_B = share_B / (seeds * (seeds - 1))
        common_B = np.maximum(share_B * covariance_B, 0.0)
        common_B = np.where(share_B == 0, 0.0, common_B)  # nested; NaN where seeds share a single scenario
        variance_B = between_B + common_B
        noise_B = np.maximum(np.nanmean(within_BS, axis=-1) - covariance_B, 0.0) / seeds
        shared_B = (met_BSK.sum(axis=-2) > 1).sum(axis=-1) - 1
        error_B = share_B**2 * ((covariance_B + noise_B) ** 2 + noise_B**2 / (seeds - 1)) / shared_B
        freedom_B = variance_B**2 / (between_B**2 / (seeds - 1) + error_B)
        freedom_B = np.maximum(freedom_B, np.minimum(seeds - 1, shared_B))
        weighted_B = (between_B * _t(seeds - 1) + common_B * _t(shared_B)) / variance_B
        quantile_B = np.where(common_B == 0, _t(seeds - 1), (_t(freedom_B) + weighted_B) / 2)
        # Few values of few scenarios can have equal means with all seeds by chance.
        scenarios_B = known_BSK.any(axis=-2).sum(axis=-1)
        least_B = np.nanmean(within_BS, axis=-1) / scenarios_B
        by_chance_B = (variance_B == 0) & (least_B > 0)
    return np.where(by_chance_B, least_B, variance_B), np.where(by_chance_B, _t(scenarios_B - 1), quantile_B)
