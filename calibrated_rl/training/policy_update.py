"""One update of the policy: credit for its dialogues, the learner's step, new weights for the replicas."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.advantages.base import CriticConfig, has_signal
from calibrated_rl.learner.advantages.checked import (
    build_advantage,
    critic_of,
    group_advantages,
    is_by_turn,
    turn_advantages,
)
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.losses.check import resolve_loss
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import CRITIC, POLICY, START
from calibrated_rl.learner.staleness import Staleness, fresh_turns
from calibrated_rl.training.critic import Critic
from calibrated_rl.training.shift_watch import Measurement
from calibrated_rl.training.timers import UpdateTimers
from calibrated_rl.training.turn_credit import credit_of_tokens, rewards_of_turns


@dataclass(frozen=True)
class Credit:
    """Of one dialogue."""

    of_sample: dict[str, Any]
    """As a field of its sample."""
    turns: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """[T] of its turns, where the advantage is by turn."""


@dataclass(frozen=True, kw_only=True)
class CreditedSamples:
    """The input of the learner's step."""

    samples: list[Sample]
    """One a dialogue: the policy's tokens, of which those that are fresh enough carry loss, and their advantage."""
    rewards: list[float]
    """Of all dialogues, group by group."""
    groups: int
    groups_with_signal: int
    staleness: Staleness = field(default_factory=Staleness)
    critic_lessons: list[tuple[Dialogue, NDArray[np.float64]]] = field(default_factory=list)
    """What a critic learns: each dialogue with a target [T] for the history before each of its turns."""

    @property
    def tokens(self) -> int:
        """Policy tokens that carry loss."""
        return sum(int(sample.tokens.mask.sum()) for sample in self.samples)


