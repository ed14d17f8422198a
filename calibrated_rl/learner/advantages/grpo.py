"""GRPO: ``(r − mean) / (std + epsilon)``, population standard deviation (DeepSeekMath, arXiv 2402.03300, section
4.1.2)."""

from dataclasses import dataclass
from typing import Annotated

from calibrated_rl.learner.advantages.base import Floats
from calibrated_rl.settings.fields import Range, check_settings


class GRPO:
    """By how many standard deviations of its group a dialogue is better than the group's mean."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        epsilon: Annotated[float, Range(above=0)] = 1e-6
        """Added to the deviation, in the unit of the rewards."""

    def __init__(self, config: Config) -> None:
        check_settings(config, "grpo")
        self.config = config

    def __call__(self, rewards: Floats) -> Floats:
        centred = rewards - rewards.mean()
        return centred / (rewards.std() + self.config.epsilon)
