"""Experiments in the exact world: how gaps grow, where they saturate, and that the bound holds on every point.

The *gap* is ``|J_real(policy) - J_train(policy)|``, both computed, not sampled. How the policy is trained decides
what ``J_train`` is:

- ``static``: histories of the logged policy with the human; the policy says one turn on each. Suffers ``eps``.
- ``interactive``: the policy meets the simulator. Suffers ``delta``.
- ``both``: histories are those of the logged policy with the simulator. Suffers the sum.

The bounds are those of ``bounds.py``. Growth is shown for the ``persistent`` family, in which shifts compound because
a dialogue can be lost for good, and for the ``forgetting`` one, in which they do not: a bound is no forecast.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from calibrated_rl.shift.bounds import per_turn_reward_bound, terminal_reward_bound
from calibrated_rl.statistics.intervals import Interval, mean_interval
from research.theory.symbolic import (
    Floats,
    RewardKind,
    greedy,
    optimal_policy,
    policy_shift,
    prefix_values,
    simulator_shift,
    turn_values,
    value,
)
from research.theory.symbolic_worlds import Construction, Family, echo, random_construction, synonyms, tight

Training = Literal["static", "interactive", "both"]
TRAININGS: tuple[Training, ...] = get_args(Training)
REWARDS: tuple[RewardKind, ...] = get_args(RewardKind)
FAMILIES: tuple[Family, ...] = get_args(Family)
HORIZON = 30
SMALL_SHIFT = 0.1 / HORIZON
"""Up to ``HORIZON`` turns, ``H * shift <= 0.1``."""
SHIFTS = (SMALL_SHIFT, 0.01, 0.03, 0.1, 0.3, 0.5)
SLOPE_FROM = 15
"""The slope is fitted over the upper half of horizons: below, the linear part of ``a H^2 + b H`` is as large."""
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)
"""Of a shift that calibration or interaction leaves."""
REGRET_HORIZONS = (1, 2, 5, 10, 20, 30)
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """One construction, one kind of training and of reward; arrays are [H], for dialogues that end after each turn."""

    training: Training
    reward: RewardKind
    gap: Floats
    bound: Floats


def shifts_of(construction: Construction, training: Training) -> dict[str, Floats]:
    """The shifts that bear on this kind of training, as the bounds take them: ``epsilon``, ``delta``, each [H]."""
    shifts = {}
    if training != "interactive":
        shifts["epsilon"] = policy_shift(
            construction.world, construction.policy, construction.logged, construction.human
        )
    if training != "static":
        shifts["delta"] = simulator_shift(
            construction.world, construction.policy, construction.human, construction.simulator
        )
    return shifts


def bound_by_horizon(construction: Construction, training: Training, reward: RewardKind) -> Floats:
    """[H]: the bound for dialogues that end after turn 1, 2, ..., H."""
    shifts = {name: np.minimum(by_turn, 1.0).tolist() for name, by_turn in shifts_of(construction, training).items()}
    bound = per_turn_reward_bound if reward == "per_turn" else terminal_reward_bound
    horizons = range(1, construction.horizon + 1)
    return np.array(
        [
            bound(construction.world.reward_range, **{name: s[:horizon] for name, s in shifts.items()})
            for horizon in horizons
        ]
    )


def trained_values(
    construction: Construction, training: Training, reward: RewardKind, policy: Floats | None = None
) -> Floats:
    """[H]: what training believes a policy to be worth, ``construction.policy`` if none is given."""
    policy = construction.policy if policy is None else policy
    user = construction.human if training == "static" else construction.simulator
    histories = None if training == "interactive" else construction.logged
    return prefix_values(construction.world, policy, user, reward, histories_of=histories)


def point(construction: Construction, training: Training, reward: RewardKind) -> Point:
    """The exact gap of the construction's policy, and the bound."""
    real_values = prefix_values(construction.world, construction.policy, construction.human, reward)
    gap = np.abs(real_values - trained_values(construction, training, reward))
    return Point(training=training, reward=reward, gap=gap, bound=bound_by_horizon(construction, training, reward))


def constructions(
    family: Family, count: int, shift: float, seed: int, horizon: int = HORIZON
) -> Iterator[Construction]:
    """``count`` random constructions with ``eps_t = delta_t = shift``; the same ones for every shift and horizon."""
    for i in range(count):
        rng = np.random.default_rng((seed, FAMILIES.index(family), i))
        yield random_construction(family, rng, horizon=horizon, epsilon=shift, delta=shift)


def all_points(count: int, seed: int) -> dict[str, dict[float, list[Point]]]:
    """By family and shift, all kinds of training and reward on ``count`` constructions each; and on the three
    constructions that are named."""
    points: dict[str, dict[float, list[Point]]] = {}
    for family in FAMILIES:
        points[family] = {s: _points(constructions(family, count, s, seed)) for s in SHIFTS}
    points["tight"] = {s: _points([tight(HORIZON, delta=s), tight(HORIZON, epsilon=s)]) for s in SHIFTS}
    points["echo"] = {s: _points([echo(HORIZON, delta=s)]) for s in SHIFTS}
    points["synonyms"] = {s: _points([synonyms(HORIZON, delta=s)]) for s in SHIFTS}
    return points


