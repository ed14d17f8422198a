"""Reinforcement learning of the simulator: its reward is how much a discriminator takes its reply for the human's.

Each round (``rounds.py``) takes steps with a discriminator that was fitted to the simulator as it was when the round
began. A step samples a group of replies on each of some logged histories; the reward of a reply is its log-odds of
being the human's, within ``reward_limit``, by the discriminator that was not fitted to its dialogue. Credit is the
reward minus its group's mean, and the loss is the learner's own GRPO (Shao et al., "DeepSeekMath", arXiv 2402.03300)
with a penalty ``kl_coefficient · KL(simulator ‖ start)``. The reward by a discriminator, after the Turing test, is that
of Li et al., "Adversarial Learning for Neural Dialogue Generation" (arXiv 1701.06547).

Why log-odds, and not divided by the group's deviation: the best discriminator's are ``log p / q``, the human's
probability of the reply over the simulator's, and what maximises ``E[r] − β KL(simulator ‖ start)`` is ``start ·
exp(r / β)`` up to a constant. In units of nats the two terms can be weighed: where rounds do not change the simulator
any more, ``log p / q = β log q / start``, hence ``q ∝ (p · start^β)^(1 / (1 + β))``: the human's replies, up to what β
holds back. Divided by the deviation of each group, it would be another β for each history.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.discriminator import Floats
from calibrated_rl.calibration.replies import SampledReply
from calibrated_rl.calibration.rounds import SEEDS_PER_ROUND, AdversarialRounds, Judgement, RoundsConfig
from calibrated_rl.learner.advantages.base import has_signal
from calibrated_rl.learner.advantages.checked import group_advantages
from calibrated_rl.learner.advantages.dr_grpo import DrGRPO
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import SIMULATOR, SIMULATOR_START
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
        kl_coefficient: Annotated[float, Range(at_least=0)] = 0.1
        """β: weight of the divergence from the start, in nats of reward a nat."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def steps(self, replies: int) -> int:
        return self.config.steps

    def refine(self, inputs: CalibrationInputs) -> dict[str, float]:
        inputs.learner.load(SIMULATOR_START, inputs.folder, trainable=False)
        try:
            return super().refine(inputs)
        finally:
            inputs.learner.unload(SIMULATOR_START)

    def train(
        self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: Callable[[int], None]
    ) -> dict[str, float]:
        config = self.config
        loss = (GRPO_LOSS, {"kl_coefficient": config.kl_coefficient})
        random = np.random.default_rng((inputs.seed, inputs.update, number))
        steps: list[dict[str, float]] = []
        for step in range(1, config.steps + 1):
            rows = random.permutation(len(judgement.replies))[: config.batch_histories]
            # The judgement before this round took the first seed of the round before.
            seed = (number - 1) * SEEDS_PER_ROUND + step
            groups = inputs.sample_replies([judgement.replies[row] for row in rows], config.group_size, seed)
            samples, figures = self._credited(inputs, judgement, rows, groups)
            if samples:
                learned = inputs.learner.step(SIMULATOR, samples, loss, temperature=inputs.simulator_temperature)
                steps.append(figures | {"kl": learned["kl_reference_k3"], "entropy": learned["entropy"]})
            done(step)
        metrics = {"steps": float(len(steps))}
        for name in ("reward", "kl", "entropy", "groups_with_signal") if steps else ():
            metrics |= {f"{name}_first": steps[0][name], f"{name}_last": steps[-1][name]}
        return metrics

    def _credited(
        self, inputs: CalibrationInputs, judgement: Judgement, rows: NDArray[np.int64],
        groups: list[list[SampledReply]],
    ) -> tuple[list[Sample], dict[str, float]]:  # fmt: skip
        """The replies with their credit and their log-probs under the start; figures of the step."""
        said = [(int(row), reply) for row, group in zip(rows, groups, strict=True) for reply in group]
        if not said:
            return [], {}
        ids = [np.asarray(inputs.simulator_chat.said(reply.text), np.int32) for _, reply in said]
        limit = self.config.reward_limit
        reward = judgement.log_odds([row for row, _ in said], ids).clip(-limit, limit)
        sizes = [len(group) for group in groups if group]
        by_group = np.split(reward, np.cumsum(sizes)[:-1])
        advantages = credit(by_group)
        tokens = [reply.tokens for _, reply in said]
        reference = inputs.learner.log_probs(SIMULATOR_START, tokens, inputs.simulator_temperature)
        samples = [
            Sample(tokens=t, advantage=float(a), reference_logprobs=r, name=judgement.pairs[row].dialogue)
            for t, a, r, (row, _) in zip(tokens, advantages, reference, said, strict=True)
        ]
        signal = float(np.mean([has_signal(group.tolist()) for group in by_group]))
        return samples, {"reward": float(reward.mean()), "groups_with_signal": signal}


def credit(rewards: list[Floats]) -> NDArray[np.float32]:
    """[N] each reply's reward minus its group's mean, group by group; 0 in groups without variance."""
    advantage = DrGRPO(DrGRPO.Config())
    return np.concatenate([group_advantages(group.tolist(), advantage) for group in rewards])
