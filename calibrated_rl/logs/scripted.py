"""Human logs made on the spot: a scripted human talks with the task's logged policy.

Works for any ``ScriptedTask`` and any ``ScriptedHuman`` named by import path; it knows nothing of either.
A dialogue depends on its scenario and on the seeds alone, so that every read gives the same logs.
"""

from dataclasses import dataclass, field
from typing import Any, cast

from calibrated_rl.components.component import import_path
from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.settings.fields import Name, NotNegative, PartPath, Seed, check_settings
from calibrated_rl.tasks.base import ScriptedTask, Task, count_policy_turns
from calibrated_rl.tasks.checked import build_human, checked_task


class ScriptedLogs:
    """Reads the logs that a scripted population would have left behind.

    Raises:
        UserError: the task has no logged policy, ``human`` names no scripted human, or a count is negative.
    """

    @dataclass(frozen=True)
    class Config:
        human: PartPath = "calibrated_rl.examples.front_desk:FrontDeskHuman"
        """Import path of the scripted human."""
        human_config: dict[str, Any] = field(default_factory=dict)
        """The human's own config."""
        calibration: NotNegative = 3000
        """Dialogues of the calibration split."""
        monitor: NotNegative = 200
        """Dialogues of the monitor split."""
        tuning: NotNegative = 200
        """Dialogues of the tuning split."""
        held_out: NotNegative = 600
        """Dialogues of the held-out split."""
        population: Name = "same"
        """Population of the scenarios."""
        seed: Seed = 0
        """Seed of the logged policy."""

    def __init__(self, config: Config | None = None, *, task: Task) -> None:
        self.config = config = config or self.Config()
        self.problems: list[LogProblem] = []
        if not isinstance(task, ScriptedTask):
            raise UserError(f"scripted logs need a task with a logged policy; {task.name} has no 'logged_turn'")
        check_settings(config, "logs")
        self.task = cast("ScriptedTask", checked_task(task))
        missing_methods = [
            name for name in ("reply", "sample", "log_prob") if not hasattr(import_path(config.human), name)
        ]
        if missing_methods:
            raise UserError(f"'{config.human}' is no scripted human: it has no {', '.join(missing_methods)}")
        self.human = build_human(config.human, config.human_config, "logs.human_config", task)

    def read(self, split: Split) -> list[Dialogue]:
        """The logged dialogues of ``split``, one for each of its first scenarios.

        Raises:
            UserError: the split's count is 0.
        """
        count = int(getattr(self.config, split))
        if not count:
            raise UserError(f"scripted logs: the {split} split is empty; set logs.{split} above 0")
        return [self.talk(s) for s in self.task.scenarios(split, count, self.config.population)]

    def talk(self, scenario: Scenario) -> Dialogue:
        """One logged dialogue, from the greeting to its ending."""
        task = self.task
        turns = [Turn(side=Side.POLICY, text=scenario.greeting, source=Source.GREETING)]
        ending: str | None = None
        while ending is None:
            if turns[-1].side is Side.POLICY:
                side, text = Side.USER, self.human.reply(scenario, turns)
            else:
                side, text = Side.POLICY, task.logged_turn(scenario, turns, self.config.seed)
            turns.append(Turn(side=side, text=text, source=Source.LOG))
            ending = task.ending(scenario, turns)
            if ending is None and side is Side.POLICY and count_policy_turns(turns) >= task.max_policy_turns:
                ending = "max_turns"
        return Dialogue(
            id=f"log-{scenario.id}",
            task=task.name,
            scenario=scenario,
            turns=tuple(turns),
            ending=ending,
            outcome=task.outcome(scenario, turns, ending),
            kind="log",
            group_id=f"log-{scenario.id}",
            annotations={"acts": [list(task.acts(scenario, turns, i)) for i in range(len(turns))]},
        )
