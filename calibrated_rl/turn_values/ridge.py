"""Ridge regression on hashed indicators of words. A turn is the
*set* of its words: each with the turn's index, with what the user has said and the policy has asked before it and with
the policy's instructions, so that "asks for the day", "asks for the day, which the user has said" and "asks for the
day, which is not needed" can have different values. Repeating a word and changing the order do nothing: the turn is a
set, and a hash that two indicators share counts once.

*Cross-fitted*: the value at a history comes from a model that has not seen its dialogue. The penalty is the one that
predicts the tuning logs best (DESIGN: hyperparameters come from that split).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.folds import fold_of
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Turn
from calibrated_rl.turn_values.base import (
    Case,
    Floats,
    Guard,
    TurnValue,
    TurnValueInputs,
    TurnValueMethod,
    explained,
    logged_turns,
    refuse_unscored,
    words_of,
)

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FOLDS = 3


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


class RidgeValue(TurnValue):
    """Fitted on construction.

    Raises:
        UserError: no turn to fit it to, or none to choose the penalty by.
    """

    def __init__(self, logs: Sequence[Dialogue], tuning: Sequence[Dialogue]) -> None:
        # Here, not at import: this module is loaded with every config.
        from sklearn.feature_extraction import FeatureHasher
        from sklearn.linear_model import Ridge as RidgeRegression

        refuse_unscored(logs, "calibration", "fits its value of a turn to")
        refuse_unscored(tuning, "tuning", "chooses the penalty of that value on")
        self._hasher = FeatureHasher(n_features=2**14, input_type="string", alternate_sign=False)
        self._guard = Guard(logs)
        cases, returns = logged_turns(logs)
        rows, fold = self._rows(cases), self._folds(cases)
        tuning_cases, tuning_returns = logged_turns(tuning)
        tuning_rows = self._rows(tuning_cases)
        # Where there is a single scenario, there is nothing else to fit to.
        training_folds = [(fold != k) if (fold != k).any() else (fold == k) for k in range(FOLDS)]
        fitted = [
            RidgeRegression(alpha=alpha).fit(rows[training_folds[0]], returns[training_folds[0]]) for alpha in PENALTIES
        ]
        errors = [float(((model.predict(tuning_rows) - tuning_returns) ** 2).mean()) for model in fitted]
        best = int(np.argmin(errors))
        self.penalty = PENALTIES[best]
        self._models = [fitted[best]] + [
            RidgeRegression(alpha=self.penalty).fit(rows[training_fold], returns[training_fold])
            for training_fold in training_folds[1:]
        ]

    def _folds(self, cases: Sequence[Case]) -> NDArray[np.int64]:
        """By scenario: the dialogues with one user are all in the same fold."""
        return np.array([fold_of(scenario.id, FOLDS) for scenario, _, _ in cases], np.int64)

    def _rows(self, cases: Sequence[Case]) -> Any:
        """[N, F]; words that logs do not say are as if they were not there."""
        known_words = [[word for word in words_of(text) if word in self._guard.known] for _, _, text in cases]
        matrix = self._hasher.transform(
            [features(s, turns, words) for (s, turns, _), words in zip(cases, known_words, strict=True)]
        )
        matrix.data = np.minimum(matrix.data, 1.0)  # several names of one hash
        return matrix

    def value(self, cases: Sequence[Case]) -> Floats:
        if not cases:
            return np.empty(0, np.float64)
        rows, predicted, fold = self._rows(cases), np.empty(len(cases), np.float64), self._folds(cases)
        for k, model in enumerate(self._models):
            if (rows_of_model := fold == k).any():
                predicted[rows_of_model] = model.predict(rows[rows_of_model])
        return self._guard([text for _, _, text in cases], predicted)

    def explained(self, logs: Sequence[Dialogue]) -> float:
        cases, returns = logged_turns(logs)
        return explained(self.value(cases), returns)


class Ridge(TurnValueMethod):
    """Linear in words and pairs of words; fitted in seconds, and only as good as these features."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def fit(self, inputs: TurnValueInputs) -> TurnValue:
        return RidgeValue(inputs.logs, inputs.tuning)
