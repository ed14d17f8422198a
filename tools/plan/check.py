"""What was predicted beside what then happened in a run with other settings."""

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
    """Of two means, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """Seconds of an update, as predicted and as they were."""

    source: str
    updates: int
    """That could be compared."""
    beside: list[str]
    """Settings that differ, too, and that the model knows nothing of."""
    predicted: Parts
    low: float
    high: float
    """Bounds of the predicted step."""
    happened: Parts
    ratio: Ratio
    """What happened by what was predicted, of the step."""
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
    after = read_measured(run, planner.arm)
    beside = unlike(planner.measured, after.config)
    predictions = _by_replicas(planner, after)
    happened = [Parts(rollout=u.rollout, learning=u.learning, sync=u.sync, hidden=u.hidden) for u in after.updates]
    before = [
        sum(weight * each[i].step for weight, _, each in predictions)
        for i in range(len(planner.model.updates))
    ]
    common, paired = paired_ratio(
        {(u.seed, u.update): parts.step for u, parts in zip(after.updates, happened, strict=True)},
        {(u.seed, u.update): step for u, step in zip(planner.model.updates, before, strict=True)},
    )
    return Checked(
        source=str(run), updates=len(happened), beside=beside,
        predicted=_mean([(w, p.parts) for w, p, _ in predictions]),
        low=sum(w * p.low for w, p, _ in predictions), high=sum(w * p.high for w, p, _ in predictions),
        happened=_mean([(1 / len(happened), parts) for parts in happened]),
        ratio=ratio_of_means([parts.step for parts in happened], before), common=common, paired=paired,
    )  # fmt: skip


def ratio_of_means(upper: list[float], lower: list[float]) -> Ratio:
    """``mean(upper) / mean(lower)`` of independent positive values, at least two each.

    Its logarithm is taken as normal with the sum of both relative squared standard errors as variance (delta method),
    the quantile is Student's with the degrees of freedom of the smaller set. Updates that follow each other are alike,
    so it is somewhat too narrow.
    """
    means = [float(np.mean(each)) for each in (upper, lower)]
    errors = [float(np.var(each, ddof=1)) / len(each) for each in (upper, lower)]
    deviation = math.sqrt(sum(error / mean**2 for error, mean in zip(errors, means, strict=True)))
    wide = float(stdtrit(min(len(upper), len(lower)) - 1, 1 - (1 - LEVEL) / 2)) * deviation
    value = means[0] / means[1]
    return Ratio(value=value, low=value * math.exp(-wide), high=value * math.exp(wide))


def paired_ratio(
    upper: Mapping[tuple[int, int], float], lower: Mapping[tuple[int, int], float]
) -> tuple[int, Ratio | None]:
    """How many keys both have, and the ratio of the sums over these; its interval is a bootstrap over the keys."""
    keys = sorted(upper.keys() & lower.keys())
    if len(keys) < 2:
        return len(keys), None
    found = ratio_interval([upper[key] for key in keys], [lower[key] for key in keys], range(len(keys)))
    return len(keys), Ratio(value=found.mean, low=found.low, high=found.high)


def _by_replicas(planner: Planner, after: Measured) -> list[tuple[float, Prediction, list[Parts]]]:
    """For each pair of replicas that occurred: its share of the updates, and what is predicted with it."""
    ranks = counts_of(after.config)["learner"]
    occurred = Counter(tuple(sorted(update.replicas.items())) for update in after.updates)
    found = []
    for replicas, count in occurred.items():
        counts = {**dict(replicas), "learner": ranks}
        setting = planner.setting(counts, after.config)
        found.append((count / len(after.updates), planner.model.predict(setting), planner.model.each(setting)))
    return found


def _mean(weighted: list[tuple[float, Parts]]) -> Parts:
    return Parts(
        rollout=sum(w * parts.rollout for w, parts in weighted),
        learning=sum(w * parts.learning for w, parts in weighted),
        sync=sum(w * parts.sync for w, parts in weighted),
        hidden=sum(w * parts.hidden for w, parts in weighted),
    )
