"""What readers share of data sets whose task reads the same file, and knows how its dialogues end and what they are
worth."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from calibrated_rl.data.dialogue import Dialogue, Scenario, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.tasks.base import Task


def refuse_other_source(title: str, source: type[Any], of_logs: Any, of_task: Any) -> None:
    """Refuse logs and a task that read different files, or split them differently: held-out users would be trained on.

    Args:
        title: of the data set.
        source: the dataclass whose settings must be the same in both configs.

    Raises:
        UserError: names the setting.
    """
    for name in (field.name for field in fields(source)):
        logs, task = getattr(of_logs, name), getattr(of_task, name)
        if logs != task:
            raise UserError(
                f"{title}: the logs' '{name}' is {logs!r} and the task's is {task!r}; with different splits, held-out "
                "users would be trained on"
            )


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
