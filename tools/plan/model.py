"""Predicts the duration of an update with other numbers: a pure function of measured updates.

An update ``i`` was measured with ``r`` replicas of a side, ``k`` learner ranks and a budget of tokens. With others
(written with a prime; ``q`` is the ratio of the budgets):

- **Rollouts.** ``R' = R · Σ_side w · (1 + q B / (r' h)) / (1 + B / (r h))``. ``B`` is the mean number of turns in
  flight on the side, ``w`` its share of those of both sides, ``h`` the side's ``scaling.half_batch``: a turn among
  ``B / r`` others in a replica's batch takes ``1 + B / (r h)`` times as long as alone. This is the model of
  ``inference/scaling.py``. The number of dialogues, and so ``B``, is linear in the budget; the time is not:
  where replicas are half empty, twice the dialogues take hardly longer. Work of the driver between turns is
  attributed to the sides, so replicas gain a little less.
- **Learning.** ``L' = (L − A) · q · k / k' + A'``: linear in tokens, divided by ranks. ``A`` is what ranks on ``m``
  machines take to add up gradients, ``steps · 2 (m − 1) / m · bytes / bandwidth`` (a ring). A fixed part of a step,
  such as reading the weights, is not separated: much larger budgets are predicted too slow, much smaller too fast.
- **Sync.** ``S' = S + bytes / bandwidth`` where replicas are on other machines than the learner: replicas load at the
  same time, and Ray forwards copies. The rest of ``S`` depends on the same bytes, and is as measured.
- **Occasions** (measuring shift, checkpoints, aligning) take as long as they did, aligning divided by ranks.

The step is the sum of the three less what overlaps: the share of the shorter one, rollouts or the other two, that
overlapped with the longer one when it was measured. Where they take turns (``training.max_staleness`` 0) that is
nothing.

Assumed is that each replica and each rank has a device of its
own, as fast as the one that was measured, and that dialogues are as long as those that were measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrated_rl.errors import UserError
from calibrated_rl.inference.scaling import crowding
from calibrated_rl.statistics.intervals import mean_interval
from tools.plan.measured import SIDES, Measured, UpdateMeasured

HALF_BATCH_WITHIN = 2.0
"""``half_batch`` may be wrong by this factor either way: the bounds of predictions cover both. Measured values lie
between 11 and 17 on the same two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The settings of a run that the model includes."""

    replicas: Mapping[str, int]
    """By side."""
    ranks: int
    tokens: int
    """``training.tokens_per_update``."""
    learner_machines: int = 1
    """Machines with ranks."""
    machines: int = 1
    """Machines with ranks or replicas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The traffic between machines."""

    weight_bytes: int
    bytes_per_second: float

    def all_reduce_seconds(self, optimizer_steps: float, learner_machines: int) -> float:
        """Seconds in which ranks sum their gradients, as many bytes as weights, over ``optimizer_steps``."""
        share = 2 * (learner_machines - 1) / learner_machines
        return optimizer_steps * share * self.weight_bytes / self.bytes_per_second

    def send_seconds(self, machines: int) -> float:
        """Seconds in which new weights reach other machines."""
        return self.weight_bytes / self.bytes_per_second if machines > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Seconds of an update."""

    rollout: float
    learning: float
    sync: float
    hidden: float
    """The part of the rollouts that overlaps with learning and sync."""

    @property
    def step(self) -> float:
        return self.rollout + self.learning + self.sync - self.hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The predicted parts of an update, in seconds; mean over the measured ones."""

    parts: Parts
    low: float
    high: float
    """Bounds of the step: 95 % interval of the mean over the spread of the measured updates, and that with a
    ``half_batch`` that is wrong by ``HALF_BATCH_WITHIN`` either way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """See the module's docstring."""

    updates: Sequence[UpdateMeasured]
    measured_setting: Setting
    """The setting of the measurements; the replicas are those of each update."""
    half_batch: Mapping[str, float]
    network: Network

    def predict(self, setting: Setting) -> Prediction:
        """An update with ``setting``."""
        parts_by_update = self.each(setting)
        count = len(parts_by_update)
        bounds = []
        for factor in (1.0, HALF_BATCH_WITHIN, 1 / HALF_BATCH_WITHIN):
            interval = mean_interval([parts.step for parts in self.each(setting, factor)])
            bounds += [interval.low, interval.high]
        return Prediction(parts=_mean(parts_by_update, count), low=min(bounds), high=max(bounds))

    def mean(self, setting: Setting) -> Parts:
        """The same without bounds."""
        return _mean(self.each(setting), len(self.updates))

    def each(self, setting: Setting, half_batch_factor: float = 1.0) -> list[Parts]:
        """The predicted parts of each measured update."""
        half_batch = {side: value * half_batch_factor for side, value in self.half_batch.items()}
        tokens = setting.tokens / self.measured_setting.tokens
        sending = self.network.send_seconds(setting.machines) - self.network.send_seconds(
            self.measured_setting.machines
        )
        parts_by_update = []
        for update in self.updates:
            rollout = rollout_seconds(update, setting.replicas, tokens, half_batch)
            learning = learning_seconds(update, self.measured_setting, setting, self.network)
            sync = max(0.0, update.sync + sending)
            hidden = overlap(update) * min(rollout, learning + sync)
            parts_by_update.append(Parts(rollout=rollout, learning=learning, sync=sync, hidden=hidden))
        return parts_by_update

    def occasion(self, name: str, seconds: float, setting: Setting) -> float:
        """Seconds of a measured occasion with ``setting``."""
        return seconds * self.measured_setting.ranks / setting.ranks if name == "aligning" else seconds


