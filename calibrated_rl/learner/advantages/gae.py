"""Generalised advantage estimation by turn (Schulman et al. 2016, arXiv 1506.02438, eqs. 11 to 16).

``A_t = Σ_l (γλ)^l δ_{t+l}`` with ``δ_t = r_t + γ V(h_{t+1}) − V(h_t)``, where ``h_t`` is the history before the
policy's turn ``t`` and the value of what follows the last turn is 0. ``V`` is a value head on the policy's own model,
the critic, which learns ``A_t + V(h_t)`` with each update. With ``λ = 1`` and ``γ = 1`` it is the reward to go less
``V``, which biases nothing; the smaller ``λ``, the more an error of the critic counts and the less the chance of later
turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from calibrated_rl.learner.advantages.base import CriticConfig, Floats
from calibrated_rl.settings.fields import Range, check_settings


class GAE:
    """Credit by turn with a critic, in the unit of the rewards."""

    by_turn = True
    needs_values = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        discount: Annotated[float, Range(above=0, at_most=1)] = 1.0
        """γ: what a reward counts that comes a turn later."""
        trace: Annotated[float, Range(at_least=0, at_most=1)] = 0.95
        """λ: 1 takes rewards as they came, 0 the critic's word for all that follows a turn."""
        critic: CriticConfig = field(default_factory=CriticConfig)
        """How the critic learns."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "advantage_config")
        self.config, self.critic = config, config.critic

    def __call__(self, rewards: Sequence[Floats], values: Sequence[Floats]) -> Sequence[Floats]:
        """
        Args:
            values: [T] of the history before each turn, one array a dialogue.
        """
        return [self._of(r, v) for r, v in zip(rewards, values, strict=True)]

    def _of(self, rewards: Floats, values: Floats) -> Floats:
        credit, later, following = np.zeros(len(rewards)), 0.0, 0.0
        for t in reversed(range(len(rewards))):
            error = rewards[t] + self.config.discount * following - values[t]
            later = credit[t] = error + self.config.discount * self.config.trace * later
            following = values[t]
        return credit