class PolicyUpdate:
    """Updates one arm's policy; the version of its weights is the number of updates that are done."""

    def __init__(
        self,
        config: RunConfig,
        learner: LearnerGroup,
        pool: ReplicaPool,
        timers: UpdateTimers,
        make_critic: Callable[[CriticConfig], Critic] | None = None,
        arm: str = "",
    ) -> None:
        """``make_critic``: called if the advantage needs one. ``arm``: whose settings of the loss count."""
        self._config, self._learner, self._pool, self._timers = config, learner, pool, timers
        self._loss = config.training.loss_of(arm)
        # The policy is kept near its start, whose log-probs are then needed at every update.
        self._uses_reference = resolve_loss(self._loss).needs_reference
        self._advantage = build_advantage(config.training.advantage, config.training.advantage_config)
        critic = critic_of(self._advantage)
        self._critic = make_critic(critic) if critic is not None and make_critic is not None else None

    @property
    def slots(self) -> list[str]:
        """The trained models of the learner that a checkpoint has to keep."""
        return [POLICY, *([CRITIC] if self._critic is not None and self._critic.loaded else [])]

    def advantages(
        self, groups: Sequence[Sequence[Dialogue]], update: int, penalties: Sequence[Sequence[float]] | None = None
    ) -> CreditedSamples:
        """Credit by group, and the reference policy's log-probs where the loss requires them.

        Args:
            penalties: taken from the return of each dialogue; they count for the credit, and not for ``rewards``.
        """
        with self._timers.measure("advantages"):
            credited = self._credited(groups, update, penalties or [[0.0] * len(group) for group in groups])
        if not self._uses_reference:
            return credited
        with self._timers.measure("reference"):
            temperature = self._config.policy.sampling.temperature
            reference = self._learner.log_probs(START, [s.tokens for s in credited.samples], temperature)
            samples = [replace(s, reference_logprobs=r) for s, r in zip(credited.samples, reference, strict=True)]
        return replace(credited, samples=samples)

    def _credited(
        self, groups: Sequence[Sequence[Dialogue]], update: int, penalties: Sequence[Sequence[float]]
    ) -> CreditedSamples:
        training = self._config.training
        samples: list[Sample] = []
        rewards: list[float] = []
        signal, staleness = 0, Staleness()
        values = self._values(groups)
        targets: list[NDArray[np.float64]] = []
        for number, (group, group_penalties) in enumerate(zip(groups, penalties, strict=True)):
            returns = [dialogue.outcome.episode_return for dialogue in group if dialogue.outcome is not None]
            rewards += returns
            signal += has_signal([value - penalty for value, penalty in zip(returns, group_penalties, strict=True)])
            credits = self._credit(group, group_penalties, None if values is None else values[number])
            if values is not None:
                targets += [turns + credit.turns for turns, credit in zip(values[number], credits, strict=True)]
            for dialogue, credit in zip(group, credits, strict=True):
                assert dialogue.policy_tokens is not None
                tokens, turn_ages = fresh_turns(dialogue.policy_tokens, update, training.max_staleness)
                staleness += turn_ages
                samples.append(Sample(tokens=tokens, name=dialogue.id, group=dialogue.group_id, **credit.of_sample))
        return CreditedSamples(
            samples=samples, rewards=rewards, groups=len(groups), groups_with_signal=signal, staleness=staleness,
            critic_lessons=[] if values is None else list(zip(chain(*groups), targets, strict=True)),
        )  # fmt: skip

    def _values(self, groups: Sequence[Sequence[Dialogue]]) -> list[list[NDArray[np.float64]]] | None:
        """The critic's, [T] a dialogue, group by group; None: there is no critic."""
        if self._critic is None:
            return None
        values = iter(self._critic.values(list(chain(*groups))))
        return [list(islice(values, len(group))) for group in groups]

    def _credit(
        self, group: Sequence[Dialogue], penalties: Sequence[float], values: Sequence[NDArray[np.float64]] | None
    ) -> list[Credit]:
        if not is_by_turn(self._advantage):
            returns = [
                dialogue.outcome.episode_return - penalty
                for dialogue, penalty in zip(group, penalties, strict=True)
                if dialogue.outcome is not None
            ]
            return [Credit({"advantage": float(a)}) for a in group_advantages(returns, self._advantage)]
        earned = [rewards_of_turns(dialogue) for dialogue in group]
        for rewards, penalty in zip(earned, penalties, strict=True):
            rewards[-1:] -= penalty  # of the whole dialogue, like the terminal reward
        of_turns = turn_advantages(earned, self._advantage, values)
        return [
            Credit({"token_advantages": credit_of_tokens(dialogue, turns)}, turns)
            for dialogue, turns in zip(group, of_turns, strict=True)
        ]

    def step(self, credited: CreditedSamples, measurement: Measurement | None = None) -> dict[str, float]:
        """The learner's optimizer steps; its metrics. A ``measurement`` that is due runs beside them, when the engines,
        which serve the weights from before the step until ``sync``, would have nothing to do."""
        if measurement is None:
            return self._step(credited)
        with self._timers.measure("measuring"):
            measurement.draw()  # is scored with the weights that the step replaces
        with ThreadPoolExecutor(1) as pool:
            stepping = pool.submit(self._step, credited)
            with self._timers.measure("measuring and stepping"):
                measurement.run_rollouts()
                metrics = stepping.result()
        with self._timers.measure("measuring"):
            measurement.estimate()
        seconds = self._timers.seconds
        seconds["measuring"] += max(0.0, seconds.pop("measuring and stepping") - seconds["step"])
        return metrics | {"seconds_measuring": seconds["measuring"]}

    def _step(self, credited: CreditedSamples) -> dict[str, float]:
        with self._timers.measure("step"):
            metrics = self._learner.step(
                POLICY, credited.samples, self._loss, minibatches=self._config.training.minibatches,
                temperature=self._config.policy.sampling.temperature,
            )  # fmt: skip
            if self._critic is not None:
                dialogues, targets = zip(*credited.critic_lessons, strict=True)
                metrics |= self._critic.step(dialogues, targets)
            return metrics

    def sync(self, version: int) -> None:
        """Send the learner's weights to the replicas, as ``version``: the number of updates that are done."""
        with self._timers.measure("weight_sync"):
            self._pool.publish(self._learner.weight_update(POLICY, version))
