"""Calibrated interactive RL: the simulator is aligned with human logs before and *during* training.

One update is: collect groups of dialogues with the calibrated simulator, learn from them, sync the policy.
Every ``calibration.every`` updates the simulator is aligned again, because the policy has moved: from its
uncalibrated base, on the same human turns, each weighted by how often the *current* policy would reach its
history (density ratio, clipped), stopping on the monitor split. Nothing of the held-out people is seen.

``extra`` names further human turns for each re-calibration: ``on_policy`` asks people of the training population
for replies on the current policy's own histories, ``more_logs`` takes as many from a reserve of logs.

After "From Static Context to Calibrated Interactive RL" (arXiv 2605.26403), which aligns once.
"""

from itertools import islice

from calibrated_rl.algorithms.alignment import align_again, align_before_training, ask_people, more_logs
from calibrated_rl.algorithms.interactive import one_update
from calibrated_rl.algorithms.parts import ArmRecord, Parts
from calibrated_rl.dialogue import Dialogue
from calibrated_rl.learner.sample import Sample


def train(parts: Parts, seed: int, *, once: bool = False, extra: str = "") -> ArmRecord:
    """Train against a simulator that is kept aligned; ``once``: aligned before training only."""
    record = parts.begin("calibrated_once" if once else f"calibrated_{extra}".rstrip("_"), seed)
    config, budget = parts.config, parts.budget()
    every, asked = config.calibration.every, config.calibration.human_turns
    reserve = more_logs(parts)
    human_turns: list[Sample] = []
    latest: list[Dialogue] = []

    align_before_training(parts, record)
    while record.updates < config.training.updates:
        if not once and every and record.updates and record.updates % every == 0:
            if extra == "on_policy":
                human_turns += ask_people(parts, latest, asked, seed * 1000 + record.updates)
            elif extra == "more_logs":
                further = list(islice(reserve, asked))
                if len(further) < asked:
                    parts.say(f"calibration.reserve holds only {len(further)} of the {asked} further human turns")
                human_turns += further
            align_again(parts, record, human_turns)
        latest = one_update(parts, record, parts.simulator, budget)
        parts.report(record)
    record.human_turns += len(human_turns)
    return record
