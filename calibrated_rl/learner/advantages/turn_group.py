"""Group mean per turn: ``A_{i,t} = G_{i,t} − mean_{j ≠ i} G_{j,min(t, T_j)}``, where ``G_{i,t}`` is what dialogue ``i``
earns from its turn ``t`` on, and the mean is over those of the other dialogues that have a turn ``t``; where none has,
over all others at their last turns ``T_j``.

The natural form compares the *reward* of each turn with the mean of that turn's rewards and adds up what is left from
``t`` on, ``Σ_{s ≥ t} (r_{i,s} − mean_j r_{j,s})``. It subtracts as many terms as the dialogue has turns left, and where
the policy decides when to stop, that number is what it did: a baseline that depends on the action. Each further turn is
charged with what such turns earn on average, so that a policy is pushed to stop (reported for verl, issue 7244). Here
the baseline of a turn is one number, from dialogues other than its own: ``E[∇ log π · b] = b · E[∇ log π] = 0``.

Leaving the own dialogue out matters, too. With it, ``A`` is that of the others times ``(n − 1) / n`` for the ``n``
dialogues that have a turn ``t``: late turns, which few have, would count less than they should.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrated_rl.learner.advantages.base import Floats, rewards_to_go


class TurnGroup:
    """What a dialogue earns from a turn on, less what the others of its group earn from that turn on, in the unit of
    the rewards."""

    by_turn = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, rewards: Sequence[Floats]) -> Sequence[Floats]:
        to_go = [rewards_to_go(of_dialogue) for of_dialogue in rewards]
        return [
            values - [self._baseline([v for j, v in enumerate(to_go) if j != i], t) for t in range(len(values))]
            for i, values in enumerate(to_go)
        ]

    @staticmethod
    def _baseline(others: Sequence[Floats], turn: int) -> float:
        there = [values[turn] for values in others if len(values) > turn]
        return float(np.mean(there or [values[-1] for values in others if len(values)] or [0.0]))
