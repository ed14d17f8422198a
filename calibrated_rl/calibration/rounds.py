"""What methods that train a simulator against a discriminator share: a start, rounds, and when to stop.

The start is another method's result (``start``; as a rule supervised fine-tuning). Then, round by round:

1. *Judge*: the simulator replies on histories of the calibration logs; discriminators are fitted anew to its replies
   and the human's (``discriminator.py``); on histories of the monitor split it is measured how often they tell the two
   apart, and how likely the simulator finds what humans said there.
2. *Decide*: the first judgement is that of the start. A round improves if the discriminators tell the simulator's
   replies from the human's on a smaller share of monitor histories than after every round before, and if the
   negative log-likelihood of the monitor split is at most ``nll_tolerance`` above the start's: a simulator that says
   only what is safe is hard to tell apart and finds half of what humans say impossible. One that does not improve ends
   the method, which then goes back to the best round. It also ends if nothing is left to be told apart: the lower
   limit of the 95 % interval, over dialogues, is not above one half.
3. *Train* (``train``: the method's own part), with the discriminators of this round, which then are thrown away.

Discriminators see the calibration split alone, the decision the monitor split; nothing of held-out humans is seen.
Further human turns (``CalibrationInputs.extra``) count in the start; replies are sampled on logged histories.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar

import numpy as np

from calibrated_rl.calibration.base import CalibrationInputs, CalibrationMethod
from calibrated_rl.calibration.checked import METRIC, build_method
from calibrated_rl.calibration.discriminator import (
    FAMILY,
    CrossFitted,
    DiscriminatorConfig,
    Floats,
    Ids,
    ReplyPair,
    told_apart,
)
from calibrated_rl.calibration.replies import HumanReply, SampledReply, history_view, human_replies
from calibrated_rl.calibration.sft import log_samples, sample_items
from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Dialogue, Side, Split
from calibrated_rl.errors import UserError
from calibrated_rl.learner.config import AdamWConfig
from calibrated_rl.learner.slots import SIMULATOR
from calibrated_rl.settings.fields import NotNegative, PartPath, Positive, Range, check_settings
from calibrated_rl.statistics.intervals import Interval, ratio_interval

logger = logging.getLogger(__name__)

KEYS = "calibration.method_config"
PREFIX = "calibration_round"
SEEDS_PER_ROUND = 10_000
"""Seeds that the samples of one round may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """What all methods of rounds can set."""

    start: PartPath = "calibrated_rl.calibration.plain:PlainSFT"
    """Import path of the calibration method whose result is the start, with its default settings."""
    rounds: Positive = 4
    """Rounds, at most."""
    histories: NotNegative = 0
    """Histories of the calibration logs, drawn anew each round, on which the simulator replies, at most; 0: all. Of
    few, discriminators learn nothing."""
    monitored: Positive = 800
    """Histories of the monitor split on which a round is judged, at most."""
    nll_tolerance: Annotated[float, Range(at_least=0)] = 0.02
    """By how much, in nats a token, a round may raise the monitor's negative log-likelihood above the start's."""
    learning_rate: Annotated[float, Range(above=0, at_most=1)] = 2e-4
    """Of the simulator."""
    warmup_steps: NotNegative = 5
    """The first so many optimizer steps ramp the learning rate up linearly."""
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    def __post_init__(self) -> None:
        check_settings(self, KEYS)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The simulator as it is, as seen by discriminators that were fitted to it."""

    replies: Sequence[HumanReply]
    """On histories of the calibration logs [N]."""
    sampled: Sequence[SampledReply]
    """The simulator's on the same histories [N]."""
    pairs: Sequence[ReplyPair]
    """Both as the discriminators read them [N]."""
    discriminators: CrossFitted
    accuracy: Interval
    """Share of monitor histories on which they point at the human's of both replies; 0.5 by chance."""
    nll: float
    """Nats a token of the monitor split's human turns."""

    @property
    def by_chance(self) -> bool:
        """Whether the discriminators may do no better than chance."""
        return not self.accuracy.low > 0.5

    def log_odds(self, rows: Sequence[int], replies: Sequence[Ids]) -> Floats:
        """[N] log-odds that a human gave ``replies`` on the histories ``rows``."""
        pairs = [self.pairs[row] for row in rows]
        return self.discriminators.log_odds([p.dialogue for p in pairs], [p.context for p in pairs], replies)


