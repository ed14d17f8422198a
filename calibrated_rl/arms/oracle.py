"""Oracle: interactive RL with people of the training population themselves; only where people are a program."""

from calibrated_rl.arms.interactive import one_update
from calibrated_rl.run.parts import Parts
from calibrated_rl.training.arm import Arm


def train(parts: Parts, seed: int) -> Arm:
    """Train against the scripted human; its replies are counted as human turns."""
    assert parts.human is not None, "the config check admits this arm only with a scripted human"
    arm = Arm(parts, "oracle", seed)
    while arm.running:
        one_update(arm, parts.human)
    arm.measure_shift(parts.human)
    return arm
