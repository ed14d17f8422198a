"""Reward to go: ``A_{i,t} = G_{i,t} − mean_{j ≠ i} G_{j,1}``, where ``G_{i,t}`` is what dialogue ``i`` earns from its
turn ``t`` on. A turn gets no credit for what was earned before it (Sutton et al. 2000, the policy gradient theorem).
The baseline, the mean return of the group's other dialogues, depends on nothing that this dialogue did: it biases
nothing.

Where there is a terminal reward alone, this is ``rloo``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibrated_rl.learner.advantages.base import Floats, rewards_to_go


class RewardToGo:
    """What a dialogue earns from a turn on, less the mean return of the others of its group, in the unit of the
    rewards."""

    by_turn = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, rewards: Sequence[Floats]) -> Sequence[Floats]:
        returns = np.array([of_dialogue.sum() for of_dialogue in rewards])
        of_others = (returns.sum() - returns) / (len(returns) - 1)
        return [rewards_to_go(r) - baseline for r, baseline in zip(rewards, of_others, strict=True)]
