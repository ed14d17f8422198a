"""How far a judge agrees with people's ratings of the same dialogues, and what moves its score besides.

Scores and ratings are from 0 to 1 here, save for kappa, which is on the ratings' own scale. Every estimate has its 95 %
interval over dialogues (or pairs of them); one that the data leave undefined is NaN.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.statistics.agreement import (
    UNDEFINED,
    alpha,
    bootstrap_interval,
    calibration_error,
    partial_spearman,
    quadratic_kappa,
    slope,
    spearman,
)
from calibrated_rl.statistics.intervals import Interval, mean_interval, share_interval

Floats = NDArray[np.float64]
BINS = 5
"""Of scores, for the calibration error."""

MEANINGS: Mapping[str, str] = {
    "spearman": "rank correlation of scores and ratings",
    "kappa": "agreement on the ratings' own scale beyond chance, squared differences as weights",
    "bias": "mean score less mean rating",
    "slope": "of the rating over the score; 1: a better score means as much better a rating",
    "calibration_error": f"mean distance of rating from score in {BINS} bins of the score, chance taken out",
    "votes_alpha": "agreement of the votes on a dialogue (Krippendorff's alpha)",
    "length_score_given_rating": "rank correlation of score and length among dialogues of one rating: length bias",
    "length_score": "rank correlation of score and length",
    "length_rating": "the same of people's ratings",
    "first_preferred": "by how much the first of two dialogues is preferred beyond 1/2: position bias",
    "inconsistent_pairs": "share of the pairs whose preference changes with their order",
    "order_agreement": "share of the consistent preferences that people's ratings share",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Of ratings."""

    lowest: float
    highest: float

    def unit(self, ratings_N: Floats) -> Floats:
        """From 0 to 1; NaN where the scale is a point."""
        width = self.highest - self.lowest
        return (ratings_N - self.lowest) / width if width > 0 else np.full(len(ratings_N), np.nan)

    def category(self, scores_N: Floats) -> Floats:
        """The nearest whole number of the scale to scores from 0 to 1, the larger of two."""
        return np.asarray(np.floor(self.lowest + scores_N * (self.highest - self.lowest) + 0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairVotes:
    """Two dialogues that a judge has compared in both orders."""

    first: float
    """Share of the votes for the first place where dialogue A has it."""
    swapped: float
    """The same where B has it."""
    rating: float
    """People's of A."""
    other_rating: float
    """Of B."""

    @property
    def winner(self) -> int | None:
        """1: A is preferred in both orders; -1: B; 0: neither is in any; None: it depends on the order."""
        signs = np.sign(self.first - 0.5), np.sign(0.5 - self.swapped)
        return int(signs[0]) if signs[0] == signs[1] else None


def length_of(dialogue: Dialogue) -> int:
    """Characters that the policy has said, without the greeting: what it can make longer."""
    return sum(len(turn.text) for turn in dialogue.turns[1:] if turn.side is Side.POLICY)


def agreement(
    ratings_N: Floats, scores_N: Floats, lengths_N: Floats, votes: Sequence[Sequence[float]], scale: Scale, seed: int
) -> dict[str, Interval]:
    """The estimates on single dialogues, by name (``MEANINGS``).

    Args:
        ratings_N: people's, on ``scale``.
        scores_N: the judge's, from 0 to 1.
        votes: of each dialogue.
    """
    units, rated_N = len(ratings_N), scale.unit(ratings_N)

    def correlation(*arrays: Floats, of: object = spearman) -> Interval:
        return bootstrap_interval(
            lambda index: of(*(each[index] for each in arrays)), units, seed=seed, correlation=True  # type: ignore[operator]
        )  # fmt: skip

    estimates = {
        "spearman": correlation(scores_N, ratings_N),
        "kappa": _kappa(ratings_N, scores_N, scale, seed),
        "bias": UNDEFINED,
        "slope": bootstrap_interval(lambda i: slope(scores_N[i], rated_N[i]), units, seed=seed),
        "calibration_error": UNDEFINED,
        "votes_alpha": _votes_alpha(votes, seed),
        "length_score_given_rating": correlation(scores_N, lengths_N, ratings_N, of=partial_spearman),
        "length_score": correlation(scores_N, lengths_N),
        "length_rating": correlation(ratings_N, lengths_N),
    }
    if units and np.isfinite(rated_N).all():
        estimates["bias"] = mean_interval(scores_N - rated_N, seed)
        error = calibration_error(scores_N, rated_N, BINS)
        estimates["calibration_error"] = bootstrap_interval(error, units, seed=seed, distance=True)
    return estimates


def position(pairs: Sequence[PairVotes], seed: int) -> dict[str, Interval]:
    """The estimates on pairs, which should have no dialogue in common, by name."""
    if not pairs:
        return dict.fromkeys(("first_preferred", "inconsistent_pairs", "order_agreement"), UNDEFINED)
    first = mean_interval([(pair.first + pair.swapped) / 2 for pair in pairs], seed)
    winners = [pair.winner for pair in pairs]
    agrees = [
        float(winner == np.sign(pair.rating - pair.other_rating))
        for pair, winner in zip(pairs, winners, strict=True)
        if winner and pair.rating != pair.other_rating
    ]
    return {
        "first_preferred": Interval(first.mean - 0.5, first.low - 0.5, first.high - 0.5),
        "inconsistent_pairs": share_interval([winner is None for winner in winners], range(len(pairs))),
        "order_agreement": share_interval(agrees, range(len(agrees))) if agrees else UNDEFINED,
    }


def _kappa(ratings_N: Floats, scores_N: Floats, scale: Scale, seed: int) -> Interval:
    """Undefined where ratings are no whole numbers: then there are no categories."""
    limits = (scale.lowest, scale.highest)
    if not len(ratings_N) or not all((each == np.floor(each)).all() for each in (ratings_N, np.array(limits))):
        return UNDEFINED
    categories_N = scale.category(scores_N)
    return bootstrap_interval(
        lambda i: quadratic_kappa(ratings_N[i], categories_N[i]), len(ratings_N), seed=seed, correlation=True
    )


def _votes_alpha(votes: Sequence[Sequence[float]], seed: int) -> Interval:
    several = [np.asarray(of_one, np.float64) for of_one in votes if len(of_one) > 1]
    if not several:
        return UNDEFINED
    counts, sums, squares = (
        np.array([f(of_one) for of_one in several], np.float64) for f in (len, np.sum, lambda v: np.sum(v**2))
    )
    interval = bootstrap_interval(lambda i: alpha(counts[i], sums[i], squares[i]), len(several), seed=seed)
    high = min(1.0, interval.high) if math.isfinite(interval.high) else interval.high
    return Interval(interval.mean, interval.low, high)
