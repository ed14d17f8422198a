"""Your own dialogues, in files of any format that is known: JSON Lines as ``record.py`` describes them, and those of
``formats/`` (OpenAI messages, ShareGPT, ConvoKit, tables, ...) in the files of ``containers/``, compressed or not.

A dialogue that does not fit is named in ``problems`` and costs no other one.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from calibrated_rl.components.plain_data import NotPlain
from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, Refused
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.reading import read_logs
from calibrated_rl.logs.record import JsonlRecord
from calibrated_rl.logs.summary import personal_line
from calibrated_rl.settings.fields import Name, Seed, Share, check_settings
from calibrated_rl.tasks.base import BoundedTask, Task
from calibrated_rl.tasks.checked import checked_outcome, checked_task

logger = logging.getLogger(__name__)

LEAST_ALIKE = 4
"""From so many turns on, a dialogue does not occur word for word under two ids by chance."""


def read_jsonl(file: Path) -> tuple[list[JsonlRecord], list[LogProblem]]:
    """All dialogues of a file that fit, in its order, and those that do not.

    Raises:
        UserError: the file cannot be read, or no dialogue of it fits.
    """
    records, reading = read_logs([str(file)])
    return records, reading.problems


class JsonLines:
    """Reads files as dialogues of ``task``; see the module's docstring.

    Raises:
        UserError: the file is missing or no line fits, or the shares of the splits are impossible.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FileSettings):
        path: Name = "logs.jsonl"
        """The file; or a folder, a pattern such as `logs/*.jsonl.gz`, a data set of the hub that is on this machine."""
        held_out: Share = 0.3
        """Share of the dialogues without a ``split`` that goes to the held-out split."""
        monitor: Share = 0.1
        """Their share in the monitor split."""
        tuning: Share = 0.1
        """Their share in the tuning split; the rest is for calibration."""
        seed: Seed = 0
        """Draws the splits, dialogue by dialogue from its id: adding lines moves no other dialogue."""
        greeting: str = "Hello, how can I help you?"
        """Put before dialogues in which the user speaks first."""
        policy_instructions: str = "You are a helpful assistant."
        """What the policy's side was told, where the line does not say."""
        user_instructions: str = "You are a person who talks to an assistant."
        """What a simulator is told, where the line does not say."""

    def __init__(self, config: Config | None = None, *, task: Task) -> None:
        self.config = config = config or self.Config()
        shares = (config.held_out, config.monitor, config.tuning)
        check_settings(config, "logs")
        if sum(shares) > 1:
            raise UserError("logs: 'held_out', 'monitor' and 'tuning' are shares that add up to at most 1")
        self.task = checked_task(task)
        self._bounds = self.task.reward_range() if isinstance(self.task, BoundedTask) else None
        records, reading = read_logs([config.path], config)
        self.problems = reading.problems
        if personal := personal_line(reading.report):
            logger.info(f"{config.path}: {personal}")
        self._dialogues: dict[Split, list[Dialogue]] = {split: [] for split in Split}
        self._first: dict[tuple[tuple[Side, str], ...], tuple[JsonlRecord, Split]] = {}
        """The first record of each dialogue of at least ``LEAST_ALIKE`` turns, by its turns."""
        for record in records:
            try:
                dialogue = self._dialogue(record)
            except Refused as refusal:
                self.problems.append(LogProblem(record.file, record.line, str(refusal)))
            else:
                self._dialogues[dialogue.scenario.split].append(dialogue)
        self.problems.sort(key=lambda problem: (problem.file, problem.line))

    def read(self, split: Split) -> list[Dialogue]:
        """The dialogues of ``split`` in the file's order.

        Raises:
            UserError: the split has none.
        """
        if not self._dialogues[split]:
            split_sizes = ", ".join(f"{name} {len(dialogues)}" for name, dialogues in self._dialogues.items())
            first = f"; the first of {len(self.problems)} refused: {self.problems[0]}" if self.problems else ""
            raise UserError(
                f"{self.config.path}: no dialogue for the {split} split (dialogues a split: {split_sizes}); "
                f'raise its share, mark lines with "split": "{split}", or give more dialogues{first}'
            )
        return list(self._dialogues[split])

    def _split(self, record: JsonlRecord) -> Split:
        """The line's own, that of the line that it repeats, or the one that is drawn by its group or its id.

        Raises:
            Refused: it repeats a line of another split: what is fitted on the one would be evaluated on the other.
        """
        wanted = record.split or self._drawn(record)
        if len(record.turns) < LEAST_ALIKE:
            return wanted
        first, split = self._first.setdefault(record.turns, (record, wanted))
        is_bound = record.split is not None or "split_group" in record.optional
        if is_bound and wanted is not split:
            raise Refused(f"it is word for word the dialogue of line {first.line}, which is in the {split} split")
        return split

    def _drawn(self, record: JsonlRecord) -> Split:
        name = record.optional.get("split_group", record.id)
        digest = blake2b(f"{self.config.seed}|{name}".encode("utf-8", "backslashreplace"), digest_size=8)
        draw = int.from_bytes(digest.digest(), "big") / 2**64
        for split in (Split.HELD_OUT, Split.MONITOR, Split.TUNING):
            share: float = getattr(self.config, split.value)
            if draw < share:
                return split
            draw -= share
        return Split.CALIBRATION

    def _dialogue(self, record: JsonlRecord) -> Dialogue:
        optional = record.optional
        greeted = record.turns[0][0] is Side.POLICY
        greeting = record.turns[0][1] if greeted else self.config.greeting
        scenario = Scenario(
            id=record.id,
            split=self._split(record),
            policy_instructions=optional.get("policy_instructions", self.config.policy_instructions),
            user_instructions=optional.get("user_instructions", self.config.user_instructions),
            greeting=greeting,
            goal=optional.get("goal", {}),
        )
        spoken = record.turns[1:] if greeted else record.turns
        turns = (
            Turn(side=Side.POLICY, text=greeting, source=Source.GREETING),
            *(Turn(side=side, text=text, source=Source.LOG) for side, text in spoken),
        )
        if optional.get("asked"):
            made_up = {Side.POLICY: Source.POLICY, Side.USER: Source.SIMULATOR}
            turns = (turns[0], *(replace(turn, source=made_up[turn.side]) for turn in turns[1:-1]), turns[-1])
        ending, outcome, acts = self._evaluate(scenario, turns, optional)
        return Dialogue(
            id=f"log-{record.id}",
            task=self.task.name,
            scenario=scenario,
            turns=turns,
            ending=ending,
            outcome=outcome,
            kind="log",
            group_id=f"log-{record.id}",
            annotations={"acts": acts, **annotations_of(record, greeted)},
        )

    def _evaluate(
        self, scenario: Scenario, turns: tuple[Turn, ...], optional: Mapping[str, Any]
    ) -> tuple[str, Outcome | None, list[list[str]]]:
        """Ending, outcome (the line's own, else the task's if the line has a goal, else None) and acts."""
        ending, outcome = str(optional.get("ending") or ""), None
        try:
            if "reward" in optional:
                # Before the task is called: the line's reward is what most lines differ in.
                outcome = checked_outcome(
                    Outcome(reward=optional["reward"], success=optional["success"]), turns, self._bounds
                )  # fmt: skip
            asked = bool(optional.get("asked"))
            ending = ending or ("asked" if asked else self.task.ending(scenario, turns) or "log_end")
            if outcome is None and "goal" in optional and not asked:
                outcome = self.task.outcome(scenario, turns, ending)
            acts = [list(self.task.acts(scenario, turns, index)) for index in range(len(turns))]
        except NotPlain as problem:
            raise Refused(f"'{problem.place}' {problem.reason}") from None
        except (UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # A goal is data of the user's; what a task makes of a foreign one shows as one of these.
            reason = error.raised if isinstance(error, UserCodeError) else str(error)
            reason = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
            complaint = (
                "cannot use this line's goal" if "goal" in optional else "cannot evaluate this line, which has no goal"
            )
            raise Refused(f"the task {self.task.name} {complaint} ({reason})") from error
        return ending, outcome, acts


def annotations_of(record: JsonlRecord, greeted: bool = True) -> dict[str, Any]:
    """What is kept of a record beside its turns: ``metadata``, and ``turn_metadata``, for each turn of the dialogue the
    metadata of what was joined in it; each where there is some.

    Args:
        greeted: whether the record's first turn is the dialogue's first, or follows a greeting that the record lacks.
    """
    turns = [[dict(each) for each in turn] for turn in record.turn_metadata]
    return {
        **({"metadata": dict(record.metadata)} if record.metadata else {}),
        **({"turn_metadata": turns if greeted else [[], *turns]} if turns else {}),
    }
