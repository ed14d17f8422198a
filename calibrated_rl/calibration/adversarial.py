"""Adversarial calibration: the human's reply is preferred to the simulator's own, where a judge tells them apart.

Each round (``rounds.py``) prefers human replies to replies that the simulator gave on the same histories, by DPO
(Rafailov et al., arXiv 2305.18290, eq. 7) with a term for the likelihood of the human replies (Pang et al., arXiv
2404.19733, eq. 1), against the simulator as it was when the round began. Rounds with a discriminator that is fitted
anew each time are those of DIAL (Zhu et al., "DIAL: Direct Iterative Adversarial Learning for Realistic Multi-Turn
Dialogue Simulation", arXiv 2512.20773). There both replies of a pair are the simulator's, ranked by the discriminator;
here the preferred one is the human's, as in SPIN (Chen et al., "Self-Play Fine-Tuning Converts Weak Language Models to
Strong Language Models", arXiv 2401.01335), and the discriminator chooses the pairs.

With ``h`` drawn as humans reply (``p``) and ``s`` as the simulator does (``q``), ``-log sigma(f(h) - f(s))`` is least
in expectation for ``f = log p / q``, up to a constant of the history. With ``f = beta log pi / q``, DPO's minimum is
``pi = q (p / q)^(1 / beta)``: the human's distribution at ``beta = 1``; a lower ``beta`` goes too far.

Weights of pairs leave this minimum where it is as long as a pair counts the same whoever of the two said which reply.
So the hard pairs are those whose replies have the most different log-odds, *in either direction*. Chosen by the
simulator's reply alone, what it says least like a human would be pushed down below what humans say of it. The term for
the likelihood has all the round's human replies: those of hard pairs are not drawn as humans reply.
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
from calibrated_rl.calibration.rounds import AdversarialRounds, Judgement, RoundsConfig, first_and_last
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
        """Share of the pairs with two different replies in which the human's is preferred, the hardest; 1: all."""
        beta: Annotated[float, Range(above=0)] = 1.0
        """DPO's β: higher stays closer to the simulator as it was when the round began, lower than 1 goes too far."""
        sft_coefficient: Annotated[float, Range(at_least=0)] = 1.0
        """Weight of the likelihood of the human replies beside DPO."""
        epochs: Positive = 1
        """Passes over the pairs of a round."""
        batch_pairs: Positive = 32
        """Pairs an optimizer step."""
        learning_rate: Annotated[float, Range(above=0, at_most=1)] = 3e-5
        """Of the simulator; lower than for fine-tuning, since it has learned from the same replies before."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.config = config

    def steps(self, replies: int) -> int:
        return self.config.epochs * math.ceil(replies / self.config.batch_pairs)

    def train(
        self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: Callable[[int], None]
    ) -> dict[str, float]:
        config, pairs, learner = self.config, judgement.pairs, inputs.learner
        human, simulator = (
            judgement.log_odds(range(len(pairs)), said)
            for said in ([pair.human for pair in pairs], [pair.simulator for pair in pairs])
        )
        hard = hard_pairs(human - simulator, [pair.same for pair in pairs], config.hard_share)
        samples = self._samples(inputs, judgement, set(hard.tolist()))
        loss = (DPO_LOSS, {"beta": config.beta, "sft_coefficient": config.sft_coefficient})
        random = np.random.default_rng((inputs.seed, inputs.update, number))
        steps: list[dict[str, float]] = []
        for _ in range(config.epochs):
            order = random.permutation(len(samples))
            for start in range(0, len(order), config.batch_pairs):
                batch = [sample for i in order[start : start + config.batch_pairs] for sample in samples[i]]
                steps.append(learner.step(SIMULATOR, batch, loss, temperature=inputs.simulator_temperature))
                done(len(steps))
        metrics = {"hard_pairs": float(len(hard)), "alike_share": float(np.mean([pair.same for pair in pairs]))}
        return metrics | first_and_last(steps, ("preference_accuracy", "preference_margin"))

    @staticmethod
    def _samples(inputs: CalibrationInputs, judgement: Judgement, hard: set[int]) -> list[tuple[Sample, Sample]]:
        """The human's reply, and the simulator's as it was sampled, with their log-probs before the round."""
        human = [human_tokens(inputs.simulator_chat, reply) for reply in judgement.replies]
        sides = (human, [sampled.tokens for sampled in judgement.sampled])
        chosen, rejected = (
            [
                Sample(tokens=tokens, reference_logprobs=logprobs, name=pair.dialogue, weight=float(number in hard))
                for number, (tokens, logprobs, pair) in enumerate(
                    zip(
                        side, inputs.learner.log_probs(SIMULATOR, side, inputs.simulator_temperature),
                        judgement.pairs, strict=True,
                    )
                )
            ]
            for side in sides
        )  # fmt: skip
        return list(zip(chosen, rejected, strict=True))


def hard_pairs(differences: Floats, same: Sequence[bool], share: float) -> NDArray[np.int64]:
    """The pairs in which the human's reply is preferred, hardest first.

    Args:
        differences: [N] between the log-odds of both replies.
        same: [N] whether both say the same: such pairs prefer nothing.
        share: of the others, rounded up.
    """
    order = np.argsort(-np.abs(differences), kind="stable")
    different = order[~np.asarray(same, np.bool_)[order]]
    return different[: math.ceil(share * len(different))]
