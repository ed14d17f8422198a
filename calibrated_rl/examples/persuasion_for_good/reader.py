"""Persuasion for Good as logged dialogues of the ``PersuasionForGood`` task.

What was given becomes a line of text (``Donate: $0.50``) at the end of the user's last turn, or a turn of its own where
the other side had the last word. The page asked for it after the talk. Dialogues that do not fit are named in
``problems`` and skipped.
"""

from dataclasses import dataclass
from typing import Literal

from calibrated_rl.data.dialogue import Dialogue, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.persuasion_for_good.records import PersuasionRecord, PersuasionSource
from calibrated_rl.examples.persuasion_for_good.task import PersuasionForGood, decision_line, scenario_of
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.data_set import finished_log, refuse_other_source
from calibrated_rl.settings.fields import check_settings
from calibrated_rl.tasks.base import Task

GENEROUS_CENTS = 100


class PersuasionLogs:
    """Reads the splits that the task drew.

    Raises:
        UserError: the task is not ``PersuasionForGood``, or reads other data or splits than this reader is told to.
    """

    @dataclass(frozen=True)
    class Config(PersuasionSource):
        only: Literal["all", "generous"] = "all"
        """`generous`: only dialogues in which at least a dollar was given, about a fifth: the logs of an agreeable
        simulator, selected from real ones."""

    def __init__(self, config: Config | None = None, *, task: Task) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "logs")
        if not isinstance(task, PersuasionForGood):
            raise UserError(f"Persuasion for Good logs are of the task PersuasionForGood, not of {task.name}")
        refuse_other_source("Persuasion for Good", PersuasionSource, config, task.config)
        self.task = task
        self.problems: list[LogProblem] = list(task.problems)

    def read(self, split: Split) -> list[Dialogue]:
        """The logged dialogues of ``split``, in the order of the task's scenarios.

        Raises:
            UserError: the split has size 0, or no dialogue of the selected kind.
        """
        records = self.task.records[split]
        if not records:
            raise UserError(f"Persuasion for Good: the {split} split is empty; set '{split}' above 0")
        if self.config.only == "generous":
            records = [record for record in records if record.cents >= GENEROUS_CENTS]
            if not records:
                raise UserError(f"Persuasion for Good: in no dialogue of the {split} split was a dollar given")
        return [self._dialogue(record, split) for record in records]

    def _dialogue(self, record: PersuasionRecord, split: Split) -> Dialogue:
        scenario = scenario_of(record, split)
        return finished_log(self.task, scenario, turns_of(record), {"dialogue": record.id})


def turns_of(record: PersuasionRecord) -> tuple[Turn, ...]:
    """The dialogue from its greeting to what is given."""
    greeting, *talk = record.talk
    decision = decision_line(record.cents)
    if len(talk) % 2:
        talk[-1] = f"{talk[-1]}\n{decision}"
    else:
        talk.append(decision)
    return (
        Turn(side=Side.POLICY, text=greeting, source=Source.GREETING),
        *(
            Turn(side=Side.POLICY if number % 2 else Side.USER, text=text, source=Source.LOG)
            for number, text in enumerate(talk)
        ),
    )
