"""Cloning: imitates the successful dialogues of the calibration logs; no reinforcement learning at all.

The yardstick for static context RL: what the logs give without any reward model. Same number of updates and of loss
tokens an update as the other arms; an update takes the next successful logs in a fixed random order.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from calibrated_rl.config.arms import Arm, ArmStyle
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import UserError

if TYPE_CHECKING:
    from calibrated_rl.learner.sample import Sample
    from calibrated_rl.training.arm_run import ArmRun
    from calibrated_rl.training.training_run import TrainingRun


def in_batches(samples: "Iterator[Sample]", tokens: int) -> "Iterator[tuple[list[Sample], int]]":
    """Batches of at least ``tokens`` loss tokens, each with its number of them."""
    while True:
        batch, n_tokens = [], 0
        while n_tokens < tokens:
            batch.append(next(samples))
            n_tokens += int(batch[-1].tokens.mask.sum())
        yield batch, n_tokens


def successful(logs: Sequence[Dialogue]) -> list[Dialogue]:
    """Those that reached their goal."""
    return [log for log in logs if log.outcome is not None and log.outcome.success]


class Cloned(Arm["TrainingRun", "ArmRun"]):
    """Trains on successful logs alone."""

    name = "cloned"
    style = ArmStyle("cloned", "imitates successful logged dialogues", "#CC79A7", "v")
    order = 1
    meets = "nobody"
    learns_from_logs = True
    runs_rollouts = False

    def check_logs(self, logs: Mapping[Split, Sequence[Dialogue]], reserve: Sequence[Dialogue]) -> None:
        if not successful(logs[Split.CALIBRATION]):
            raise UserError(
                f"the arm '{self.name}' needs successful dialogues in the calibration logs, and there is none"
            )

    def train(self, run: "TrainingRun", seed: int) -> "ArmRun":
        from calibrated_rl.calibration.sft import SFT_LOSS, log_samples, shuffled
        from calibrated_rl.learner.slots import POLICY

        arm = run.begin(self.name, seed)
        training = run.inputs.config.training
        logs = successful(run.inputs.logs[Split.CALIBRATION])
        samples = shuffled(log_samples(logs, Side.POLICY, run.models.policy.chat), seed)
        batches = in_batches(samples, training.tokens_per_update)
        for _ in range(arm.updates):  # learned from before the arm was stopped
            next(batches)
        while arm.running:
            batch, tokens = next(batches)
            arm.log(run.cluster.learner.step(POLICY, batch, SFT_LOSS, minibatches=training.minibatches))
            arm.updates += 1
            arm.policy_tokens += tokens
            arm.checkpoint()
        arm.policy.sync(version=arm.updates)
        return arm
