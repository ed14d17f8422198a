"""Calibrated interactive RL: the simulator is aligned with human logs before and *during* training.

One update is: collect groups of dialogues with the calibrated simulator, learn from them, sync the policy.
Every ``calibration.every`` updates the simulator is aligned again, because the policy has moved: from its
uncalibrated base, on the same human turns, each weighted by how often the *current* policy would reach its
history (density ratio, clipped), stopping on the monitor split. Nothing of the held-out people is seen.

After "From Static Context to Calibrated Interactive RL" (arXiv 2605.26403), which aligns once.
"""

from calibrated_rl.algorithms.interactive import one_update
from calibrated_rl.algorithms.parts import ArmRecord, Parts, TokenBudget


def train(parts: Parts, seed: int, once: bool = False) -> ArmRecord:
    """Train against a simulator that is kept aligned; ``once``: aligned before training only."""
    record = parts.begin("calibrated_once" if once else "calibrated", seed)
    budget = TokenBudget(parts.config.training.tokens_per_update)
    every = parts.config.calibration.every

    parts.calibrate(record, "calibrated", reweight=False)
    while record.updates < parts.config.training.updates:
        if not once and every and record.updates and record.updates % every == 0:
            parts.calibrate(record, f"calibrated-{seed}-{record.updates}", reweight=True)
        one_update(parts, record, parts.simulator, budget)
        parts.report(record)
    return record