def model_of(measured: Measured, before: Setting, bytes_per_second: float) -> CostModel:
    """The model of a run's updates.

    Args:
        before: the run's own numbers.

    Raises:
        UserError: the run did not record what dialogues waited for.
    """
    if any(set(update.in_flight) != set(SIDES) for update in measured.updates):
        raise UserError(
            f"{measured.source} has no metrics 'seconds_in_turns_policy' and 'seconds_in_turns_simulator': it was made "
            "by an older version, and does not say which side dialogues waited for; measure again"
        )
    config = measured.config
    return CostModel(
        updates=measured.updates, measured_setting=before,
        half_batch={
            "policy": config.policy.scaling.half_batch, "simulator": config.simulator.scaling.half_batch
        },
        network=Network(weight_bytes=measured.weight_bytes, bytes_per_second=bytes_per_second),
    )  # fmt: skip


def rollout_seconds(
    update: UpdateMeasured, replicas: Mapping[str, int], tokens: float, half_batch: Mapping[str, float]
) -> float:
    """Rollouts of a measured update with other ``replicas`` and ``tokens`` times as many tokens.

    Where nothing was in flight on either side, the time is linear in the tokens.
    """
    total = sum(update.in_flight.values())
    if total <= 0:
        return update.rollout * tokens
    factor = sum(
        in_flight / total
        * crowding(tokens * in_flight / replicas[side], half_batch[side])
        / crowding(in_flight / update.replicas[side], half_batch[side])
        for side, in_flight in update.in_flight.items()
    )  # fmt: skip
    return update.rollout * factor


def overlap(update: UpdateMeasured) -> float:
    """Share of the shorter one, rollouts or learning with sync, that overlapped with the longer one, 0 to 1."""
    shorter = min(update.rollout, update.learning + update.sync)
    return min(1.0, update.hidden / shorter) if shorter > 0 else 0.0


def learning_seconds(update: UpdateMeasured, measured_setting: Setting, setting: Setting, network: Network) -> float:
    """Learning of a measured update with the ranks and tokens of ``after``."""
    steps = update.optimizer_steps
    work = max(0.0, update.learning - network.all_reduce_seconds(steps, measured_setting.learner_machines))
    scaled = work * setting.tokens / measured_setting.tokens * measured_setting.ranks / setting.ranks
    return scaled + network.all_reduce_seconds(steps, setting.learner_machines)


def _mean(parts_by_update: Sequence[Parts], count: int) -> Parts:
    return Parts(
        rollout=sum(update.rollout for update in parts_by_update) / count,
        learning=sum(update.learning for update in parts_by_update) / count,
        sync=sum(update.sync for update in parts_by_update) / count,
        hidden=sum(update.hidden for update in parts_by_update) / count,
    )
