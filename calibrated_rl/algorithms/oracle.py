"""Oracle: interactive RL with people of the training population themselves; only where people are a program."""

from calibrated_rl.algorithms.arm import Arm
from calibrated_rl.algorithms.interactive import one_update
from calibrated_rl.parts import Parts


def train(parts: Parts, seed: int) -> Arm:
    """Train against the scripted human; its replies are counted as human turns."""
    assert parts.human is not None, "the config check admits this arm only with a scripted human"
    arm = Arm(parts, "oracle", seed)
    while arm.running:
        one_update(arm, parts.human)
    arm.measure_shift(parts.human)
    return arm
