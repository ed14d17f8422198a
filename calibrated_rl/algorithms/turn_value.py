"""The value of one policy turn after a logged history, for static context RL: ``Q(history, turn)``.

Ridge regression on hashed indicator features, fitted on the returns of the calibration logs and then frozen.
Features: the turn's words; its index; and each word of the turn crossed with what has been said, so that
"asks for the day" and "asks for the day, which was told" can have different values.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import Ridge

from calibrated_rl.dialogue import Dialogue, Side, Turn


def features(turns: Sequence[Turn], text: str) -> list[str]:
    """Indicator names of saying ``text`` after ``turns``."""
    words = text.lower().split()
    said = {word for turn in turns if turn.side is Side.USER for word in turn.text.lower().split()}
    asked = {word for turn in turns[1:] if turn.side is Side.POLICY for word in turn.text.lower().split()}
    index = sum(turn.side is Side.USER for turn in turns)
    names = [f"n={index}", f"first={words[0] if words else ''}", f"told={sum(w in said for w in words)}"]
    names += [f"w={word}" for word in words]
    names += [f"{words[0] if words else ''}|{index}"]
    names += [f"{word}|said" for word in words if word in said]
    names += [f"{word}|asked" for word in words if word in asked]
    names += [f"{word}x{other}" for word in words for other in said | {f"p:{a}" for a in asked}]
    return names


class TurnValue:
    """Fitted on construction; ``value`` is the expected return of the rest of the dialogue."""

    def __init__(self, logs: Sequence[Dialogue]) -> None:
        self._hasher = FeatureHasher(n_features=2**14, input_type="string", alternate_sign=False)
        rows, returns = [], []
        for log in logs:
            if log.outcome is None:
                continue
            for index, turn in enumerate(log.turns):
                if index and turn.side is Side.POLICY:
                    rows.append(features(log.turns[:index], turn.text))
                    returns.append(log.outcome.reward)
        self._model = Ridge(alpha=3.0).fit(self._hasher.transform(rows), np.asarray(returns))
        low, high = float(np.min(returns)), float(np.max(returns))
        self._range = (low, high)

    def value(self, cases: Sequence[tuple[Sequence[Turn], str]]) -> NDArray[np.float64]:
        """Values [N] of saying each text after its history, within the range of the logged returns."""
        rows = self._hasher.transform([features(turns, text) for turns, text in cases])
        return np.clip(self._model.predict(rows), *self._range)
