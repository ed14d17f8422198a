"""Calibrated interactive RL: the simulator is aligned with human logs before and *during* training.

One update is: measure how far training is from real dialogues (every ``shift.every`` updates), collect groups of
dialogues with the calibrated simulator, learn from them, sync the policy.
Every ``calibration.every`` updates the simulator is aligned again, because the policy has moved. How, is up to
``calibration.method``; by default from its uncalibrated base, on the same human turns, each weighted by how often
the *current* policy would reach its history (density ratio, clipped), stopping on the monitor split. Nothing of the
held-out people is seen.

``extra`` names further human turns for each re-calibration: ``on_policy`` asks people of the training population
for replies on the current policy's own histories, ``more_logs`` takes as many from a reserve of logs.

After "From Static Context to Calibrated Interactive RL" (arXiv 2605.26403), which aligns once.
"""

from itertools import islice

from calibrated_rl.arms.interactive import one_update
from calibrated_rl.calibration.base import ExtraTurn
from calibrated_rl.run.parts import Parts
from calibrated_rl.training.alignment import align_again, align_before_training, ask_people, more_logs
from calibrated_rl.training.arm import Arm


def train(parts: Parts, seed: int, *, once: bool = False, extra: str = "") -> Arm:
    """Train against a simulator that is kept aligned; ``once``: aligned before training only."""
    arm = Arm(parts, "calibrated_once" if once else f"calibrated_{extra}".rstrip("_"), seed)
    every, asked = parts.config.calibration.every, parts.config.calibration.human_turns
    reserve = more_logs(parts)
    human_turns: list[ExtraTurn] = []

    def ask(update: int) -> list[ExtraTurn]:
        """The further human turns of the re-calibration before ``update``."""
        if extra == "on_policy":
            latest = parts.dialogues_of(arm.name, update - 1)
            return ask_people(parts, latest, asked, seed * 1000 + update)
        further = list(islice(reserve, asked)) if extra == "more_logs" else []
        if extra == "more_logs" and len(further) < asked:
            parts.say(f"calibration.reserve holds only {len(further)} of the {asked} further human turns")
        return further

    for update in range(every, arm.updates, every) if every else ():  # of an earlier sitting
        human_turns += ask(update)
    align_before_training(arm)
    while arm.running:
        if not once and every and arm.updates and arm.updates % every == 0:
            human_turns += ask(arm.updates)
            align_again(arm, human_turns)
        again = None if once or not every else (arm.updates // every + 1) * every
        one_update(arm, parts.simulator, until=again)
    arm.measure_shift(parts.simulator)
    arm.human_turns += len(human_turns)
    return arm
