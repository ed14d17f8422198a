"""What the estimators on text share: their inputs, their interface, and how they account for chance.

There are two kinds of data, because there are two kinds of question. ``MatchedReplies`` (``base.py``) contains the
replies of both sides to the *same* histories: only there a per-turn shift can be measured. ``DialogueSets`` contains
two sets of whole dialogues that nothing ties together: there the two populations can be compared, which mixes
what the replies and what the histories before them differ in.

An estimator is a component (``Class(Class.Config(...))``) with one method, ``measure``; its name is that of its module
in ``shift/estimators/``, or an import path. A comparison sets ``seed``, ``null_halvings`` and ``encoder`` where the
``Config`` has them.

Chance, in all estimators on ``DialogueSets``:

- The unit of resampling is the *user*: all dialogues of one scenario are drawn together.
- Intervals are percentile intervals of the bootstrap, widened for few units as in ``statistics.intervals``, and
  *centred*: the drawn values are shifted so that their mean is the estimate. Distances between samples are biased
  upwards, and their bootstrap adds the same bias once more; centring takes that second bias out again.
- The null band is what the same procedure gives between two halves of the human dialogues: from the lowest lower
  to the highest upper limit over ``null_halvings`` random halvings. The second half has no more users than the
  other side, the first is what is left of at least half. No half is larger than the set it stands for, so that
  chance moves the metrics at least as far in them: the band is too wide rather than too narrow.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.data.dialogue import Dialogue, Side
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import NotNegative, Seed
from calibrated_rl.shift.base import Estimate
from calibrated_rl.statistics.intervals import LEVEL, expansion
from calibrated_rl.tasks.base import Task

Floats = NDArray[np.float64]
Band = tuple[float, float]
Data = TypeVar("Data", contravariant=True)
RESAMPLES = 400
_CHUNK = 50
"""Resamples that a statistic is given at once; bounds its memory."""


@dataclass(frozen=True, kw_only=True)
class DialogueSets:
    """Two sets of dialogues that need not have a history in common."""

    human: Sequence[Dialogue]
    simulator: Sequence[Dialogue]
    task: Task | None = None
    """Knows the dialogue acts of its dialogues; without it, estimators on acts use ``annotations["acts"]``."""

    def require_both(self, name: str) -> None:
        """
        Raises:
            UserError: one of the sets is empty; names the estimator and the set.
        """
        for side, dialogues in (("human", self.human), ("simulator", self.simulator)):
            if not dialogues:
                raise UserError(f"{name}: there are no dialogues on the {side} side")

    def acts(self, dialogue: Dialogue) -> list[tuple[str, ...]] | None:
        """Acts of each turn of ``dialogue``, or None where they are not known."""
        if self.task is not None:
            acts_by_turn = [self.task.acts(dialogue.scenario, dialogue.turns, i) for i in range(len(dialogue.turns))]
            return acts_by_turn if any(acts_by_turn) else None
        annotated_acts = dialogue.annotations.get("acts")
        if not annotated_acts or len(annotated_acts) != len(dialogue.turns):
            return None
        return [tuple(acts) for acts in annotated_acts]


class Estimator(ABC, Generic[Data]):
    """Measures ``data`` and returns metrics by name."""

    classifiers: ClassVar[Sequence[str]] = ()
    """Families of classifiers that it fits. A calibration method that trains a simulator against one of them
    (``CalibrationMethod.classifiers``) is refused beside it."""

    @abstractmethod
    def measure(self, data: Data) -> dict[str, Estimate]:
        """
        Raises:
            UserError: the data are too few or lack what is measured; the message says what.
        """


@dataclass(frozen=True)
class NullBandConfig:
    """What estimators set that draw nothing but the null band and the bootstrap."""

    null_halvings: NotNegative = 5
    """Random halvings of the human dialogues for the null band; 0 leaves it out."""
    seed: Seed = 0
    """Of all random draws."""


class DialogueEstimator(Estimator[DialogueSets]):
    """An estimator on two sets of dialogues; ``compare`` is its own, bands come from here.

    Args of the constructor:
        null_halvings: random halvings of the human dialogues that make the null band; 0 leaves it out.
        seed: the same data and seed give the same metrics.
    """

    def __init__(self, null_halvings: int, seed: int) -> None:
        if null_halvings < 0:
            raise UserError(f"null_halvings must not be negative, not {null_halvings}")
        self.null_halvings, self.seed = null_halvings, seed

    @abstractmethod
    def compare(self, sets: DialogueSets) -> dict[str, Estimate]:
        """The metrics without null bands. Raises as ``measure``."""

    def measure(self, data: DialogueSets) -> dict[str, Estimate]:
        estimates = self.compare(data)
        if not self.null_halvings:
            return estimates
        bands = self.null_bands(data)
        return {
            name: replace(estimate, null_low=bands[name][0], null_high=bands[name][1]) if name in bands else estimate
            for name, estimate in estimates.items()
        }

    def null_bands(self, sets: DialogueSets) -> dict[str, Band]:
        """Null band of each metric, from the human dialogues alone; empty where they are too few to halve."""
        limits: dict[str, list[float]] = {}
        n_simulator_users = len({dialogue.scenario.id for dialogue in sets.simulator})
        for i in range(self.null_halvings):
            halves = halve(sets.human, n_simulator_users, np.random.default_rng((self.seed, 1, i)))
            try:
                estimates = self.compare(DialogueSets(human=halves[0], simulator=halves[1], task=sets.task))
            except UserError:  # halves can be too few where the whole is not
                return {}
            for name, estimate in estimates.items():
                limits.setdefault(name, []).extend([estimate.low, estimate.high])
        finite_limits = {name: [v for v in values if math.isfinite(v)] for name, values in limits.items()}
        return {name: (min(values), max(values)) for name, values in finite_limits.items() if values}


def users_of(dialogues: Sequence[Dialogue]) -> NDArray[np.int64]:
    """Number of the user (scenario) of each dialogue: [N]."""
    names = np.asarray([dialogue.scenario.id for dialogue in dialogues], dtype=str)
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def halve(
    dialogues: Sequence[Dialogue], max_second: int, rng: np.random.Generator
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Two disjoint random parts; a user's dialogues stay together. The second has half of the users (rounded
    down) but at most ``max_second``, the first the rest."""
    user = users_of(dialogues)
    users = int(user.max()) + 1 if len(user) else 0
    second = rng.permutation(users)[user] < min(users // 2, max_second)
    halves: tuple[list[Dialogue], list[Dialogue]] = ([], [])
    for dialogue, is_second in zip(dialogues, second, strict=True):
        halves[int(is_second)].append(dialogue)
    return halves


Statistic = Callable[..., Floats]
"""From the weights of the dialogues, [B, N] for each set, to metrics [B, K]."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """Metrics of the whole sample and of the bootstrap: [K] each."""

    value: Floats
    low: Floats
    high: Floats

    def estimate(
        self,
        name: str,
        k: int = 0,
        *,
        far: Literal["above", "below", "either"] = "either",
        minimum: float = 0.0,
        maximum: float = math.inf,
        notes: tuple[str, ...] = (),
    ) -> Estimate:
        """Metric ``k``, with all three numbers cut to its range."""
        value, low, high = (float(np.clip(a[k], minimum, maximum)) for a in (self.value, self.low, self.high))
        return Estimate(name=name, value=value, low=low, high=high, far=far, notes=notes)


def bootstrap(statistic: Statistic, users: Sequence[NDArray[np.int64]], seed: int, value: Any = None) -> Resampled:
    """``statistic`` on everything and its centred percentile interval.

    Args:
        users: for each set of dialogues, [N] each, the number of the user of each dialogue, as ``users_of``
            gives it.
        value: the estimate [K] that the interval is put around, where it is not the statistic itself (a metric
            that was corrected for bias).

    The limits are NaN where a set has a single user. Resamples in which the statistic is NaN are left out.
    """
    middle = statistic(*(np.ones((1, len(p))) for p in users))[0] if value is None else np.asarray(value, np.float64)
    low, high = np.full(len(middle), math.nan), np.full(len(middle), math.nan)
    units = [int(user.max()) + 1 for user in users]
    if min(units) < 2:
        return Resampled(middle, low, high)
    rng = np.random.default_rng(seed)
    draws = []
    for start in range(0, RESAMPLES, _CHUNK):
        size = min(_CHUNK, RESAMPLES - start)
        weights = [
            rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)[:, user]
            for n, user in zip(units, users, strict=True)
        ]
        draws.append(statistic(*weights))
    drawn_BK = np.concatenate(draws)
    tail = (1 - LEVEL) / 2
    for k in range(len(middle)):
        finite_draws = drawn_BK[np.isfinite(drawn_BK[:, k]), k]
        if len(finite_draws):
            deviation = np.quantile(finite_draws, [tail, 1 - tail]) - finite_draws.mean()
            low[k], high[k] = middle[k] + expansion(min(units)) * deviation
    return Resampled(middle, low, high)


def user_texts(dialogue: Dialogue) -> list[str]:
    """What the other side said, turn by turn."""
    return [turn.text for turn in dialogue.turns if turn.side is Side.USER]
