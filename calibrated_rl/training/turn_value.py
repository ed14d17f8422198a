"""The value of one policy turn after a logged history, for static context RL: ``Q(history, turn)``.

Ridge regression on hashed indicators, fitted on the returns of the calibration logs and then frozen. A turn is the
*set* of its words: each with the turn's index, with what the user has said and the policy has asked before it and with
the policy's instructions, so that "asks for the day", "asks for the day, which the user has said" and "asks for the
day, which is not needed" can have different values.

The policy learns from this value, so there must be no cheap way to a high one:

- Repeating a word and changing the order do nothing: the turn is a set, and a hash that two indicators share counts
  once.
- What logs do not say is worth the least logged return. Of a turn's words, the share that fewer than ``LEAST_LOGGED``
  logs say, or that is beyond the number of words that nearly all logged turns have (``LONG``), or that is missing to
  the number which nearly all of them have (``SHORT``), counts as that, and the rest as the model predicts it.
- Values stay within the range of the logged returns.

*Cross-fitted*: the value at a history comes from a model that has not seen its dialogue. The penalty is the one that
predicts the tuning logs best (DESIGN: hyperparameters come from that split).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import Ridge

from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.errors import UserError

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FOLDS = 3
LEAST_LOGGED = 5
SHORT, LONG = 0.05, 0.95
"""Quantiles of the number of different words of logged turns."""
Case = tuple[Scenario, Sequence[Turn], str]
"""A scenario, its history, and what the policy says next."""


def words_of(text: str) -> list[str]:
    """The different words of ``text``, in alphabetical order."""
    return sorted(set(text.lower().split()))


def features(scenario: Scenario, turns: Sequence[Turn], words: Sequence[str]) -> list[str]:
    """Indicators of saying ``words`` after ``turns``."""
    user_words = {word for turn in turns if turn.side is Side.USER for word in turn.text.lower().split()}
    policy_words = {word for turn in turns[1:] if turn.side is Side.POLICY for word in turn.text.lower().split()}
    instructed = set(scenario.policy_instructions.lower().split())
    index = sum(turn.side is Side.USER for turn in turns)
    # "of", since repeating all that the user said among other words differs from repeating just that.
    names = [f"n={index}", f"told={sum(word in user_words for word in words)} of {len(words)}"]
    names += [f"w={word}" for word in words]
    names += [f"{word}|{index}" for word in words]
    names += [f"{word}|said" for word in words if word in user_words]
    names += [f"{word}|asked" for word in words if word in policy_words]
    names += [f"{word}|instructed" for word in words if word in instructed]
    names += [f"{word}i{other}" for word in words for other in instructed]
    names += [f"{word}x{other}" for word in words for other in user_words | {f"p:{a}" for a in policy_words}]
    return names


class TurnValue:
    """Fitted on construction; ``value`` is the expected return of the dialogue.

    Raises:
        UserError: no turn to fit it to, or none to choose the penalty by.
    """

    def __init__(self, logs: Sequence[Dialogue], tuning: Sequence[Dialogue]) -> None:
        refuse_unscored(logs, tuning)
        self._hasher = FeatureHasher(n_features=2**14, input_type="string", alternate_sign=False)
        cases, returns = logged_turns(logs)
        counted = Counter(
            word
            for log in logs
            for word in {w for t in log.turns[1:] if t.side is Side.POLICY for w in words_of(t.text)}
        )
        self._known = {word for word, count in counted.items() if count >= LEAST_LOGGED}
        lengths = [max(1, len(words_of(text))) for _, _, text in cases]
        self._short, self._long = (float(np.quantile(lengths, share)) for share in (SHORT, LONG))
        self._range = (float(returns.min()), float(returns.max()))
        rows, fold = self._rows(cases), self._folds(cases)
        tuning_cases, tuning_returns = logged_turns(tuning)
        tuning_rows = self._rows(tuning_cases)
        # Where there is a single scenario, there is nothing else to fit to.
        training_folds = [(fold != k) if (fold != k).any() else (fold == k) for k in range(FOLDS)]
        fitted = [Ridge(alpha=alpha).fit(rows[training_folds[0]], returns[training_folds[0]]) for alpha in PENALTIES]
        errors = [float(((model.predict(tuning_rows) - tuning_returns) ** 2).mean()) for model in fitted]
        best = int(np.argmin(errors))
        self.penalty = PENALTIES[best]
        self._models = [fitted[best]] + [
            Ridge(alpha=self.penalty).fit(rows[training_fold], returns[training_fold])
            for training_fold in training_folds[1:]
        ]
        self.explained = _explained(self._predict(cases, rows), returns)
        """Share of the variance of the calibration logs' returns that the models explain on dialogues that they have
        not seen (R²); NaN where all returns are alike."""

    def _folds(self, cases: Sequence[Case]) -> NDArray[np.int64]:
        """By scenario: the dialogues with one user are all in the same fold."""
        return np.array([fold_of(scenario.id, FOLDS) for scenario, _, _ in cases], np.int64)

    def _rows(self, cases: Sequence[Case]) -> Any:
        """[N, F]; words that logs do not say are as if they were not there."""
        known_words = [[word for word in words_of(text) if word in self._known] for _, _, text in cases]
        return self._indicators(
            [features(s, turns, words) for (s, turns, _), words in zip(cases, known_words, strict=True)]
        )

    def _familiar(self, cases: Sequence[Case]) -> NDArray[np.float64]:
        """[N]: share of a turn's words that logs say, in turns of such lengths."""
        words = [words_of(text) for _, _, text in cases]
        n_known = [min(self._long, sum(word in self._known for word in turn_words)) for turn_words in words]
        return np.array(
            [count / max(self._short, len(turn_words)) for count, turn_words in zip(n_known, words, strict=True)]
        )

    def _indicators(self, names: Sequence[Sequence[str]]) -> Any:
        matrix = self._hasher.transform(names)
        matrix.data = np.minimum(matrix.data, 1.0)  # several names of one hash
        return matrix

    def _predict(self, cases: Sequence[Case], rows: Any) -> NDArray[np.float64]:
        lowest_return, predicted, fold = self._range[0], np.empty(len(cases), np.float64), self._folds(cases)
        for k, model in enumerate(self._models):
            if (rows_of_model := fold == k).any():
                predicted[rows_of_model] = model.predict(rows[rows_of_model])
        return lowest_return + self._familiar(cases) * (np.clip(predicted, *self._range) - lowest_return)

    def value(self, cases: Sequence[Case]) -> NDArray[np.float64]:
        """Values [N] of saying each text after its history, within the range of the logged returns; each by a model
        that has not seen the dialogues of its scenario."""
        return self._predict(cases, self._rows(cases)) if cases else np.empty(0, np.float64)


