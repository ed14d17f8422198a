"""Deal or No Deal as logged dialogues of the ``DealOrNoDeal`` task: two a negotiation, with either side as the policy.

Entries become turns of text (``selection : book 1 hat 0 ball 2``): first that of the side that ended the talk. Lines
that do not fit are named in ``problems`` and skipped.
"""

from dataclasses import dataclass
from typing import Literal

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.deal_or_no_deal.deals import accepted_first_offer, entry_text
from calibrated_rl.examples.deal_or_no_deal.records import DealRecord, DealSource
from calibrated_rl.examples.deal_or_no_deal.task import DealOrNoDeal, counts_of, scenario_of
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.data_set import finished_log, refuse_other_source
from calibrated_rl.settings.fields import check_settings
from calibrated_rl.tasks.base import Task


class DealLogs:
    """Reads the splits that the task drew.

    Raises:
        UserError: the task is not ``DealOrNoDeal``, or reads other data or splits than this reader is told to.
    """

    @dataclass(frozen=True)
    class Config(DealSource):
        only: Literal["all", "first_offer_accepted"] = "all"
        """`first_offer_accepted`: only dialogues in which the other side took the policy side's first offer, read by
        rule, about a tenth: the logs of an agreeable simulator, selected from real ones."""

    def __init__(self, config: Config | None = None, *, task: Task) -> None:
        self.config = config = config or self.Config()
        check_settings(config, "logs")
        if not isinstance(task, DealOrNoDeal):
            raise UserError(f"Deal or No Deal logs are of the task DealOrNoDeal, not of {task.name}")
        refuse_other_source("Deal or No Deal", DealSource, config, task.config)
        self.task = task
        self.problems: list[LogProblem] = list(task.file.problems)

    def read(self, split: Split) -> list[Dialogue]:
        """The logged dialogues of ``split``, in the order of the task's scenarios.

        Raises:
            UserError: the split has size 0, or no dialogue of the selected kind.
        """
        if not self.task.records[split]:
            raise UserError(f"Deal or No Deal: the {split} split is empty; set '{split}' above 0")
        dialogues = [self._dialogue(record, seat, split) for record, seat in self.task.seats(split)]
        if self.config.only == "first_offer_accepted":
            dialogues = [dialogue for dialogue in dialogues if _accepted(dialogue)]
            if not dialogues:
                raise UserError(f"Deal or No Deal: in no dialogue of the {split} split was the first offer accepted")
        return dialogues

    def _dialogue(self, record: DealRecord, seat: int, split: Split) -> Dialogue:
        scenario = scenario_of(record, seat, split)
        return finished_log(self.task, scenario, turns_of(record, seat, scenario), {"dialogue": record.id})


def turns_of(record: DealRecord, seat: int, scenario: Scenario) -> tuple[Turn, ...]:
    """The dialogue with the policy in ``seat``, from its greeting to the second entry."""
    ended_by = len(record.talk) % 2
    texts = [*record.talk, *(entry_text(record.entries[speaker]) for speaker in (ended_by, 1 - ended_by))]
    greeting = Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)
    turns = [
        Turn(side=Side.POLICY if number % 2 == seat else Side.USER, text=text, source=Source.LOG)
        for number, text in enumerate(texts)
    ]
    return (greeting, *(turns if seat else turns[1:]))


def _accepted(dialogue: Dialogue) -> bool:
    pairs = [(turn.side, turn.text) for turn in dialogue.turns]
    return accepted_first_offer(pairs, counts_of(dialogue.scenario))
