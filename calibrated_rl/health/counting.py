"""How often the detectors find something: rates over the turns that they judged, with intervals, and by user turn.

The unit of an interval is the dialogue: its turns depend on each other (``statistics.intervals.share_interval``, the
score interval with the effective number of turns). Dialogues of a group share their scenario and their first turn;
given these they are independent, so that the interval is about this simulator on these scenarios. The first turn of a
group counts once.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Turn
from calibrated_rl.errors import RolloutFailure
from calibrated_rl.health.base import Detector, LearningDetector, UserTurn
from calibrated_rl.health.checked import build_detectors
from calibrated_rl.statistics.intervals import Interval, share_interval
from calibrated_rl.tasks.base import Task

SAMPLED = (Source.SIMULATOR, Source.SCRIPTED, Source.HUMAN)
"""Sources of user turns in dialogues of a run; the others of a dialogue are quoted from logs."""
LOGGED = (Source.LOG, Source.SCRIPTED, Source.HUMAN)
"""Sources of user turns in human logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """Turns to judge: a dialogue, a part of one, or a try that broke off."""

    name: str
    """Of the dialogue: turns under one name depend on each other."""
    scenario: Scenario
    turns: Sequence[Turn]
    first: int = 1
    """Index of the first turn that counts; those before it are history."""


@dataclass(slots=True)
class Rate:
    """How often one detector found something."""

    found: list[bool] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    """The dialogue of each judged turn."""
    ordinals: list[int] = field(default_factory=list)
    """Which user turn of its dialogue each is, 1 for the first."""
    example: str = ""
    """The first turn in which it was found."""

    @property
    def turns(self) -> int:
        """Judged turns."""
        return len(self.found)

    @property
    def interval(self) -> Interval | None:
        """The rate with its 95 % interval; None: no turn was judged."""
        return share_interval(self.found, self.names) if self.found else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``mean``, ``low``, ``high``, ``turns``, and ``by_turn``."""
        by_turn: defaultdict[int, list[bool]] = defaultdict(list)
        for ordinal, found in zip(self.ordinals, self.found, strict=True):
            by_turn[ordinal].append(found)
        return {
            **(self.interval or Interval(math.nan, math.nan, math.nan)).as_dict(),
            "turns": self.turns,
            "by_turn": [
                {"turn": ordinal, "mean": sum(found) / len(found), "turns": len(found)}
                for ordinal, found in sorted(by_turn.items())
            ],
        }


Rates = Mapping[str, Rate]
"""By the detector's name."""


class SimulatorHealth:
    """The detectors of a run, which have learned from its logs, and what they find in those."""

    def __init__(
        self, task: Task | None, names: Sequence[str], calibration: Sequence[Dialogue], monitor: Sequence[Dialogue]
    ) -> None:
        """
        Args:
            names: ``health.detectors``.
            calibration: human dialogues to learn from.
            monitor: human dialogues whose rates are the reference; no detector has learned from them.

        Raises:
            UserError: a detector cannot be built, or fails.
        """
        self._task, self._monitor = task, monitor
        self.detectors: list[Detector] = build_detectors(names)
        for detector in self.detectors:
            if isinstance(detector, LearningDetector):
                detector.learn(calibration)

    @cached_property
    def reference(self) -> Rates:
        """Rates of human users, in the monitor logs."""
        return self.rates(of_dialogues(self._monitor), LOGGED)

    def rates(self, spoken: Iterable[Spoken], sources: Collection[Source] = SAMPLED) -> Rates:
        """Rates over the user turns from ``sources`` of ``spoken``; a detector that judged none has a rate without
        turns.

        Raises:
            UserCodeError: a detector of the user's failed, or returned no judgement.
        """
        rates = {detector.name: Rate() for detector in self.detectors}
        for each in spoken:
            for index, turn in enumerate(each.turns):
                if index < each.first or turn.side is not Side.USER or turn.source not in sources:
                    continue
                judged = UserTurn(scenario=each.scenario, turns=each.turns[: index + 1], task=self._task)
                ordinal = len(judged.earlier(Side.USER)) + 1
                for detector in self.detectors:
                    try:
                        found = detector.detect(judged)
                    except RolloutFailure:  # a judge that the task asks does not answer: nothing is known of the turn
                        continue
                    if found is None:
                        continue
                    rate = rates[detector.name]
                    rate.found.append(found)
                    rate.names.append(each.name)
                    rate.ordinals.append(ordinal)
                    if found and not rate.example:
                        rate.example = turn.text
        return rates


def rates_as_plain(rates: Rates) -> dict[str, Any]:
    """For JSON."""
    return {name: rate.as_dict() for name, rate in rates.items()}


def of_dialogues(dialogues: Iterable[Dialogue]) -> list[Spoken]:
    """Dialogues that have nothing in common."""
    return [Spoken(name=each.id, scenario=each.scenario, turns=each.turns) for each in dialogues]


def of_groups(groups: Iterable[Sequence[Dialogue]]) -> list[Spoken]:
    """Groups of rollouts; the opening that a group shares counts once."""
    return [
        Spoken(name=dialogue.id, scenario=dialogue.scenario, turns=dialogue.turns, first=2 if member else 1)
        for group in groups
        for member, dialogue in enumerate(group)
    ]