class AdversarialRounds(CalibrationMethod):
    """Base of the methods of this kind.

    Raises:
        UserError: ``start`` is no calibration method, or one that leaves several simulators.
    """

    classifiers: ClassVar[Sequence[str]] = (FAMILY,)

    def __init__(self, config: RoundsConfig) -> None:
        self.rounds_config = config
        self._start = build_method(config.start, None, f"{KEYS}.start")
        if getattr(self._start, "disagreement_every", 0):
            raise UserError(f"{KEYS}.start: {config.start} leaves several simulators, and the rounds refine one")

    def check(self, start_epochs: int) -> None:
        self._start.check(start_epochs)

    @abstractmethod
    def steps(self, replies: int) -> int:
        """Optimizer steps of a round with so many of the simulator's replies."""

    @abstractmethod
    def train(
        self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: Callable[[int], None]
    ) -> dict[str, float]:
        """Train the learner's ``SIMULATOR`` for one round.

        Args:
            number: of the round, from 1.
            done: called with the number of steps done.

        Returns:
            Metrics of the round.
        """

    def align(self, inputs: CalibrationInputs) -> dict[str, float]:
        metrics = dict(self._start.align(inputs))
        self._load(inputs)
        return metrics | self.refine(inputs)

    def refine(self, inputs: CalibrationInputs) -> dict[str, float]:
        """The rounds: from the start, in the learner's slot and in ``inputs.folder``, to the best one, in both."""
        rounds, metrics = self.rounds_config.rounds, dict[str, float]()
        start = best = self.judge(inputs, 0)
        metrics |= _figures(0, start)
        logger.info(f"simulator at the start of the rounds: {_words(start)}")
        best_round = 0
        for number in range(1, rounds + 1):
            if best.by_chance:
                logger.info("nothing is left to be told apart: the rounds end")
                break
            trained = self.train(inputs, best, number, partial(self._progress, inputs, best, number))
            judgement = self.judge(inputs, number)
            metrics |= _figures(number, judgement) | {f"{PREFIX}_{number}_{name}": v for name, v in trained.items()}
            improves = judgement.accuracy.mean < best.accuracy.mean and (
                judgement.nll <= start.nll + self.rounds_config.nll_tolerance
            )
            verdict = "kept" if improves else "undone"
            logger.info(f"simulator after round {number} of {rounds}: {_words(judgement)}; {verdict}")
            if not improves:
                self._load(inputs)
                break
            best, best_round = judgement, number
            inputs.learner.save(SIMULATOR, inputs.folder)
        return metrics | {
            "calibration_rounds_kept": float(best_round), METRIC: best.nll,
            "calibration_discriminator_accuracy": best.accuracy.mean,
        }  # fmt: skip

    def _progress(self, inputs: CalibrationInputs, judgement: Judgement, number: int, done: int) -> None:
        steps = self.steps(len(judgement.replies))
        inputs.progress((number - 1) * steps + done, self.rounds_config.rounds * steps)

    def judge(self, inputs: CalibrationInputs, number: int) -> Judgement:
        """Judge the simulator after round ``number``."""
        config, seed = self.rounds_config, inputs.seed * 1000 + inputs.update
        refuse_other_splits(inputs.logs)
        training_replies = sample_items(human_replies(inputs.logs), config.histories, seed + number * SEEDS_PER_ROUND)
        monitor_replies = sample_items(human_replies(inputs.monitor), config.monitored, seed)
        sampled = inputs.sample_replies([*training_replies, *monitor_replies], 1, number * SEEDS_PER_ROUND)
        both = [
            (reply, draws[0]) if draws else None
            for reply, draws in zip([*training_replies, *monitor_replies], sampled, strict=True)
        ]
        training_pairs = [pair for pair in both[: len(training_replies)] if pair is not None]
        monitor_pairs = [pair for pair in both[len(training_replies) :] if pair is not None]
        if not monitor_pairs:
            raise UserError("calibration: the simulator gave no reply on the histories of the monitor split")
        chat = inputs.simulator_chat
        pairs, unseen = ([as_pair(chat, *each) for each in replies] for replies in (training_pairs, monitor_pairs))
        discriminators = CrossFitted(pairs, config.discriminator, seed + number)
        names, contexts = [pair.dialogue for pair in unseen], [pair.context for pair in unseen]
        human, simulator = (
            discriminators.log_odds(names, contexts, said)
            for said in ([pair.human for pair in unseen], [pair.simulator for pair in unseen])
        )
        samples = log_samples(inputs.monitor, Side.USER, chat)
        samples = samples[: inputs.sft.most_monitored or len(samples)]
        return Judgement(
            replies=[reply for reply, _ in training_pairs], sampled=[draw for _, draw in training_pairs], pairs=pairs,
            discriminators=discriminators,
            accuracy=ratio_interval(told_apart(human, simulator), np.ones(len(unseen)), names),
            nll=inputs.learner.evaluate(SIMULATOR, samples)["nll"],
        )  # fmt: skip

    def _load(self, inputs: CalibrationInputs) -> None:
        """The simulator in ``inputs.folder``, with a fresh optimizer."""
        config = self.rounds_config
        inputs.learner.load(
            SIMULATOR, inputs.folder, optimizer=config.optimizer.at(config.learning_rate, config.warmup_steps),
            seed=inputs.seed, full_finetuning=not inputs.sft.adapters,
        )  # fmt: skip


