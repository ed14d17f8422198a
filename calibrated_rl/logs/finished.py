"""A logged dialogue of a data set whose task knows how its dialogues end and what they are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from calibrated_rl.data.dialogue import Dialogue, Scenario, Turn
from calibrated_rl.tasks.base import Task


def finished_log(task: Task, scenario: Scenario, turns: Sequence[Turn], annotations: Mapping[str, Any]) -> Dialogue:
    """The dialogue of ``turns``, the greeting first, with the ending and the outcome that ``task`` gives it. Records of
    dialogues that do not end must have been refused before."""
    ending = task.ending(scenario, turns)
    assert ending is not None, f"scenario {scenario.id} was checked to end"
    return Dialogue(
        id=f"log-{scenario.id}", task=task.name, scenario=scenario, turns=tuple(turns), ending=ending,
        outcome=task.outcome(scenario, turns, ending), kind="log", group_id=f"log-{scenario.id}",
        annotations=dict(annotations),
    )  # fmt: skip
