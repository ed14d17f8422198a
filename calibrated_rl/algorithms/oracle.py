"""Oracle: interactive RL with people of the training population themselves; only where people are a program."""

from calibrated_rl.algorithms.interactive import one_update
from calibrated_rl.algorithms.parts import ArmRecord, Parts


def train(parts: Parts, seed: int) -> ArmRecord:
    """Train against the scripted human; its replies are counted as human turns."""
    assert parts.human is not None, "the config check admits this arm only with a scripted human"
    record = parts.begin("oracle", seed)
    budget = parts.budget()
    while record.updates < parts.config.training.updates:
        one_update(parts, record, parts.human, budget)
        parts.report(record)
    return record