def refuse_unscored(logs: Sequence[Dialogue], tuning: Sequence[Dialogue]) -> None:
    """Refuse logs from which no value can be fitted.

    Raises:
        UserError: names the split.
    """
    for split, of_split in (("calibration", logs), ("tuning", tuning)):
        if not any(t.side is Side.POLICY for log in of_split if log.outcome is not None for t in log.turns[1:]):
            why = "fits its value of a turn to" if split == "calibration" else "chooses the penalty of that value on"
            raise UserError(
                f"the arm 'static' {why} the {split} logs, and none of them has a turn of the policy and an outcome: "
                f"give it such logs (logs.{split}), or leave the arm out"
            )


def _explained(predicted: NDArray[np.float64], returns: NDArray[np.float64]) -> float:
    variance = float(returns.var())
    return 1 - float(((returns - predicted) ** 2).mean()) / variance if variance > 0 else float("nan")


def logged_turns(logs: Sequence[Dialogue]) -> tuple[list[Case], NDArray[np.float64]]:
    """Every policy turn of ``logs`` and the return of its dialogue."""
    cases: list[Case] = []
    returns: list[float] = []
    for log in logs:
        for index, turn in enumerate(log.turns):
            if index and turn.side is Side.POLICY and log.outcome is not None:
                cases.append((log.scenario, log.turns[:index], turn.text))
                returns.append(log.outcome.episode_return)
    return cases, np.asarray(returns, np.float64)
