"""Reinforcement learning of the simulator: its reward is how much a discriminator takes its reply for the human's.

Each round (``rounds.py``) takes steps with a discriminator that was fitted to the simulator as it was when the round
began. A step samples a group of replies on each of some logged histories; the reward of a reply is its log-odds of
being the human's, within ``reward_limit``, by the discriminator that was not fitted to its dialogue. Credit is the
reward minus its group's mean, and the loss is the learner's own GRPO (Shao et al., "DeepSeekMath", arXiv 2402.03300)
with a penalty ``kl_coefficient · KL(simulator ‖ reference)``. The reward by a discriminator, after the Turing test, is
that of Li et al., "Adversarial Learning for Neural Dialogue Generation" (arXiv 1701.06547).

The best discriminator's log-odds are ``log p / q``, with the human's probability ``p`` of the reply and that of the
simulator at the beginning of the round, ``q``. What maximises ``E[r] - beta KL(pi || reference)`` is ``pi = reference ·
exp(r / beta)``, up to a constant (Rafailov et al., arXiv 2305.18290, eq. 4). So:

- With the simulator at the beginning of the round as the reference, ``pi = q (p / q)^(1 / beta)``: the human's
  distribution at ``beta = 1``, on the way to it above, beyond it below.
- With the fine-tuned start as the reference of all rounds the first round is the same. Later ones, whose rewards are
  near 0, go back towards the start, and stay where ``q = (p · start^beta)^(1 / (1 + beta))``.

For that the reward must be in nats: it is not divided by the deviation of its group, which would make ``beta`` another
one for each history.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.discriminator import Floats
from calibrated_rl.calibration.replies import SampledReply
from calibrated_rl.calibration.rounds import SEEDS_PER_ROUND, AdversarialRounds, Judgement, RoundsConfig, first_and_last
from calibrated_rl.learner.advantages.base import has_signal
from calibrated_rl.learner.advantages.checked import group_advantages
from calibrated_rl.learner.advantages.dr_grpo import DrGRPO
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import SIMULATOR, SIMULATOR_REFERENCE
from calibrated_rl.settings.fields import Positive, Range

GRPO_LOSS = "calibrated_rl.learner.losses.grpo:GRPO"


class Turing(AdversarialRounds):
    """Rounds of GRPO on a discriminator's reward."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(RoundsConfig):
        """What a round learns from, and how fast."""

        steps: Annotated[int, Range(at_least=1, below=SEEDS_PER_ROUND)] = 30
        """Optimizer steps of a round, each with new samples."""
        batch_histories: Positive = 64
        """Histories a step."""
        group_size: Annotated[int, Range(at_least=2)] = 8
        """Replies to each history."""
        reward_limit: Annotated[float, Range(above=0)] = 5.0
        """Log-odds, in nats, beyond which a reward is cut, on both sides: of more a discriminator cannot be sure."""
        kl_coefficient: Annotated[float, Range(at_least=0)] = 1.0
        """β: weight of the divergence from the reference, in nats of reward a nat."""
        reference: Literal["round", "start"] = "round"
        """What the simulator is held near to: itself at the beginning of the ``round``, or the ``start`` of all."""

    whole_distribution: ClassVar[str] = "learns by GRPO from what the simulator says, whose log-probs must be its own"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config
        self._has_reference = False

    def steps(self, replies: int) -> int:
        return self.config.steps

    def refine(self, inputs: CalibrationInputs) -> dict[str, float]:
        self._has_reference = False
        try:
            return super().refine(inputs)
        finally:
            if self._has_reference:
                inputs.learner.unload(SIMULATOR_REFERENCE)

    def train(
        self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: Callable[[int], None]
    ) -> dict[str, float]:
        config = self.config
        if config.reference == "round" or not self._has_reference:  # the folder has what the round begins with
            inputs.learner.load(SIMULATOR_REFERENCE, inputs.folder, trainable=False)
            self._has_reference = True
        loss = (GRPO_LOSS, {"kl_coefficient": config.kl_coefficient})
        random = np.random.default_rng((inputs.seed, inputs.update, number))
        steps: list[dict[str, float]] = []
        for step in range(1, config.steps + 1):
            rows = random.permutation(len(judgement.replies))[: config.batch_histories]
            # The judgement before this round took the first seed of the round before.
            seed = (number - 1) * SEEDS_PER_ROUND + step
            groups = inputs.sample_replies([judgement.replies[row] for row in rows], config.group_size, seed)
            samples, metrics = self._credited(inputs, judgement, rows, groups)
            if samples:
                learned = inputs.learner.step(SIMULATOR, samples, loss, temperature=inputs.simulator_temperature)
                steps.append(metrics | {"kl": learned["kl_reference_k3"], "entropy": learned["entropy"]})
            done(step)
        names = ("reward", "kl", "entropy", "groups_with_signal")
        return {"steps": float(len(steps))} | first_and_last(steps, names)

    def _credited(
        self, inputs: CalibrationInputs, judgement: Judgement, rows: NDArray[np.int64],
        groups: list[list[SampledReply]],
    ) -> tuple[list[Sample], dict[str, float]]:  # fmt: skip
        """The replies with their credit and their log-probs under the reference; metrics of the step."""
        replies = [(int(row), reply) for row, group in zip(rows, groups, strict=True) for reply in group]
        if not replies:
            return [], {}
        ids = [np.asarray(inputs.simulator_chat.said(reply.text), np.int32) for _, reply in replies]
        limit = self.config.reward_limit
        reward = judgement.log_odds([row for row, _ in replies], ids).clip(-limit, limit)
        sizes = [len(group) for group in groups if group]
        by_group = np.split(reward, np.cumsum(sizes)[:-1])
        advantages = credit(by_group)
        tokens = [reply.tokens for _, reply in replies]
        reference = inputs.learner.log_probs(SIMULATOR_REFERENCE, tokens, inputs.simulator_temperature)
        samples = [
            Sample(tokens=t, advantage=float(a), reference_logprobs=r, name=judgement.pairs[row].dialogue)
            for t, a, r, (row, _) in zip(tokens, advantages, reference, replies, strict=True)
        ]
        signal = float(np.mean([has_signal(group.tolist()) for group in by_group]))
        return samples, {"reward": float(reward.mean()), "groups_with_signal": signal}


def credit(rewards: list[Floats]) -> NDArray[np.float32]:
    """[N] each reply's reward minus its group's mean, group by group; 0 in groups without variance."""
    advantage = DrGRPO(DrGRPO.Config())
    return np.concatenate([group_advantages(group.tolist(), advantage) for group in rewards])
