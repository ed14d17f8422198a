"""Intervals against hand-computed cases, and their coverage in simulation."""

import json
import math

import numpy as np
import pytest

from calibrated_rl.evaluation.statistics import (
    Interval,
    expansion,
    gap_closed,
    hierarchical_bootstrap,
    mean_interval,
    paired_difference,
    ratio_interval,
)


def test_two_values_by_hand() -> None:
    # Resampled means of {0, 1} are 0, 1/2, 1 with probability 1/4, 1/2, 1/4: the 95 % quantiles are 0 and 1.
    # Two units: t(1) = 12.706 against 1.960, and sqrt(2 / 1).
    factor = 12.706204736 / 1.959963985 * math.sqrt(2)
    assert expansion(2) == pytest.approx(factor)
    assert mean_interval([0.0, 1.0]) == Interval(
        0.5, pytest.approx(0.5 - factor / 2), pytest.approx(0.5 + factor / 2)
    )


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
    assert (
        not single.excludes(0) and json.dumps(single.as_dict()) == '{"mean": 2.0, "low": null, "high": null}'
    )
    for bad in ([], [math.nan, 1.0]):
        with pytest.raises(ValueError):
            mean_interval(bad)


def test_ratio_is_of_sums_and_clusters_stay_whole() -> None:
    assert ratio_interval([2.0, 4.0, 6.0], [1, 2, 1], ["a", "a", "b"]).mean == 3.0
    values = np.repeat(np.random.default_rng(1).normal(size=50), 20)
    clustered = ratio_interval(values, np.ones(1000), np.repeat(np.arange(50), 20))
    naive = mean_interval(values)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(
        math.sqrt(20), rel=0.1
    )


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
    assert hierarchical_bootstrap({0: {"a": 1.0, "b": 2.0}, 1: {"a": 0.0, "b": 5.0}}).mean == 2.0
    values = {s: {f"s{i}": math.sin(7 * i + s) for i in range(30)} for s in range(2)}
    assert hierarchical_bootstrap(values, seed=3) == hierarchical_bootstrap(values, seed=3)
    assert hierarchical_bootstrap(values, seed=3) != hierarchical_bootstrap(values, seed=4)


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="in common"):
        paired_difference({"a": 1.0}, {"b": 1.0})
    with pytest.raises(ValueError, match="in common"):
        hierarchical_bootstrap({0: {"a": 1.0}}, {1: {"a": 1.0}})


def coverage(draw: object, truth: float, runs: int = 300) -> float:
    hits = [not draw(i).excludes(truth) for i in range(runs)]  # type: ignore[operator]
    return sum(hits) / runs


def test_coverage_over_scenarios() -> None:
    def draw(i: int) -> Interval:
        return mean_interval(np.random.default_rng(i).binomial(1, 0.3, size=60))

    assert 0.91 <= coverage(draw, 0.3) <= 0.985


@pytest.mark.parametrize(("seed_sd", "scenario_sd"), [(1.0, 0.2), (0.2, 3.0)])
@pytest.mark.parametrize("crossed", [True, False])
def test_coverage_over_five_seeds_and_scenarios(crossed: bool, seed_sd: float, scenario_sd: float) -> None:
    def draw(i: int) -> Interval:
        rng = np.random.default_rng(i)
        shared = rng.normal(0, scenario_sd, size=30)
        a: dict[int, dict[str, float]] = {}
        for s in range(5):
            effects = shared if crossed else rng.normal(0, scenario_sd, size=30)
            noise = rng.normal(0, 0.5, size=30)
            level = 2 + rng.normal(0, seed_sd)
            prefix = "" if crossed else f"{s}/"
            a[s] = {f"{prefix}{k}": level + effects[k] + noise[k] for k in range(30)}
        return hierarchical_bootstrap(a, {s: dict.fromkeys(scores, 0.0) for s, scores in a.items()})

    assert coverage(draw, 2.0, runs=200) >= 0.91


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
