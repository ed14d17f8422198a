"""REINFORCE leave-one-out: ``r_i − mean of the others = n / (n − 1) · (r_i − mean)`` (Back to basics, arXiv 2402.14740,
section 3.3)."""

from dataclasses import dataclass

from calibrated_rl.learner.advantages.base import Floats


class RLOO:
    """By how much a dialogue is better than the mean of the others of its group, in the unit of the rewards."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, rewards: Floats) -> Floats:
        return (rewards - rewards.mean()) * len(rewards) / (len(rewards) - 1)
