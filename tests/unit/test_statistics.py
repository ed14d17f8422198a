"""Intervals against hand-computed cases, and their coverage in simulation."""

import json
import math

import numpy as np
import pytest
from scipy.special import stdtrit

from calibrated_rl.statistics.intervals import (
    Interval,
    expansion,
    gap_closed,
    mean_interval,
    mean_over_seeds,
    paired_difference,
    ratio_interval,
    share_interval,
)
from research.theory.interval_coverage import BINARY, SHARES, Cell, misses, row


def test_two_values_by_hand() -> None:
    # Resampled means of {0, 2} are 0, 1, 2 with probability 1/4, 1/2, 1/4: the 95 % quantiles are 0 and 2.
    # Two units: t(1) = 12.706 against 1.960, and sqrt(2 / 1).
    factor = 12.706204736 / 1.959963985 * math.sqrt(2)
    assert expansion(2) == pytest.approx(factor)
    assert mean_interval([0.0, 2.0]) == Interval(1.0, pytest.approx(1 - factor), pytest.approx(1 + factor))


def test_large_samples_need_no_expansion() -> None:
    assert expansion(100_000) == pytest.approx(1, abs=1e-4)
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    interval = mean_interval(values)
    standard_error = values.std(ddof=1) / math.sqrt(2000)
    assert interval.low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.2 * standard_error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.2 * standard_error)


def test_constant_and_single_values() -> None:
    assert mean_interval([2.0] * 10) == Interval(2.0, 2.0, 2.0)
    single = mean_interval([2.0])
    assert single.mean == 2 and math.isnan(single.low)
    assert not single.excludes(0) and json.dumps(single.as_dict()) == '{"mean": 2.0, "low": null, "high": null}'
    for bad in ([], [math.nan, 1.0]):
        with pytest.raises(ValueError):
            mean_interval(bad)


def test_ratio_is_of_sums_and_clusters_stay_whole() -> None:
    assert ratio_interval([2.0, 4.0, 6.0], [1, 2, 1], ["a", "a", "b"]).mean == 3.0
    values = np.repeat(np.random.default_rng(1).normal(size=50), 20)
    clustered = ratio_interval(values, np.ones(1000), np.repeat(np.arange(50), 20))
    naive = mean_interval(values)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(20), rel=0.1)


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(2)
    base = {f"s{i}": rng.normal(0, 10) for i in range(100)}
    better = {key: value + 1 + rng.normal(0, 0.1) for key, value in base.items()}
    difference = paired_difference(better | {"only here": 999.0}, base)
    assert difference.mean == pytest.approx(1, abs=0.05) and difference.high - difference.low < 0.1
    assert difference.excludes(0) and not difference.excludes(difference.mean)
    reverse = paired_difference(base, better)
    assert (reverse.mean, reverse.low) == pytest.approx((-difference.mean, -difference.high))