def refuse_other_splits(logs: Sequence[Dialogue]) -> None:
    """
    Raises:
        UserError: ``logs``, which discriminators are fitted to, are not all of the calibration split.
    """
    if others := sorted({log.scenario.split.value for log in logs} - {Split.CALIBRATION.value}):
        raise UserError(
            f"the calibration logs have dialogues whose scenarios are of the split {', '.join(others)}, and "
            "discriminators may see no other than calibration: let the reader return the scenarios of the split it is "
            "asked for"
        )


def first_and_last(steps: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """``NAME_first`` and ``NAME_last``: means over the first and the last fifth of the ``steps`` that have it."""
    means: dict[str, float] = {}
    for name in names:
        if values := [step[name] for step in steps if name in step]:
            count = math.ceil(len(values) / 5)
            means |= {
                f"{name}_first": float(np.mean(values[:count])), f"{name}_last": float(np.mean(values[-count:])),
            }  # fmt: skip
    return means


def as_pair(chat: ChatTokens, reply: HumanReply, sampled: SampledReply) -> ReplyPair:
    """Both replies by their text, after what the simulator reads before it replies."""
    context = np.asarray(history_view(chat, reply).prompt_ids, np.int32)
    human, simulator = (np.asarray(chat.said(text), np.int32) for text in (reply.text, sampled.text))
    return ReplyPair(dialogue=reply.log.id, context=context, human=human, simulator=simulator)


def _figures(number: int, judgement: Judgement) -> dict[str, float]:
    return {
        f"{PREFIX}_{number}_discriminator_accuracy": judgement.accuracy.mean,
        f"{PREFIX}_{number}_monitor_nll": judgement.nll,
    }


def _words(judgement: Judgement) -> str:
    share = judgement.accuracy
    interval = f"{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]"
    return f"told apart on {interval} of monitor histories, monitor NLL {judgement.nll:.4f} nats a token"
