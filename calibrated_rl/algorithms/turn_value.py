"""The value of one policy turn after a logged history, for static context RL: ``Q(history, turn)``.

Ridge regression on hashed indicator features, fitted on the returns of the calibration logs and then frozen.
Features: the turn's words; its index; and each word of the turn crossed with what has been said and with what the
policy was told to do, so that "asks for the day", "asks for the day, which was told" and "asks for the day, which
is not needed" can have different values. The penalty is the one that predicts the monitor logs best.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import Ridge

from calibrated_rl.dialogue import Dialogue, Scenario, Side, Turn

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
Case = tuple[Scenario, Sequence[Turn], str]
"""A scenario, its history, and what the policy says next."""


def features(scenario: Scenario, turns: Sequence[Turn], text: str) -> list[str]:
    """Indicator names of saying ``text`` after ``turns``."""
    words = text.lower().split()
    said = {word for turn in turns if turn.side is Side.USER for word in turn.text.lower().split()}
    asked = {word for turn in turns[1:] if turn.side is Side.POLICY for word in turn.text.lower().split()}
    instructed = set(scenario.policy_instructions.lower().split())
    index = sum(turn.side is Side.USER for turn in turns)
    names = [f"n={index}", f"first={words[0] if words else ''}", f"told={sum(w in said for w in words)}"]
    names += [f"w={word}" for word in words]
    names += [f"{words[0] if words else ''}|{index}"]
    names += [f"{word}|said" for word in words if word in said]
    names += [f"{word}|asked" for word in words if word in asked]
    names += [f"{word}|instructed" for word in words if word in instructed]
    names += [f"{word}i{other}" for word in words for other in instructed]
    names += [f"{word}x{other}" for word in words for other in said | {f"p:{a}" for a in asked}]
    return names


class TurnValue:
    """Fitted on construction; ``value`` is the expected return of the rest of the dialogue."""

    def __init__(self, logs: Sequence[Dialogue], monitor: Sequence[Dialogue]) -> None:
        self._hasher = FeatureHasher(n_features=2**14, input_type="string", alternate_sign=False)
        cases, returns = logged_turns(logs)
        judged, judged_returns = logged_turns(monitor)
        rows, judged_rows = self._rows(cases), self._rows(judged)
        fitted = [Ridge(alpha=alpha).fit(rows, returns) for alpha in PENALTIES]
        shares = [float(model.score(judged_rows, judged_returns)) for model in fitted]
        self._model = fitted[int(np.argmax(shares))]
        self.explained = max(shares)
        """Share of the variance of the monitor logs' returns that the model explains (R²)."""
        self._range = (float(returns.min()), float(returns.max()))

    def _rows(self, cases: Sequence[Case]) -> Any:
        return self._hasher.transform([features(*case) for case in cases])

    def value(self, cases: Sequence[Case]) -> NDArray[np.float64]:
        """Values [N] of saying each text after its history, within the range of the logged returns."""
        return np.clip(self._model.predict(self._rows(cases)), *self._range)


def logged_turns(logs: Sequence[Dialogue]) -> tuple[list[Case], NDArray[np.float64]]:
    """Every policy turn of ``logs`` and what its dialogue was worth."""
    cases: list[Case] = []
    returns: list[float] = []
    for log in logs:
        for index, turn in enumerate(log.turns):
            if index and turn.side is Side.POLICY and log.outcome is not None:
                cases.append((log.scenario, log.turns[:index], turn.text))
                returns.append(log.outcome.episode_return)
    return cases, np.asarray(returns, np.float64)
