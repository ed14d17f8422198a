"""Statistics of agreement against values by hand and by other means, and that what the data leave open is undefined."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from calibrated_rl.judges.agreement import MEANINGS, PairVotes, Scale, agreement, position
from calibrated_rl.statistics.agreement import (
    alpha,
    bootstrap_interval,
    calibration_error,
    partial_spearman,
    quadratic_kappa,
    slope,
    spearman,
)

RANDOM = np.random.default_rng(0)


def row(*values: float) -> Any:
    return np.array([values], np.float64)


def alpha_of(*units: tuple[float, ...]) -> float:
    sums = [np.array([[f(np.array(unit)) for unit in units]], np.float64)
            for f in (len, np.sum, lambda v: np.sum(v**2))]  # fmt: skip
    return float(alpha(*sums)[0])


def test_rank_correlation_is_that_of_scipy_with_ties_too() -> None:
    x, y = RANDOM.integers(5, size=(20, 30)).astype(float), RANDOM.normal(size=(20, 30))
    assert spearman(x, y) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert spearman(row(1, 2, 3, 4), row(1, 4, 9, 16))[0] == 1 and math.isnan(spearman(row(1, 1, 1), row(1, 2, 3))[0])


def test_partial_rank_correlation_is_that_of_what_a_line_leaves() -> None:
    z = RANDOM.permutation(40).astype(float)
    noisy = [z + RANDOM.normal(0, 9, 40) for _ in range(2)]
    ranks: list[Any] = [np.argsort(np.argsort(each)) + 0.0 for each in noisy]
    x, y = ranks

    def without_z(ranks: Any) -> Any:
        return ranks - np.polyval(np.polyfit(z, ranks, 1), z)

    expected = np.corrcoef(without_z(x), without_z(y))[0, 1]
    assert partial_spearman(x[None], y[None], z[None])[0] == pytest.approx(expected)
    assert math.isnan(partial_spearman(row(1, 2, 3), row(3, 1, 2), row(1, 2, 3))[0]), "nothing is left"


def test_kappa_by_hand_and_as_scikit_learn_has_it() -> None:
    # Agreement 3 of 4, by chance 1/2 * 1/4 + 1/2 * 3/4 = 1/2.
    assert quadratic_kappa(row(0, 0, 1, 1), row(0, 1, 1, 1))[0] == pytest.approx(0.5)
    for labels, weights in ((range(1, 11), "quadratic"), (range(2), None)):
        a, b = RANDOM.choice(labels, size=(2, 40))
        expected = cohen_kappa_score(a, b, labels=list(labels), weights=weights)
        assert quadratic_kappa(a[None] + 0.0, b[None] + 0.0)[0] == pytest.approx(expected)
    assert math.isnan(quadratic_kappa(row(3, 3), row(3, 3))[0]) and quadratic_kappa(row(3, 3), row(4, 4))[0] == 0


def test_calibration_error_slope_and_alpha_by_hand() -> None:
    # Bins of 1/5: the first two lie 0.1 above and 0.1 below, the others 0.4 above and 0.1 below.
    # Many units, so that next to nothing is chance.
    scores, rated = np.tile([0.1, 0.1, 0.9, 0.9], 2500), np.tile([0, 0.2, 0.5, 1], 2500)
    error = calibration_error(scores, rated, 5)
    assert error(np.arange(10_000)[None])[0] == pytest.approx(0.3 / 4, abs=0.003)
    # Resamples of the first and the third unit alone: each row for itself.
    assert error(np.array([[0] * 10_000, [2] * 10_000])) == pytest.approx([0.1, 0.4], abs=0.006)
    assert calibration_error(np.ones(8), np.zeros(8), 5)(np.arange(8)[None])[0] == 1, "1 lies in the last bin"
    assert slope(row(0, 1, 2), row(1, 3, 5))[0] == 2 and math.isnan(slope(row(1, 1), row(1, 2))[0])
    assert alpha_of((0, 0), (1, 1)) == 1
    # Within: 1; among all of 0, 1, 0, 1: 8 of 12 ordered pairs differ by 1.
    assert alpha_of((0, 1), (0, 1)) == pytest.approx(1 - 1 / (8 / 12))
    # 0, 1 and 1, 1, 1: within (2 / 1) / 5, among 2 (5 * 4 - 16) / 20.
    assert alpha_of((0, 1), (1, 1, 1)) == pytest.approx(1 - 0.4 / 0.4)
    assert math.isnan(alpha_of((1, 1), (1, 1)))


def correlation_of(x: Any, y: Any) -> Any:
    return bootstrap_interval(lambda index: spearman(x[index], y[index]), len(x), correlation=True)


def test_intervals_stay_in_range_and_are_the_same_again() -> None:
    x = RANDOM.normal(size=30)
    for y in (x, -x):
        found = correlation_of(x, y)
        assert abs(found.mean) == 1 and math.isnan(found.low), "every resample agrees as well"
    for noise in (0.3, 1.0):
        y = x + RANDOM.normal(0, noise, 30)
        found = correlation_of(x, y)
        assert -1 <= found.low <= found.mean <= found.high <= 1 and found == correlation_of(x, y)
    weak = correlation_of(x, x[::-1].copy())
    assert weak.high - weak.low > 0.5
    exact = bootstrap_interval(lambda i: np.asarray(x[i].mean(axis=-1)), 30)
    assert exact.high - exact.low == pytest.approx(2 * 2.045 * x.std(ddof=1) / math.sqrt(30), rel=0.1)


def test_intervals_contain_the_truth() -> None:
    """Ranks of normal values that are correlated 1/2: 6 / pi asin(1 / 4)."""
    random, truth, hits = np.random.default_rng(3), 6 / math.pi * math.asin(0.25), 0
    for _ in range(100):
        x, noise = random.normal(size=(2, 25))
        found = correlation_of(x, 0.5 * x + math.sqrt(0.75) * noise)
        hits += found.low <= truth <= found.high
    assert 90 <= hits <= 99


def test_an_error_that_few_units_raise_is_not_taken_for_one() -> None:
    """Scores that are calibrated: the plain error of 40 is far from 0, its interval nearly always reaches it."""
    random, found = np.random.default_rng(1), []
    for _ in range(20):
        scores = random.random(40)
        rated = (random.random(40) < scores).astype(float)
        plain = sum(abs((rated - scores)[(scores * 5).astype(int) == b].sum()) for b in range(5)) / 40
        found.append((plain, bootstrap_interval(calibration_error(scores, rated, 5), 40, distance=True)))
    assert np.mean([plain for plain, _ in found]) > 0.1 > np.mean([error.mean for _, error in found])
    assert sum(error.low < 0.03 for _, error in found) >= 18


SCALE = Scale(lowest=1, highest=5)


def all_of(ratings: Any, scores: Any, lengths: Any = None, votes: Any = None, scale: Scale = SCALE) -> Any:
    count = len(ratings)
    lengths = np.arange(count) if lengths is None else lengths
    votes = [()] * count if votes is None else votes
    ratings, scores, lengths = (np.asarray(each, np.float64) for each in (ratings, scores, lengths))
    return agreement(ratings, scores, lengths, votes, scale, 0)


def test_a_judge_that_says_what_people_say() -> None:
    ratings = np.tile([1, 2, 3, 4, 5], 6)
    found = all_of(ratings, (ratings - 1) / 4, RANDOM.permutation(30))
    assert found["spearman"].mean == found["kappa"].mean == found["slope"].mean == 1
    assert found["bias"].mean == found["calibration_error"].mean == 0
    assert abs(found["length_score"].mean) < 0.4
    generous = all_of(ratings, np.minimum(1, (ratings + 1) / 4))
    assert generous["bias"].mean > 0.2 and generous["bias"].low > 0 and generous["kappa"].mean < 0.9


def test_kappa_needs_categories() -> None:
    scores = RANDOM.random(20)
    assert SCALE.category(np.array([0, 0.125, 0.5, 1])).tolist() == [1, 2, 3, 5]
    assert math.isnan(all_of(1 + 4 * scores, scores)["kappa"].mean)
    two = all_of(scores > 0.5, scores, scale=Scale(lowest=0, highest=1))
    assert two["kappa"].mean == 1


@pytest.mark.parametrize(
    ("ratings", "scores"),
    [([3] * 12, RANDOM.random(12)), ([1, 3, 5], [0, 0.5, 1]), ([], []), ([1, 2, 3, 4, 5] * 3, [0.5] * 15), ([2], [1])],
)
def test_what_the_data_leave_open_is_undefined(ratings: Any, scores: Any) -> None:
    low, high = (min(ratings), max(ratings)) if len(ratings) else (0, 0)
    found = all_of(ratings, scores, scale=Scale(lowest=low, highest=high))
    assert found.keys() <= MEANINGS.keys() and math.isnan(found["spearman"].mean)
    assert found["spearman"].as_dict() == {"mean": None, "low": None, "high": None}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 0.25, 0.5, 1.0]), st.integers(0, 3)), max_size=12))
def test_no_data_break_it(rows: list[tuple[int, float, int]]) -> None:
    votes = [(score,) * length for _, score, length in rows]
    ratings, scores, lengths = ([each[k] for each in rows] for k in range(3))
    found = all_of(ratings, scores, lengths, votes)
    for estimate in found.values():
        assert math.isnan(estimate.low) or estimate.low <= estimate.high


def pairs_of(prefers: Callable[[float, float], tuple[float, float]]) -> list[PairVotes]:
    made = []
    for a, b in RANDOM.permutation(40).reshape(20, 2).tolist():
        first, swapped = prefers(a, b)
        made.append(PairVotes(first=first, swapped=swapped, rating=a, other_rating=b))
    return made


def test_position_bias() -> None:
    fair = position(pairs_of(lambda a, b: (float(a > b), float(b > a))), 0)
    assert fair["first_preferred"].mean == 0 and fair["inconsistent_pairs"].mean == 0
    assert fair["order_agreement"].mean == 1
    first = position(pairs_of(lambda a, b: (1.0, 2 / 3)), 0)
    assert first["first_preferred"].mean == pytest.approx(1 / 3) and first["first_preferred"].low > 0
    assert first["inconsistent_pairs"].mean == 1 and math.isnan(first["order_agreement"].mean)
    always = position(pairs_of(lambda a, b: (1.0, 1.0)), 0)
    assert always["first_preferred"].mean == 0.5 and 0 < always["first_preferred"].low < 0.5, "20 pairs prove not all"
    equal = position(pairs_of(lambda a, b: (0.5, 0.5)), 0)
    assert equal["inconsistent_pairs"].mean == 0 and math.isnan(equal["order_agreement"].mean)
    wrong = position(pairs_of(lambda a, b: (float(a < b), float(b < a))), 0)
    assert wrong["order_agreement"].mean == 0 and wrong["order_agreement"].high < 0.5
    assert math.isnan(position([], 0)["first_preferred"].mean)