def _points(built: Iterator[Construction] | Sequence[Construction]) -> list[Point]:
    return [
        point(construction, training, reward) for construction in built for training in TRAININGS for reward in REWARDS
    ]


def gaps(points: Sequence[Point], training: Training, reward: RewardKind) -> Floats:
    """[N, H] of the N constructions in ``points``."""
    return np.stack([p.gap for p in points if (p.training, p.reward) == (training, reward)])


def bound_check(points_by_family: dict[str, dict[float, list[Point]]]) -> dict[str, Any]:
    """On how many points (construction, training, reward, horizon) the bound was checked, how often it was
    exceeded, and the largest ratio of gap to bound: over all horizons from 2 up, and at the longest by construction and
    kind of reward (with a single turn the bound is nothing but the definition of total variation, and is reached)."""
    points = violations = 0
    largest_ratio = 0.0
    tightest: dict[str, dict[str, float]] = {}
    for family, by_shift in points_by_family.items():
        for point in (p for at_shift in by_shift.values() for p in at_shift):
            points += len(point.gap)
            violations += int((point.gap > point.bound + _ROUNDING).sum())
            is_bounded = point.bound > _ROUNDING
            ratio = np.divide(point.gap, point.bound, out=np.zeros_like(point.gap), where=is_bounded)
            largest_ratio = max(largest_ratio, float(ratio[1:].max(initial=0.0)))
            by_reward = tightest.setdefault(family, dict.fromkeys(REWARDS, 0.0))
            by_reward[point.reward] = max(by_reward[point.reward], float(ratio[-1]))
    return {
        "points": points,
        "violations": violations,
        "tightest_ratio": largest_ratio,
        "tightest_at_longest": tightest,
    }


def growth(gap_NH: Floats, seed: int) -> dict[str, Any]:
    """How gaps [N, H] of N constructions grow with the horizon.

    Returns:
        ``a`` and ``b`` of ``gap = a H^2 + b H``, by least squares on the mean gap, with their intervals; ``slope`` of
        log gap on log H over horizons from ``SLOPE_FROM`` up, as the mean of the constructions' with its interval
        ``low``, ``high``; and ``local_slope``, the same between neighbouring horizons (None where a gap is 0). All
        intervals are 95 %, over constructions.
    """
    horizon = np.arange(1, gap_NH.shape[1] + 1)
    design = np.stack([horizon**2, horizon], axis=1).astype(float)
    fitted_N2 = np.linalg.lstsq(design, gap_NH.T, rcond=None)[0].T  # linear in the gaps: the mean's fit is the mean
    a, b = (mean_interval(fitted_N2[:, i], seed) for i in (0, 1))
    positive = np.all(gap_NH > _ROUNDING, axis=0).tolist()
    upper = horizon >= SLOPE_FROM
    usable = (gap_NH[:, upper] > _ROUNDING).all(axis=1)
    slopes = np.polyfit(np.log(horizon[upper]), np.log(gap_NH[usable][:, upper]).T, 1)[0]
    overall_slope = mean_interval(slopes, seed) if usable.any() else Interval(np.nan, np.nan, np.nan)
    local = []
    for i in range(len(horizon) - 1):
        if all(positive[i : i + 2]):
            rise = np.log(gap_NH[:, i + 1] / gap_NH[:, i]) / np.log(horizon[i + 1] / horizon[i])
            local.append({"horizon": int(horizon[i + 1]), **mean_interval(rise, seed).as_dict()})
        else:
            local.append({"horizon": int(horizon[i + 1]), "mean": None, "low": None, "high": None})
    mean = overall_slope.as_dict()
    return {
        "a": a.mean,
        "b": b.mean,
        "a_interval": [a.low, a.high],
        "b_interval": [b.low, b.high],
        "slope": mean["mean"],
        "low": mean["low"],
        "high": mean["high"],
        "local_slope": local,
        "constructions": len(gap_NH),
        "without_gap": int((~usable).sum()),
    }


def saturation(points_by_shift: dict[float, list[Point]]) -> dict[str, Any]:
    """By shift, kind of training and of reward: gap and bound at the longest horizon, in units of the most that a
    dialogue can earn, averaged over constructions. The gap levels off below 1, the bound keeps growing."""
    result: dict[str, Any] = {}
    for shift, points in points_by_shift.items():
        for p in points:
            max_return = len(p.gap) if p.reward == "per_turn" else 1
            cell = result.setdefault(f"{shift:.4g}", {}).setdefault(p.training, {}).setdefault(p.reward, [])
            cell.append((p.gap[-1] / max_return, p.bound[-1] / max_return))
    for by_training in result.values():
        for by_reward in by_training.values():
            for reward, pairs in by_reward.items():
                gap, bound = np.mean(pairs, axis=0)
                by_reward[reward] = {"gap": float(gap), "bound": float(bound)}
    return result


