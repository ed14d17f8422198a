"""The contract of an advantage: credit for the dialogues of a group, from their rewards.

The dialogues of a group are of the same scenario and differ in their samples alone. One kind of advantage gives each
dialogue a number (``Advantage``), the other each of its turns (``TurnAdvantage``, which says ``by_turn = True``). The
caller guarantees that the rewards are finite, that there are at least two dialogues, and that they differ. A group
whose rewards are all equal teaches nothing: its credit is 0 without a call, and ``has_signal`` lets the caller count
such groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.learner.config import AdamWConfig
from calibrated_rl.settings.fields import NotNegative, Positive, Range, check_settings

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CriticConfig:
    """The pace of a critic: a value head on a copy of the policy, fitted to the logs' returns before training, and
    trained with each update."""

    fit_epochs: NotNegative = 4
    """Passes over the calibration logs before training, at most; fewer where the monitor logs' returns are predicted no
    better. 0: it begins with a value of 0 for all histories."""
    fit_learning_rate: Annotated[float, Range(above=0, at_most=1)] = 1e-3
    """At its highest, in those."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 3e-4
    """While the policy trains."""
    warmup_steps: NotNegative = 2
    """The first so many optimizer steps ramp it up linearly."""
    minibatches: Positive = 4
    """Optimizer steps that one update's dialogues are cut into."""
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        check_settings(self, "advantage_config.critic")


class Advantage(Protocol):
    """A pure function of the rewards of one group. Built as ``AdvantageClass(AdvantageClass.Config(...))``."""

    def __call__(self, rewards: Floats) -> Floats:
        """The advantage [G] of each dialogue from the ``rewards`` [G], its return; finite."""
        ...


class TurnAdvantage(Protocol):
    """The same for each turn that the policy spoke."""

    by_turn: bool
    """True."""

    def __call__(self, rewards: Sequence[Floats]) -> Sequence[Floats]:
        """The advantages [T] of the turns of each dialogue, from their rewards [T]: what each turn earned, the terminal
        reward with the last. The number of turns T differs from dialogue to dialogue, and where the policy decides when
        to stop it is part of what the policy did."""
        ...


class CriticAdvantage(Protocol):
    """The same from rewards and the values of a critic, which is trained beside the policy."""

    by_turn: bool
    """True."""
    needs_values: bool
    """True."""
    critic: CriticConfig

    def __call__(self, rewards: Sequence[Floats], values: Sequence[Floats]) -> Sequence[Floats]:
        """The advantages [T] of the turns of each dialogue from their ``rewards`` [T] and the ``values`` [T] of the
        histories before them. The critic learns advantage plus value."""
        ...


def has_signal(rewards: Sequence[float]) -> bool:
    """Whether the rewards of a group differ at all."""
    values = np.asarray(rewards, np.float64)
    return len(values) > 1 and float(np.ptp(values)) > 1e-9


def rewards_to_go(rewards: Floats) -> Floats:
    """[T] the sum of each turn's reward and of those that follow."""
    return np.cumsum(rewards[::-1])[::-1]


def differ(rewards: Sequence[Floats]) -> bool:
    """Whether the dialogues of a group differ in the rewards to go of any of their turns."""
    to_go = [rewards_to_go(of_dialogue) for of_dialogue in rewards]
    longest = max(map(len, to_go), default=0)
    return any(has_signal([values[t] for values in to_go if t < len(values)]) for t in range(longest))
