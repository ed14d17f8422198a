"""Goal drift: what the user says contradicts or leaves its goal.

A task that can tell (``GoalCheckingTask``) decides, and whatever a simulator breaks a dialogue with for its task
(``UserCheckingTask``) counts. For others there is a fallback that needs a goal of named values
(``{"day": "friday", "seat": "window"}``): from the goals of the calibration logs it learns which values a name can
have, and a turn that states another value of a name than its own goal has contradicts it. Left alone are values in
questions, after a negation, those that the policy has mentioned, and values that fit another name of the goal.
Numbers, truth values, little words and long texts are no such values. It finds contradictions in words that goals use,
not other subjects.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibrated_rl.data.dialogue import Dialogue, Side, Source
from calibrated_rl.health.base import UserTurn
from calibrated_rl.health.languages import STOP_WORDS
from calibrated_rl.health.text import asks, contains, positions, words
from calibrated_rl.settings.fields import Positive
from calibrated_rl.tasks.base import GoalCheckingTask, UserCheckingTask

_NEGATIONS = (
    "not no never don't doesn't won't can't cannot isn't without rather instead than neither nor",  # English
    "nicht kein keine nie ohne pas jamais sans non nunca sin não sem senza mai niet geen zonder inte ingen utan",
)
_NEGATION = frozenset(word for line in _NEGATIONS for word in line.split())
_LITTLE = frozenset().union(*STOP_WORDS.values()) | {"yes", "no", "none", "any", "free"}
_REACH = 5
"""Words before a value in which a negation is looked for."""
_SENTENCE = re.compile(r"(?<=[.!?？؟;])\s+|\n")

Words = tuple[str, ...]


class GoalDrift:
    """Judges turns that state a value of some goal, or those that the task can judge."""

    name = "goal_drift"

    @dataclass(frozen=True)
    class Config:
        most_values: Positive = 100
        """Values of a name; with more it is free text."""
        most_words: Positive = 4
        """Of a value."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()
        self._values: dict[str, set[Words]] = {}
        """By name, all values of the goals seen."""

    def learn(self, logs: Sequence[Dialogue]) -> None:
        self.learn_goals([log.scenario.goal for log in logs])

    def learn_goals(self, goals: Sequence[Mapping[str, Any]]) -> None:
        """Learn the values that names of goals can have."""
        values: defaultdict[str, set[Words]] = defaultdict(set)
        for goal in goals:
            for name, value in _leaves(goal):
                values[name].add(value)
        self._values = {
            name: seen for name, seen in values.items()
            if 2 <= len(seen) <= self.config.most_values and max(map(len, seen)) <= self.config.most_words
        }  # fmt: skip

    def detect(self, turn: UserTurn) -> bool | None:
        simulated = turn.turn.source is Source.SIMULATOR
        if simulated and isinstance(turn.task, UserCheckingTask) and turn.task.against_goal(turn.scenario, turn.turns):
            return True
        if isinstance(turn.task, GoalCheckingTask):
            return turn.task.contradicts_goal(turn.scenario, turn.turns)
        own: defaultdict[str, set[Words]] = defaultdict(set)
        for name, value in _leaves(turn.scenario.goal):
            own[name].add(value)
        wanted = {value for values in own.values() for value in values}
        brought_up = [words(earlier.text) for earlier in turn.earlier(Side.POLICY)]
        states_something = False
        for sentence in filter(str.strip, _SENTENCE.split(turn.text)):
            spoken = words(sentence)
            for name in own.keys() & self._values.keys():
                for value in self._values[name]:
                    places = positions(spoken, value)
                    states_something = states_something or bool(places)
                    if not places or asks(sentence) or any(contains(allowed, value) for allowed in wanted):
                        continue
                    if any(contains(said, value) for said in brought_up):
                        continue
                    if any(not _NEGATION.intersection(spoken[max(0, at - _REACH) : at]) for at in places):
                        return True
        return False if states_something else None


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Words]]:
    """Names and values of the texts in a goal; a list's texts have the name of the list."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value, name)
    elif isinstance(tree, str) and name:
        value_words = words(tree)
        if any(not word.isdigit() and word not in _LITTLE for word in value_words):
            yield name, value_words