def remedies(count: int, seed: int, shift: float = 0.1, horizon: int = HORIZON) -> dict[str, Any]:
    """How calibration (less of ``delta``) and interaction (less of ``eps``) move the gap and the bound of ``both``.

    Returns:
        ``shares``, and for each kind of reward ``gap`` and ``bound`` [eps left][delta left], averaged over persistent
        constructions. At (1, 1) nothing was done, (0, 1) is interactive training, (0, 0) calibrated too.
        ``same_sign`` is the gap where both errors make training rosier than reality, or both grimmer. Elsewhere they
        cancel in part, and taking one of them away can widen the gap, though never the bound.
    """
    result: dict[str, Any] = {"shares": list(SHARES), "shift": shift, "horizon": horizon}
    built = list(constructions("persistent", count, shift, seed, horizon))
    for reward in REWARDS:
        rosier = np.array(
            [[_error(construction, kind, reward) > 0 for kind in ("static", "interactive")] for construction in built]
        )
        same_sign = rosier[:, 0] == rosier[:, 1]
        gap, bound = (np.zeros((len(SHARES), len(SHARES), len(built))) for _ in range(2))
        for i, left_of_epsilon in enumerate(SHARES):
            for j, left_of_delta in enumerate(SHARES):
                for n, construction in enumerate(built):
                    p = point(construction.interactive(left_of_epsilon).calibrated(left_of_delta), "both", reward)
                    gap[i, j, n], bound[i, j, n] = p.gap[-1], p.bound[-1]
        result[reward] = {"gap": gap.mean(axis=-1).tolist(), "bound": bound.mean(axis=-1).tolist()}
        result[reward]["same_sign"] = gap[..., same_sign].mean(axis=-1).tolist() if same_sign.any() else None
    return result


def _error(construction: Construction, training: Training, reward: RewardKind) -> float:
    """Of the whole dialogue, with its sign: positive where training is rosier than reality."""
    return float(
        trained_values(construction, training, reward)[-1]
        - value(construction.world, construction.policy, construction.human, reward)
    )


def regrets(count: int, seed: int, shifts: Sequence[float] = SHIFTS) -> dict[str, Any]:
    """What the policy that training finds loses with the human, against the best policy there is.

    Training is taken to its optimum: ``interactive`` the best policy with the simulator; ``static`` the best single
    turn on logged histories, by its own reward (``J_static``'s optimum); ``static_q`` the same by the value of the
    dialogue that follows if the logged policy continues, as ``arms/static.py`` does.

    With its gap bounded for every policy, training's optimum loses at most the bounds of two policies, its own and
    the best one's; that is checked wherever ``J_train`` is what was optimised (not for ``static_q``).

    Returns:
        ``regret`` by arm, reward, shift and horizon, as a share of the best value, averaged over persistent
        constructions; ``points`` and ``violations`` of the check.
    """
    result: dict[str, Any] = {"horizons": list(REGRET_HORIZONS), "regret": {}, "points": 0, "violations": 0}
    for reward in REWARDS:
        for shift in shifts:
            for horizon in REGRET_HORIZONS:
                lost: dict[str, list[float]] = {}
                for construction in constructions("persistent", count, shift, seed, horizon):
                    best = optimal_policy(construction.world, construction.human, reward)
                    best_value = value(construction.world, best, construction.human, reward)
                    for arm, policy in _optima(construction, reward).items():
                        regret = best_value - value(construction.world, policy, construction.human, reward)
                        lost.setdefault(arm, []).append(regret / best_value)
                        if arm in TRAININGS:
                            joint_bound = sum(_bound_of(construction, policy, arm, reward) for policy in (best, policy))
                            result["points"] += 1
                            result["violations"] += int(regret > joint_bound + _ROUNDING)
                for arm, values in lost.items():
                    by_shift = result["regret"].setdefault(arm, {}).setdefault(reward, {})
                    by_shift.setdefault(f"{shift:.4g}", []).append(float(np.mean(values)))
    return result


def _optima(construction: Construction, reward: RewardKind) -> dict[str, Floats]:
    logged_values = turn_values(construction.world, construction.logged, construction.human, reward)
    own_reward = np.einsum("hsax,sax->hsa", construction.human, construction.world.reward_SAX)
    if reward == "terminal":  # of all turns on logged histories only the last one earns anything
        own_reward = np.where(
            np.arange(construction.horizon)[:, None, None] < construction.horizon - 1, 0.0, logged_values
        )
    return {
        "interactive": optimal_policy(construction.world, construction.simulator, reward),
        "static": greedy(own_reward),
        "static_q": greedy(logged_values),
    }


def _bound_of(construction: Construction, policy: Floats, arm: str, reward: RewardKind) -> float:
    training: Training = "static" if arm == "static" else "interactive"
    trained = Construction(
        world=construction.world,
        policy=policy,
        logged=construction.logged,
        human=construction.human,
        simulator=construction.simulator,
    )
    return float(bound_by_horizon(trained, training, reward)[-1])
