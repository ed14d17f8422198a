"""Outcome transfer: do outcomes with the simulator predict outcomes with human users?

Given policies (checkpoints of all arms) that each met the training simulator and the held-out human on scenarios.

- ``success_ece``: expected calibration error (``ending.py`` has formula and source) of the success rate that the
  simulator shows for a policy and scenario, as the probability of success with the human there. The rates are taken
  as exact. With one dialogue of the simulator a scenario they are 0 or 1, and even a perfect simulator's chance then
  looks like overconfidence: give rates over several dialogues. The null band also takes outcomes as independent.
- ``rank_spearman``, ``rank_kendall``: rank correlation over policies between mean reward with the simulator and with
  the human (Spearman 1904; Kendall's tau-b, 1945). Is the policy that looks best the one that is best?
- ``exploitation``: mean reward with the simulator minus mean reward with the human, on common scenarios, over all
  policies, and ``exploitation:POLICY`` for each. Above 0 and growing over training, the policy learns what works with
  the simulator alone.

Scenarios are resampled, jointly for all policies and both sides. For the rank correlations it is policies instead:
their mean rewards have the noise of the scenarios in them already, and resampling both would count it twice. Below
``LEAST_POLICIES`` of them the limits are -1 and 1, because then even a perfect order comes about by chance too often,
and the note has the probability of that in every case.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from scipy.stats import kendalltau, rankdata

from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Positive, Seed
from calibrated_rl.shift.base import Estimate
from calibrated_rl.shift.interface import RESAMPLES, Estimator, Floats
from calibrated_rl.shift.probabilities.ending import calibration_error
from calibrated_rl.statistics.intervals import LEVEL, Scores, ratio_interval

LEAST_POLICIES = 5
_EXACT = 7
"""Up to so many policies all orders are tried for the probability under chance; above, ``_ORDERS`` random ones."""
_ORDERS = 5000


@dataclass(frozen=True, kw_only=True)
class PolicyOutcomes:
    """What one policy earned, by scenario; a scenario that one side lacks is not used."""

    policy: str
    simulator_reward: Scores
    human_reward: Scores
    simulator_success: Scores
    """Success rate, 0 to 1, over the policy's dialogues with the simulator on the scenario."""
    human_success: Scores
    """0 or 1, or a rate over several dialogues."""

    def common(self) -> list[str]:
        return sorted(
            set(self.simulator_reward) & set(self.human_reward) & set(self.simulator_success) & set(self.human_success)
        )


class OutcomeTransfer(Estimator[Sequence[PolicyOutcomes]]):
    """See the module's docstring.

    ``measure`` raises UserError where there is no policy, two have the same name, or one has no scenario with
    an outcome on both sides.
    """

    @dataclass(frozen=True)
    class Config:
        bins: Positive = 10
        """Bins of the calibration curve."""
        seed: Seed = 0
        """Of all random draws."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config = config or self.Config()
        if config.bins < 1:
            raise UserError("outcome transfer: there must be at least one bin")

    def measure(self, data: Sequence[PolicyOutcomes]) -> dict[str, Estimate]:
        if not data:
            raise UserError("outcome transfer: there is no policy")
        if len({p.policy for p in data}) < len(data):
            raise UserError("outcome transfer: two policies have the same name")
        common = {p.policy: p.common() for p in data}
        if lacking := [name for name, keys in common.items() if not keys]:
            raise UserError(f"outcome transfer: no scenario of policy '{lacking[0]}' has an outcome with both sides")
        pairs = [(p, key) for p in data for key in common[p.policy]]
        estimates = {
            "success_ece": calibration_error(
                "success_ece",
                [p.simulator_success[key] for p, key in pairs],
                [p.human_success[key] for p, key in pairs],
                [key for _, key in pairs],
                bins=self.config.bins,
                seed=self.config.seed,
            )
        }
        if {p.simulator_success[key] for p, key in pairs} <= {0.0, 1.0}:
            note = "rates from one dialogue each: by chance alone it is positive, and it has no band"
            estimates["success_ece"] = replace(estimates["success_ece"], null_low=None, null_high=None, notes=(note,))
        estimates |= self._exploitation(data, common)
        return estimates | self._ranks(data, common)

    def _exploitation(self, data: Sequence[PolicyOutcomes], common: Mapping[str, list[str]]) -> dict[str, Estimate]:
        gaps = {p.policy: [p.simulator_reward[k] - p.human_reward[k] for k in common[p.policy]] for p in data}
        estimates = {}
        for name, policies in {"exploitation": list(gaps), **{f"exploitation:{p}": [p] for p in gaps}}.items():
            # Each policy counts the same, however many scenarios it has.
            values = [gap / len(gaps[p]) for p in policies for gap in gaps[p]]
            weights = [1 / len(gaps[p]) for p in policies for _ in gaps[p]]
            interval = ratio_interval(values, weights, [k for p in policies for k in common[p]], self.config.seed)
            estimates[name] = Estimate(name=name, value=interval.mean, low=interval.low, high=interval.high)
        return estimates

    def _ranks(self, data: Sequence[PolicyOutcomes], common: Mapping[str, list[str]]) -> dict[str, Estimate]:
        sides = [[(p.simulator_reward, p.human_reward)[side] for p in data] for side in (0, 1)]
        means = np.array(
            [[np.mean([of[k] for k in common[p.policy]]) for p, of in zip(data, side, strict=True)] for side in sides]
        )
        rng = np.random.default_rng(self.config.seed)
        resampled = [
            (spearman(*pair), kendall(*pair))
            for pair in (means[:, rng.integers(len(data), size=len(data))] for _ in range(RESAMPLES))
        ]
        return {
            f"rank_{kind}": self._rank(f"rank_{kind}", means, np.array(resampled)[:, i])
            for i, kind in enumerate(("spearman", "kendall"))
        }

    def _rank(self, name: str, means: Floats, resampled: Floats) -> Estimate:
        measure = spearman if name == "rank_spearman" else kendall
        value, policies = measure(*means), means.shape[1]
        if math.isnan(value):
            note = "fewer than two policies, or all earned the same on one side: there is no order"
            return Estimate(name=name, value=value, low=value, high=value, notes=(note,))
        low, high = -1.0, 1.0
        finite = resampled[np.isfinite(resampled)]
        if policies >= LEAST_POLICIES and len(finite):
            low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        rng = np.random.default_rng((self.config.seed, 5))
        orders = (
            list(permutations(range(policies)))
            if policies <= _EXACT
            else [tuple(rng.permutation(policies)) for _ in range(_ORDERS)]
        )
        chance = np.mean([measure(means[0], means[1][list(order)]) >= value - 1e-12 for order in orders])
        note = f"{policies} policies; in random order at least as high with probability {chance:.3f}"
        return Estimate(name=name, value=value, low=float(min(low, value)), high=float(max(high, value)), notes=(note,))


def spearman(a: Floats, b: Floats) -> float:
    """Correlation of ranks, ties at their mean rank; NaN where a side has no order."""
    ranks_a, ranks_b = (rankdata(side) - (len(side) + 1) / 2 for side in (a, b))
    size = math.sqrt(float(ranks_a @ ranks_a) * float(ranks_b @ ranks_b))
    return float(ranks_a @ ranks_b) / size if size > 0 else math.nan


def kendall(a: Floats, b: Floats) -> float:
    """Kendall's tau-b; NaN where a side has no order."""
    return float(kendalltau(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else math.nan
