"""The contract of a turn value, for static context RL: ``Q(history, turn)``, fitted to logged returns and then frozen.

The policy learns from this value, so there must be no cheap way to a high one. A ``Guard`` sees to it, whatever the
method: what logs do not say is worth the least logged return, and values stay within the range of the logged returns.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.calibration.config import SFTConfig
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.learner.sample import Sample

if TYPE_CHECKING:  # they load Ray and torch, and this module is loaded with every config
    from calibrated_rl.chat.tokens import ChatTokens
    from calibrated_rl.learner.group import LearnerGroup

LEAST_LOGGED = 5
SHORT, LONG = 0.05, 0.95
"""Quantiles of the number of units of logged turns."""
Case = tuple[Scenario, Sequence[Turn], str]
"""A scenario, its history, and what the policy says next."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnValueInputs:
    """What a method is fitted with. Nothing of it comes from held-out users."""

    logs: Sequence[Dialogue]
    """Human logs of the calibration split."""
    monitor: Sequence[Dialogue]
    """Those of the monitor split, for early stopping."""
    tuning: Sequence[Dialogue]
    """Those of the tuning split, for hyperparameters."""
    chat: "ChatTokens"
    """The policy's."""
    learner: "LearnerGroup"
    """Its slot ``POLICY`` is free for fits; the arm loads its policy afterwards."""
    fit_value_head: Callable[[str, Sequence[Sample], Sequence[Sample], SFTConfig], Path]
    """Fits a value head on the policy that training starts from to samples with targets, with early stopping on others,
    once a run or less (``Fits.value_head``): name, samples, monitor samples, pace. Returns the model's folder."""


class TurnValue(ABC):
    """A fitted value."""

    @abstractmethod
    def value(self, cases: Sequence[Case]) -> Floats:
        """Values [N] of saying each text after its history, within the range of the logged returns; of a history from
        the calibration logs as far as possible by a model that has not seen its dialogue."""

    @abstractmethod
    def explained(self, logs: Sequence[Dialogue]) -> float:
        """Share of the variance of the returns of ``logs`` at the policy's turns that the value explains (R²); NaN
        where all returns are alike."""

    def close(self) -> None:  # noqa: B027 - most have nothing to free
        """Free what it keeps in the learner."""


class TurnValueMethod(ABC):
    """Base of all methods; built as a component (``calibrated_rl.components.component``), with a ``Config`` inside."""

    frozen_models: int = 0
    """Copies of the policy's size that its values keep in the learner."""
    cross_fits: bool = True
    """Whether histories of calibration logs are valued by a model that has not seen their dialogues."""

    def check_logs(self, logs: Mapping[Split, Sequence[Dialogue]]) -> None:
        """Refuse logs that it cannot be fitted to, before anything starts.

        Raises:
            UserError: names the split.
        """
        refuse_unscored(logs[Split.CALIBRATION], "calibration", "fits its value of a turn to")
        # The ridge regression, too, with which others are compared.
        refuse_unscored(logs[Split.TUNING], "tuning", "chooses the penalty of that value on")

    @abstractmethod
    def fit(self, inputs: TurnValueInputs) -> TurnValue:
        """
        Raises:
            UserError: the logs have nothing to fit it to.
        """


def explained(predicted: Floats, returns: Floats) -> float:
    """R²: share of the variance of ``returns`` that ``predicted`` explains; NaN where all returns are alike."""
    variance = float(returns.var())
    return 1 - float(((returns - predicted) ** 2).mean()) / variance if variance > 0 else float("nan")


def logged_turns(logs: Sequence[Dialogue]) -> tuple[list[Case], Floats]:
    """Every policy turn of ``logs`` and the return of its dialogue."""
    cases: list[Case] = []
    returns: list[float] = []
    for log in logs:
        for index, turn in enumerate(log.turns):
            if index and turn.side is Side.POLICY and log.outcome is not None:
                cases.append((log.scenario, log.turns[:index], turn.text))
                returns.append(log.outcome.episode_return)
    return cases, np.asarray(returns, np.float64)


def refuse_unscored(logs: Sequence[Dialogue], split: str, purpose: str) -> None:
    """Refuse logs without a turn of the policy whose dialogue has an outcome.

    Args:
        split: that ``logs`` are of.
        purpose: what the arm does with them.

    Raises:
        UserError: names the split.
    """
    if not any(t.side is Side.POLICY for log in logs if log.outcome is not None for t in log.turns[1:]):
        raise UserError(
            f"the arm 'static' {purpose} the {split} logs, and none of them has a turn of the policy and an outcome: "
            f"give it such logs (logs.{split}), or leave the arm out"
        )


def words_of(text: str) -> list[str]:
    """The different words of ``text``, in alphabetical order."""
    return sorted(set(text.lower().split()))


class Guard:
    """Takes from a value what logs do not vouch for. Of a turn's units (such as its words), the share that fewer than
    ``LEAST_LOGGED`` logs say, or that is beyond the number of units that nearly all logged turns have (``LONG``), or
    that is missing to the number which nearly all of them have (``SHORT``), counts as the least logged return."""

    def __init__(self, logs: Sequence[Dialogue], units_of: Callable[[str], Sequence[str]] = words_of) -> None:
        """
        Args:
            units_of: what a turn consists of, each unit once.
        """
        cases, returns = logged_turns(logs)
        self._units_of = units_of
        counted = Counter(
            unit
            for log in logs
            for unit in {u for t in log.turns[1:] if t.side is Side.POLICY for u in units_of(t.text)}
        )
        self.known = {unit for unit, count in counted.items() if count >= LEAST_LOGGED}
        """Units that logs vouch for."""
        lengths = [max(1, len(units_of(text))) for _, _, text in cases]
        self._short, self._long = (float(np.quantile(lengths, share)) for share in (SHORT, LONG))
        self._range = (float(returns.min()), float(returns.max()))

    def familiar(self, texts: Sequence[str]) -> Floats:
        """[N]: share of a turn's units that logs say, in turns of such lengths."""
        units = [self._units_of(text) for text in texts]
        n_known = [min(self._long, sum(unit in self.known for unit in of_turn)) for of_turn in units]
        return np.array(
            [count / max(self._short, len(of_turn)) for count, of_turn in zip(n_known, units, strict=True)], np.float64
        )

    def __call__(self, texts: Sequence[str], predicted: Floats) -> Floats:
        """Values [N] of turns from what a model predicts for them."""
        lowest_return = self._range[0]
        return lowest_return + self.familiar(texts) * (np.clip(predicted, *self._range) - lowest_return)