def test_same_seed_same_figures() -> None:
    values = [math.sin(7 * i) for i in range(30)]
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)
    assert mean_over_seeds({0: {"a": 1.0, "b": 2.0}, 1: {"a": 0.0, "b": 5.0}}).mean == 2.0


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="in common"):
        paired_difference({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="in common"):
        mean_over_seeds({0: {"a": 1.0}}, {1: {"a": 1.0}})
    with pytest.raises(ValueError, match="finite"):
        mean_over_seeds({0: {"a": math.nan, "b": 1.0}})


def coverage(draw: object, truth: float, runs: int = 300) -> float:
    hits = [not draw(i).excludes(truth) for i in range(runs)]  # type: ignore[operator]
    return sum(hits) / runs


def test_coverage_over_scenarios() -> None:
    def draw(i: int) -> Interval:
        return mean_interval(np.random.default_rng(i).binomial(1, 0.3, size=60))

    assert 0.91 <= coverage(draw, 0.3) <= 0.985


CELLS = [
    Cell(kind=kind, crossed=crossed, seeds=seeds, scenarios=100, shares=shares)
    for kind, many in (("normal", SHARES), ("difference", SHARES[3:4]), ("binary", BINARY[2:5]))
    for shares in many
    for seeds in (3, 5)
    for crossed in (True, False)
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_coverage_over_seeds_and_scenarios(cell: Cell) -> None:
    """A fast part of the table of ``jobs/validate_theory.py --part intervals``."""
    found = row(cell, 1000, seed=0)
    assert misses([found]) == [], found
    assert found["why"] == "" or cell.kind == "binary"


def test_noise_counts_once() -> None:
    """Five seeds on a hundred scenarios, nothing but noise: as wide as a t interval over the seeds' means."""
    scores_SK = np.random.default_rng(0).normal(size=(5, 100))
    found = mean_over_seeds({s: {str(k): scores_SK[s, k] for k in range(100)} for s in range(5)})
    means = scores_SK.mean(axis=1)
    half = 2.7764451 * means.std(ddof=1) / math.sqrt(5)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_variance_components_by_hand() -> None:
    """Seeds on the same two scenarios: means 1 and 4; the two scenarios differ by 2 and by 4."""
    found = mean_over_seeds({0: {"a": 0.0, "b": 2.0}, 1: {"a": 2.0, "b": 6.0}})
    between = ((1 - 2.5) ** 2 + (4 - 2.5) ** 2) / 1 / 2
    common = ((0 - 1) * (2 - 4) + (2 - 1) * (6 - 4)) / 1 / 2  # covariance of the seeds over scenarios, by scenarios
    variance = between + common
    # All degrees of freedom are 1, so that every quantile is that of t(1); Satterthwaite's are at least 1.
    noise = ((2 / 1 + 8 / 1) / 2 - 4) / 2
    freedom = variance**2 / (between**2 + ((4 + noise) ** 2 + noise**2) / 4)
    quantile = (stdtrit(max(freedom, 1.0), 0.975) + 12.7062047) / 2
    assert found.mean == 2.5
    assert (found.low, found.high) == pytest.approx((2.5 - quantile * variance**0.5, 2.5 + quantile * variance**0.5))


def test_nested_seeds_are_a_t_interval_over_their_means() -> None:
    values = {s: {f"{s}/{k}": s**2 + (-1.0) ** k for k in range(4)} for s in range(3)}
    found, means = mean_over_seeds(values), np.array([0.0, 1.0, 4.0])
    assert found.mean == pytest.approx(5 / 3)
    assert found.high - found.mean == pytest.approx(4.30265273 * means.std(ddof=1) / math.sqrt(3))


def test_a_scenario_that_one_seed_lacks_does_not_make_seeds_independent() -> None:
    """Scenarios make nearly all of the variance; one dialogue was dropped."""
    rng = np.random.default_rng(4)
    scenarios = rng.normal(0, 3, size=60)
    values = {s: {f"{k}": scenarios[k] + rng.normal(0, 0.1) for k in range(60)} for s in range(3)}
    whole = mean_over_seeds(values)
    del values[1]["7"]
    part = mean_over_seeds(values)
    assert part.high - part.low == pytest.approx(whole.high - whole.low, rel=0.1)
    assert part.high - part.low > 2 * 1.9 * 3 * 0.8 / math.sqrt(60)


def test_one_seed_speaks_of_scenarios_alone() -> None:
    values = np.random.default_rng(6).normal(size=40)
    found = mean_over_seeds({0: {str(k): v for k, v in enumerate(values)}})
    assert found.high - found.mean == pytest.approx(2.0226909 * values.std(ddof=1) / math.sqrt(40))


def test_shares_of_which_all_are_alike_are_no_points() -> None:
    """A hundred people, nobody served: up to 4 % may be, whatever the number of seeds."""
    nobody = {str(k): 0.0 for k in range(100)}
    for seeds in (1, 3):
        found = mean_over_seeds(dict.fromkeys(range(seeds), nobody))
        assert found.low == 0 and 0.03 < found.high < 0.045
    share = share_interval(np.zeros(100), np.arange(100))
    assert share.low == 0 and 0.03 < share.high < 0.045
    assert mean_interval([0.0] * 100) == share


def test_gap_closed() -> None:
    rng = np.random.default_rng(5)

    def scores(level: float) -> dict[int, dict[str, float]]:
        return {0: {f"s{i}": level + rng.normal(0, 0.1) for i in range(200)}}

    static, arm, oracle = scores(0.2), scores(0.6), scores(0.7)
    closed = gap_closed(static, arm, oracle)
    assert closed is not None and closed.mean == pytest.approx(0.8, abs=0.05)
    assert closed.low < closed.mean < closed.high < 1
    means = [np.mean(list(x[0].values())) for x in (static, arm, oracle)]
    assert closed.mean == pytest.approx((means[1] - means[0]) / (means[2] - means[0]))
    assert gap_closed(static, arm, scores(0.2)) is None
    assert gap_closed({0: {"a": 0.0}}, {0: {"a": 1.0}}, {0: {"a": 1.0}}) is None, "one unit proves nothing"
    below = gap_closed(static, scores(0.1), oracle)
    assert below is not None and below.high < 0


@pytest.mark.parametrize("seeds", [1, 3])
def test_gap_closed_holds_the_truth(seeds: int) -> None:
    """True ratio 0.5; arms share seeds and scenarios, and the gap is 4 to 6 standard errors wide."""
    inside = total = 0
    for i in range(120):
        rng = np.random.default_rng(i)
        shared, level = rng.normal(0, 1, size=40), rng.normal(0, 0.1, size=seeds) if seeds > 1 else np.zeros(1)

        base = [{f"{k}": level[s] + shared[k] for k in range(40)} for s in range(seeds)]
        closed = gap_closed(
            *(
                {s: {k: mean + of + rng.normal(0, 0.5) for k, of in base[s].items()} for s in range(seeds)}
                for mean in (0.0, 0.25, 0.5)
            )
        )
        if closed is not None:
            total, inside = total + 1, inside + (closed.low <= 0.5 <= closed.high)
    assert total > 90 and 0.90 <= inside / total <= 0.99


def test_the_limits_of_the_gap_closed_are_where_the_difference_can_no_longer_be_told_from_chance() -> None:
    rng = np.random.default_rng(8)
    arms = [{s: {f"{k}": level + rng.normal(0, 0.3) for k in range(50)} for s in range(3)} for level in (0.0, 0.5, 1.0)]
    closed = gap_closed(*arms)
    assert closed is not None
    for limit, other in ((closed.low, 1), (closed.high, 0)):
        rest = {
            s: {k: arms[1][s][k] - arms[0][s][k] - limit * (arms[2][s][k] - arms[0][s][k]) for k in arms[0][s]}
            for s in range(3)
        }
        found = mean_over_seeds(rest)
        assert (found.low, found.high)[1 - other] == pytest.approx(0.0, abs=1e-6)
