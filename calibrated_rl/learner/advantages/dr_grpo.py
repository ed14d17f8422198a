"""Dr. GRPO: ``r − mean``. Dividing by the deviation overweights groups that are nearly solved or nearly hopeless
(Understanding R1-Zero-like training, arXiv 2503.20783, section 3.1)."""

from dataclasses import dataclass

from calibrated_rl.learner.advantages.base import Floats


class DrGRPO:
    """By how much a dialogue is better than its group's mean, in the unit of the rewards."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        pass

    def __call__(self, rewards: Floats) -> Floats:
        return rewards - rewards.mean()
