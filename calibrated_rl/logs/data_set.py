"""What readers share of data sets whose task reads the same file, and knows how its dialogues end and what they are
worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from hashlib import blake2b
from typing import Any, Protocol, TypeVar

from calibrated_rl.data.dialogue import Dialogue, Scenario, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.tasks.base import Task

Record = TypeVar("Record")


class SplitSource(Protocol):
    """The settings that say how the dialogues of ``path`` are split."""

    @property
    def path(self) -> str: ...
    @property
    def held_out(self) -> int: ...
    @property
    def monitor(self) -> int: ...
    @property
    def tuning(self) -> int: ...
    @property
    def seed(self) -> int: ...


def draw_splits(
    title: str, records: Sequence[Record], source: SplitSource, order: Callable[[Record], tuple[str, Any]]
) -> dict[Split, list[Record]]:
    """The four splits, each in a fixed order that does not depend on the file's.

    Args:
        title: of the data set.
        order: a text whose hash orders the records, and what orders those of equal hashes.

    Raises:
        UserError: no record would be left for calibration.
    """
    sizes = {Split.HELD_OUT: source.held_out, Split.MONITOR: source.monitor, Split.TUNING: source.tuning}
    if sum(sizes.values()) >= len(records):
        raise UserError(
            f"{title}: held_out {source.held_out} + monitor {source.monitor} + tuning {source.tuning} leave "
            f"nothing of {len(records)} usable dialogues in {source.path} for calibration"
        )

    def key(record: Record) -> tuple[bytes, Any]:
        text, tie = order(record)
        return blake2b(f"{source.seed}|{text}".encode(), digest_size=8).digest(), tie

    shuffled = sorted(records, key=key)
    splits: dict[Split, list[Record]] = {}
    for split, size in sizes.items():
        splits[split], shuffled = shuffled[:size], shuffled[size:]
    splits[Split.CALIBRATION] = shuffled
    return splits


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
