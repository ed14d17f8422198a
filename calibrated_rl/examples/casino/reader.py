"""CaSiNo negotiations as logged dialogues of the ``Casino`` task.

Actions become lines of text (``Submit-Deal: I get ...``), so that a language model can say them. The greeting
is ours, the first speaker of the log is the USER, and a side's consecutive entries are lines of one turn.
Records that do not fit, do not end, or whose points do not follow from their deal are named in ``problems``
and skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from calibrated_rl.data.dialogue import Dialogue, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.casino.records import FILE, CasinoRecord, CasinoSource
from calibrated_rl.examples.casino.task import Casino, scenario_of
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.logs.data_set import finished_log, refuse_other_source
from calibrated_rl.tasks.base import Task


class CasinoLogs:
    """Reads the splits that the task drew.

    Raises:
        UserError: the task is not ``Casino``, or reads other data or splits than this reader is told to.
    """

    @dataclass(frozen=True)
    class Config(CasinoSource):
        pass

    def __init__(self, config: Config | None = None, *, task: Task) -> None:
        self.config = config = config or self.Config()
        if not isinstance(task, Casino):
            raise UserError(f"CaSiNo logs are of the task Casino, not of {task.name}")
        refuse_other_source("CaSiNo", CasinoSource, config, task.config)
        self.task = task
        self.problems: list[LogProblem] = list(task.problems)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether ``path`` is the folder of the data set, or a file named ``casino*.json``."""
        if path.is_dir():
            return (path / FILE).is_file()
        return path.name.startswith("casino") and path.suffix == ".json"

    @classmethod
    def whole(cls, path: Path) -> "CasinoLogs":
        """A reader of all negotiations of ``path`` as the calibration split."""
        everything = {"path": str(path), "held_out": 0, "monitor": 0, "tuning": 0}
        task = Casino(Casino.Config(**everything))  # type: ignore[arg-type]
        return cls(cls.Config(**everything), task=task)  # type: ignore[arg-type]

    def read(self, split: Split) -> list[Dialogue]:
        """The logged dialogues of ``split``, in the order of the task's scenarios.

        Raises:
            UserError: the split has size 0.
        """
        records = self.task.records[split]
        if not records:
            raise UserError(f"CaSiNo: the {split} split is empty; set '{split}' above 0")
        return [self._dialogue(record, split) for record in records]

    def _dialogue(self, record: CasinoRecord, split: Split) -> Dialogue:
        scenario = scenario_of(record, split)
        greeting = Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)
        turns = (greeting, *(Turn(side=side, text=text, source=Source.LOG) for side, text in record.turns))
        acts = [list(self.task.acts(scenario, turns, index)) for index in range(len(turns))]
        return finished_log(self.task, scenario, turns, {"acts": acts})
