"""A value head on the policy's own model: ``Q(history, turn) = w · h + b`` of the last hidden state at the token that
ends the turn. The model begins as the policy that training starts from. It is trained with the head, by least squares
on the returns of the calibration logs, until it predicts those of the monitor logs no better.

*Cross-fitted*: of ``folds`` models each is fitted without one fold of the calibration logs, and values the histories of
that fold. (The policy that they begin with was cloned from all calibration logs: it has seen their turns, and
no return.)

The text of a turn is encoded anew, as logs are: how a policy spells it in tokens makes no difference. What the guard
counts are the words of a turn in their order (``units_of``), since here, other than for a set of words, saying a word
again or elsewhere makes a difference to the model, in turns unlike any that it has seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.chat.tokens import ChatTokens, view_of
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, TokenSequence, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.sample import Sample
from calibrated_rl.learner.slots import critic_slot
from calibrated_rl.learner.value_head import read_at
from calibrated_rl.settings.fields import Range, check_settings
from calibrated_rl.turn_values.base import (
    Case,
    Floats,
    Guard,
    TurnValue,
    TurnValueInputs,
    TurnValueMethod,
    explained,
    refuse_unscored,
)


def units_of(text: str) -> list[str]:
    """Pairs of words that follow each other in ``text``, its beginning and end among them, in alphabetical order. A
    pair that occurs again is a unit of its own."""
    words = ["", *text.lower().split(), ""]
    pairs = [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]
    return sorted(f"{pair}#{pairs[:place].count(pair)}" for place, pair in enumerate(pairs))


def ends_of_turns(tokens: TokenSequence) -> NDArray[np.bool_]:
    """[T] True at the last token of each of the own turns of a side's view."""
    places = np.flatnonzero(tokens.mask)
    ends = np.zeros(len(tokens), np.bool_)
    if len(places):
        turns = tokens.turns[places]
        ends[places[np.append(np.diff(turns) != 0, True)]] = True
    return ends


def value_sequence(chat: ChatTokens, scenario: Scenario, turns: Sequence[Turn]) -> TokenSequence:
    """The policy's view of ``turns``, read at the ends of its turns."""
    tokens = view_of(chat, scenario, Side.POLICY, turns).sequence()
    return read_at(tokens, ends_of_turns(tokens))


def return_samples(chat: ChatTokens, logs: Sequence[Dialogue], mean: float, deviation: float) -> list[Sample]:
    """``logs`` as samples whose targets are the returns, less ``mean`` and over ``deviation``; without those that have
    no outcome, or in which the policy does not speak."""
    samples = []
    for log in logs:
        tokens = value_sequence(chat, log.scenario, log.turns)
        if log.outcome is not None and tokens.mask.any():
            target = (log.outcome.episode_return - mean) / deviation
            samples.append(Sample(tokens=tokens, targets=np.full(len(tokens), target, np.float32), name=log.id))
    return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Mean and deviation of the returns that a model was fitted to, in units of which it predicts."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, logs: Sequence[Dialogue]) -> "Scale":
        returns = [log.outcome.episode_return for log in logs if log.outcome is not None]
        # Where all returns are alike there is nothing to scale.
        return cls(mean=float(np.mean(returns)), deviation=float(np.std(returns)) or 1.0)


