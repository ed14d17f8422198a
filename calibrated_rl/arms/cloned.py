"""Cloning: imitates the successful dialogues of the calibration logs; no reinforcement learning at all.

The yardstick for static context RL: what the logs hold without any reward model. Same number of updates and of
loss tokens an update as the other arms; an update goes on through the successful logs in a fixed random order.
"""

from collections.abc import Iterator

from calibrated_rl.calibration.sft import SFT_LOSS, log_samples, shuffled
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import POLICY
from calibrated_rl.run.parts import Parts
from calibrated_rl.training.arm import Arm


def in_batches(samples: Iterator[Sample], tokens: int) -> Iterator[tuple[list[Sample], int]]:
    """Batches of at least ``tokens`` loss tokens, each with its number of them."""
    while True:
        batch, found = [], 0
        while found < tokens:
            batch.append(next(samples))
            found += int(batch[-1].tokens.mask.sum())
        yield batch, found


def train(parts: Parts, seed: int) -> Arm:
    """Train on successful logs alone."""
    arm = Arm(parts, "cloned", seed)
    config = parts.config.training
    successful = [log for log in parts.logs[Split.CALIBRATION] if log.outcome is not None and log.outcome.success]
    if not successful:
        raise UserError("the arm 'cloned' needs successful dialogues in the calibration logs, and there is none")
    samples = shuffled(log_samples(successful, Side.POLICY, parts.policy_chat), seed)
    batches = in_batches(samples, config.tokens_per_update)
    for _ in range(arm.updates):  # gone through in an earlier sitting
        next(batches)
    while arm.running:
        batch, tokens = next(batches)
        arm.log(parts.learner.step(POLICY, batch, SFT_LOSS, minibatches=config.minibatches))
        arm.updates += 1
        arm.policy_tokens += tokens
        arm.keep_checkpoint()
    parts.policy.publish(parts.learner.weights(POLICY), arm.updates)
    return arm
