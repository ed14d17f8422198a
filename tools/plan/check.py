"""Compares a prediction with the measurements of a run with other settings."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from calibrated_rl.statistics.intervals import LEVEL, ratio_interval
from tools.plan.measured import Measured, read_measured
from tools.plan.model import Parts, Prediction
from tools.plan.search import Planner, counts_of, unlike


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The ratio of two means, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Seconds of an update, as predicted and as measured."""

    source: str
    updates: int
    """That could be compared."""
    beside: list[str]
    """Settings that differ, too, and that the model does not include."""
    predicted: Parts
    low: float
    high: float
    """Bounds of the predicted step."""
    happened: Parts
    ratio: Ratio
    """Measured by predicted seconds of the step."""
    common: int
    paired: Ratio | None
    """The same over the ``common`` updates alone, with seed and number, that both runs have: how a policy's dialogues
    change while it learns is then in both. None where there are fewer than two."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_run(planner: Planner, run: Path) -> Checked:
    """Predict the updates of ``run`` from the planner's measurements and compare.

    The run's budget of tokens, ranks and replicas are its own; replicas are those of each update, where they changed.

    Raises:
        UserError: ``run`` is no run folder, has no such arm, or was made with other models, dialogues or devices.
    """
    actual = read_measured(run, planner.arm)
    beside = unlike(planner.measured, actual.config)
    predictions = _by_replicas(planner, actual)
    happened = [Parts(rollout=u.rollout, learning=u.learning, sync=u.sync, hidden=u.hidden) for u in actual.updates]
    predicted_steps = [
        sum(weight * parts_by_update[i].step for weight, _, parts_by_update in predictions)
        for i in range(len(planner.model.updates))
    ]
    common, paired = paired_ratio(
        {(u.seed, u.update): parts.step for u, parts in zip(actual.updates, happened, strict=True)},
        {(u.seed, u.update): step for u, step in zip(planner.model.updates, predicted_steps, strict=True)},
    )
    return Checked(
        source=str(run), updates=len(happened), beside=beside,
        predicted=_mean([(w, p.parts) for w, p, _ in predictions]),
        low=sum(w * p.low for w, p, _ in predictions), high=sum(w * p.high for w, p, _ in predictions),
        happened=_mean([(1 / len(happened), parts) for parts in happened]),
        ratio=ratio_of_means([parts.step for parts in happened], predicted_steps), common=common, paired=paired,
    )  # fmt: skip


def ratio_of_means(numerator: list[float], denominator: list[float]) -> Ratio:
    """``mean(upper) / mean(lower)`` of independent positive values, at least two each.

    Its logarithm is taken as normal with the sum of both relative squared standard errors as variance (delta method),
    the quantile is Student's with the degrees of freedom of the smaller set. Updates that follow each other are alike,
    so it is somewhat too narrow.
    """
    means = [float(np.mean(values)) for values in (numerator, denominator)]
    errors = [float(np.var(values, ddof=1)) / len(values) for values in (numerator, denominator)]
    deviation = math.sqrt(sum(error / mean**2 for error, mean in zip(errors, means, strict=True)))
    wide = float(stdtrit(min(len(numerator), len(denominator)) - 1, 1 - (1 - LEVEL) / 2)) * deviation
    value = means[0] / means[1]
    return Ratio(value=value, low=value * math.exp(-wide), high=value * math.exp(wide))


def paired_ratio(
    numerator: Mapping[tuple[int, int], float], denominator: Mapping[tuple[int, int], float]
) -> tuple[int, Ratio | None]:
    """How many keys both have, and the ratio of the sums over these; its interval is a bootstrap over the keys."""
    keys = sorted(numerator.keys() & denominator.keys())
    if len(keys) < 2:
        return len(keys), None
    interval = ratio_interval([numerator[key] for key in keys], [denominator[key] for key in keys], range(len(keys)))
    return len(keys), Ratio(value=interval.mean, low=interval.low, high=interval.high)


def _by_replicas(planner: Planner, actual: Measured) -> list[tuple[float, Prediction, list[Parts]]]:
    """For each pair of replicas that occurred: its share of the updates, and what is predicted with it."""
    ranks = counts_of(actual.config)["learner"]
    occurred = Counter(tuple(sorted(update.replicas.items())) for update in actual.updates)
    predictions = []
    for replicas, count in occurred.items():
        counts = {**dict(replicas), "learner": ranks}
        setting = planner.setting(counts, actual.config)
        predictions.append((count / len(actual.updates), planner.model.predict(setting), planner.model.each(setting)))
    return predictions


def _mean(weighted: list[tuple[float, Parts]]) -> Parts:
    return Parts(
        rollout=sum(w * update.rollout for w, update in weighted),
        learning=sum(w * update.learning for w, update in weighted),
        sync=sum(w * update.sync for w, update in weighted),
        hidden=sum(w * update.hidden for w, update in weighted),
    )