class HeadValue(TurnValue):
    """The fitted models, frozen in the learner."""

    def __init__(self, learner: LearnerGroup, chat: ChatTokens, guard: Guard, scales: Sequence[Scale]) -> None:
        """
        Args:
            scales: of each fold's model, which is in the learner as ``critic_slot`` of the fold.
        """
        self._learner, self._chat, self._guard, self._scales = learner, chat, guard, scales

    def _folds(self, scenarios: Sequence[Scenario]) -> NDArray[np.int64]:
        return np.array([fold_of(scenario.id, len(self._scales)) for scenario in scenarios], np.int64)

    def _predicted(self, scenarios: Sequence[Scenario], sequences: Sequence[TokenSequence]) -> list[Floats]:
        """What the models predict at the masked tokens of each sequence, in the unit of returns."""
        predicted: list[Floats] = [np.empty(0)] * len(sequences)
        folds = self._folds(scenarios)
        for k, scale in enumerate(self._scales):
            indices = np.flatnonzero(folds == k).tolist()
            for index, values in zip(
                indices, self._learner.values(critic_slot(k), [sequences[i] for i in indices]), strict=True
            ):
                predicted[index] = scale.mean + scale.deviation * values[sequences[index].mask].astype(np.float64)
        return predicted

    def value(self, cases: Sequence[Case]) -> Floats:
        if not cases:
            return np.empty(0, np.float64)
        sequences = [
            value_sequence(self._chat, scenario, (*turns, Turn(side=Side.POLICY, text=text, source=Source.POLICY)))
            for scenario, turns, text in cases
        ]
        predicted = self._predicted([scenario for scenario, _, _ in cases], sequences)
        return self._guard([text for _, _, text in cases], np.array([values[-1] for values in predicted]))

    def explained(self, logs: Sequence[Dialogue]) -> float:
        # All turns of a dialogue in one pass, other than in ``value``.
        scored = [log for log in logs if log.outcome is not None]
        sequences = [value_sequence(self._chat, log.scenario, log.turns) for log in scored]
        predicted = np.concatenate(self._predicted([log.scenario for log in scored], sequences))
        texts = [turn.text for log in scored for turn in log.turns[1:] if turn.side is Side.POLICY]
        returns = [
            log.outcome.episode_return for log in scored if log.outcome is not None
            for turn in log.turns[1:] if turn.side is Side.POLICY
        ]  # fmt: skip
        return explained(self._guard(texts, predicted), np.array(returns))

    def close(self) -> None:
        for k in range(len(self._scales)):
            self._learner.unload(critic_slot(k))


class ValueHead(TurnValueMethod):
    """A value head on the policy's own model, in the learner."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        folds: Annotated[int, Range(at_least=1)] = 3
        """Models, each fitted without one fold of the calibration logs, whose histories it values. The learner keeps a
        frozen copy of the policy's size for each. 1: a single one, fitted to all of them, where memory allows no more:
        then only early stopping keeps it from knowing the returns by heart."""
        fit: SFTConfig = field(default_factory=lambda: SFTConfig(epochs=8, learning_rate=1.5e-3, patience=3))
        """Length and pace of the fit."""

        def __post_init__(self) -> None:
            check_settings(self, "turn_value_config")
            if not self.fit.epochs:
                raise UserError("turn_value_config.fit.epochs is 0: a value head that was not fitted predicts nothing")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.frozen_models = config.folds
        self.cross_fits = config.folds > 1

    def check_logs(self, logs: Mapping[Split, Sequence[Dialogue]]) -> None:
        super().check_logs(logs)
        refuse_unscored(logs[Split.MONITOR], "monitor", "stops the fit of its value of a turn on")

    def fit(self, inputs: TurnValueInputs) -> TurnValue:
        refuse_unscored(inputs.logs, "calibration", "fits its value of a turn to")
        refuse_unscored(inputs.monitor, "monitor", "stops the fit of its value of a turn on")
        folds, scales = self.config.folds, []
        logs = [log for log in inputs.logs if log.outcome is not None]
        for k in range(folds):
            # Where there is a single scenario, there is nothing else to fit to.
            in_fold = [log for log in logs if folds > 1 and fold_of(log.scenario.id, folds) != k] or logs
            scale = Scale.of(in_fold)
            train, monitor = (
                return_samples(inputs.chat, part, scale.mean, scale.deviation) for part in (in_fold, inputs.monitor)
            )
            folder = inputs.fit_value_head(f"turn-value-{k}-of-{folds}", train, monitor, self.config.fit)
            inputs.learner.load(critic_slot(k), folder, trainable=False, value_head=True)
            scales.append(scale)
        return HeadValue(inputs.learner, inputs.chat, Guard(logs, units_of), scales)
