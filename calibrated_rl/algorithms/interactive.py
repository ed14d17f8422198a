"""Interactive RL: whole dialogues with a user model, groups of them, one policy update a batch of groups.

Suffers the simulator-induced shift: the policy learns whatever pleases this user model.
"""

from calibrated_rl.algorithms.parts import ArmRecord, Parts, TokenBudget
from calibrated_rl.dialogue import Dialogue
from calibrated_rl.rollout.pool import ReplicaPool
from calibrated_rl.tasks.base import ScriptedHuman


def one_update(
    parts: Parts, record: ArmRecord, user: ReplicaPool | ScriptedHuman, budget: TokenBudget
) -> list[Dialogue]:
    """Collect groups with ``user`` up to the token budget, and learn from them; returns the dialogues."""
    groups = parts.collector.collect(
        parts.training_scenarios(record, budget.groups()),
        user,
        group_size=parts.config.training.group_size,
        arm=record.arm,
        update=record.updates,
        seed=record.seed,
    )
    before = record.policy_tokens
    parts.learn(record, groups)
    budget.saw(record.policy_tokens - before, len(groups))
    return [dialogue for group in groups for dialogue in group]


def train(parts: Parts, seed: int) -> ArmRecord:
    """Train against the simulator as it comes."""
    record = parts.begin("interactive", seed)
    budget = parts.budget()
    while record.updates < parts.config.training.updates:
        one_update(parts, record, parts.simulator, budget)
        parts.report(record)
    return record
