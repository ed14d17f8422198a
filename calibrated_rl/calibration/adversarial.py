"""Adversarial calibration: the human's reply is preferred to the simulator's own, where a judge sees it.

Each round (``rounds.py``) prefers human replies to replies that the simulator gave on the same histories, by DPO
(Rafailov et al., arXiv 2305.18290, eq. 7) with a term for the likelihood of the human replies (Pang et al., arXiv
2404.19733, eq. 1), against the simulator as it was when the round began. Rounds with a discriminator that is fitted
anew each time are those of DIAL (Zhu et al., "DIAL: Direct Iterative Adversarial Learning for Realistic Multi-Turn
Dialogue Simulation", arXiv 2512.20773). There both replies of a pair are the simulator's, ranked by the discriminator;
here the preferred one is the human's, as in SPIN (Chen et al., "Self-Play Fine-Tuning Converts Weak Language Models to
Strong Language Models", arXiv 2401.01335), and the discriminator chooses the pairs.

Hard pairs are those whose *simulator's* reply has the least log-odds of being the human's. The human's reply has no
say: on the histories chosen, the preferred replies are then still drawn as humans reply. Chosen by both, they would be
those human replies that the discriminator likes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.base import CalibrationInputs
from calibrated_rl.calibration.discriminator import Floats
from calibrated_rl.calibration.replies import human_tokens
from calibrated_rl.calibration.rounds import AdversarialRounds, Judgement, RoundsConfig
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.settings.fields import Positive, Range

DPO_LOSS = "calibrated_rl.learner.losses.dpo:DPO"


class Adversarial(AdversarialRounds):
    """Rounds of DPO on hard pairs."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(RoundsConfig):
        """What a round learns from, and how fast."""

        hard_share: Annotated[float, Range(above=0, at_most=1)] = 0.5
        """Share of the pairs with two different replies that is learned from, the hardest; 1: all."""
        beta: Annotated[float, Range(above=0)] = 0.1
        """DPO's β: higher stays closer to the simulator as it was when the round began."""
        sft_coefficient: Annotated[float, Range(at_least=0)] = 1.0
        """Weight of the likelihood of the human replies beside DPO."""
        epochs: Positive = 1
        """Passes over the pairs of a round."""
        batch_pairs: Positive = 32
        """Pairs an optimizer step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def steps(self) -> int:
        config = self.config
        return config.epochs * math.ceil(math.ceil(config.hard_share * config.histories) / config.batch_pairs)

    def train(
        self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: Callable[[int], None]
    ) -> dict[str, float]:
        config, pairs, learner = self.config, judgement.pairs, inputs.learner
        odds = judgement.log_odds(range(len(pairs)), [pair.simulator for pair in pairs])
        hard = hard_pairs(odds, [pair.same for pair in pairs], config.hard_share)
        samples = self._samples(inputs, judgement, hard)
        loss = (DPO_LOSS, {"beta": config.beta, "sft_coefficient": config.sft_coefficient})
        random = np.random.default_rng((inputs.seed, inputs.update, number))
        steps: list[dict[str, float]] = []
        for _ in range(config.epochs):
            order = random.permutation(len(samples))
            for start in range(0, len(order), config.batch_pairs):
                batch = [sample for i in order[start : start + config.batch_pairs] for sample in samples[i]]
                steps.append(learner.step(SIMULATOR, batch, loss, temperature=inputs.simulator_temperature))
                done(len(steps))
        metrics = {"pairs": float(len(samples)), "pairs_alike": float(np.mean([pair.same for pair in pairs]))}
        for name in ("preference_accuracy", "preference_margin") if steps else ():
            metrics |= {f"{name}_first": steps[0][name], f"{name}_last": steps[-1][name]}
        return metrics

    @staticmethod
    def _samples(
        inputs: CalibrationInputs, judgement: Judgement, hard: NDArray[np.int64]
    ) -> list[tuple[Sample, Sample]]:
        """The human's reply, and the simulator's as it was sampled, with their log-probs before the round."""
        chat, learner = inputs.simulator_chat, inputs.learner
        sequences = [
            tokens for i in hard for tokens in (human_tokens(chat, judgement.replies[i]), judgement.sampled[i].tokens)
        ]
        reference = learner.log_probs(SIMULATOR, sequences, inputs.simulator_temperature)
        names = [judgement.pairs[i].dialogue for i in hard for _ in range(2)]
        samples = [
            Sample(tokens=tokens, reference_logprobs=logprobs, name=name)
            for tokens, logprobs, name in zip(sequences, reference, names, strict=True)
        ]
        return list(zip(samples[0::2], samples[1::2], strict=True))


def hard_pairs(log_odds: Floats, same: Sequence[bool], share: float) -> NDArray[np.int64]:
    """The pairs to learn from, hardest first.

    Args:
        log_odds: [N] of the simulator's replies being the human's.
        same: [N] whether both replies say the same: such pairs prefer nothing.
        share: of the others, rounded up.
    """
    order = np.argsort(log_odds, kind="stable")
    different = order[~np.asarray(same, np.bool_)[order]]
    return different[: math.ceil(share * len(different))]
