"""Interactive RL: whole dialogues with a user model, groups of them, one policy update a batch of groups.

Suffers the simulator-induced shift: the policy learns whatever pleases this user model.
"""

from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.run.parts import Parts
from calibrated_rl.tasks.base import ScriptedHuman
from calibrated_rl.training.arm import Arm


def one_update(arm: Arm, user: ReplicaPool | ScriptedHuman, until: int | None = None) -> None:
    """Measure how far ``user`` is from people, collect groups with it up to the token budget, learn from them.

    Args:
        until: the update before which ``user`` changes; None: it does not.
    """
    arm.measure_shift(user)
    arm.learn(arm.collect(user, until))


def train(parts: Parts, seed: int) -> Arm:
    """Train against the simulator as it comes."""
    arm = Arm(parts, "interactive", seed)
    while arm.running:
        one_update(arm, parts.simulator)
    arm.measure_shift(parts.simulator)
    return arm
