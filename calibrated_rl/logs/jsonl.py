"""Your own dialogues as JSON Lines: one dialogue a line, UTF-8. Blank lines are ignored.

    {"id": 7, "turns": [{"side": "user", "text": "For two"}, {"side": "policy", "text": "Which day?"}]}

- ``id``: required; string or integer, once in the file.
- ``turns``: required; at least one of side ``user``. ``side`` is ``user`` or ``policy``, ``text`` is not
  blank. A side's consecutive turns are joined by line breaks. If the policy's side speaks first, that turn is
  the dialogue's greeting; otherwise the greeting of the config is put before it.
- ``goal``: optional object; the other side's private goal, as the task understands it.
- ``reward``, ``success``: optional number and boolean, always together; what the dialogue was worth: its
  whole return, rewards of turns included.
- ``ending``: optional string; without it the task says why the dialogue ended, or it is ``log_end``.
- ``split``: optional; ``calibration``, ``monitor``, ``tuning`` or ``held_out``. Without it the id decides.
- ``policy_instructions``, ``user_instructions``: optional strings; what each side is told, instead of the
  config's.

Other keys are refused, so that a misspelt one is not silently lost. A line that does not fit is named in
``problems`` and costs no other line.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from calibrated_rl.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, json_problem
from calibrated_rl.settings import Name, Seed, Share, check_settings
from calibrated_rl.tasks.base import Task

WANTED = (
    'wanted is one JSON object a line, at least {"id": ..., "turns": [{"side": "user", "text": ...}, ...]}'
)

_OPTIONAL: dict[str, tuple[type, ...]] = {
    "goal": (dict,),
    "reward": (int, float),
    "success": (bool,),
    "ending": (str,),
    "split": (str,),
    "policy_instructions": (str,),
    "user_instructions": (str,),
}
_JSON_NAMES = {dict: "object", int: "number", float: "number", bool: "boolean", str: "string"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlRecord:
    """One line that fits."""

    id: str
    line: int
    turns: tuple[tuple[Side, str], ...]
    """Alternating."""
    split: Split | None
    optional: Mapping[str, Any] = field(default_factory=dict)
    """The optional keys that the line has."""


class _Refused(Exception):
    """Why a line cannot be used."""


def read_jsonl(file: Path) -> tuple[list[JsonlRecord], list[LogProblem]]:
    """All lines that fit, in the file's order, and those that do not.

    Raises:
        UserError: the file cannot be read, or no line of it fits.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}; {WANTED}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {WANTED}") from error
    records: dict[str, JsonlRecord] = {}
    problems: list[LogProblem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _record(line, number)
            if record.id in records:
                raise _Refused(f"id '{record.id}' occurred before, in line {records[record.id].line}")
            records[record.id] = record
        except _Refused as refusal:
            problems.append(LogProblem(str(file), number, str(refusal)))
    if not records:
        first = f"; the first reason: {problems[0]}" if problems else ""
        raise UserError(f"{file} holds no usable dialogue{first}; {WANTED}")
    return list(records.values()), problems


def _record(line: bytes, number: int) -> JsonlRecord:
    try:
        raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise _Refused(f"not UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise _Refused(f"not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise _Refused(f"not usable JSON: {error}") from error
    if problem := json_problem(raw):
        raise _Refused(problem)
    if not isinstance(raw, dict):
        raise _Refused("the line is not a JSON object")
    if missing := [key for key in ("id", "turns") if key not in raw]:
        raise _Refused(f"'{missing[0]}' is missing")
    if unknown := [key for key in raw if key not in ("id", "turns", *_OPTIONAL)]:
        raise _Refused(f"unknown key '{unknown[0]}'; known are id, turns, {', '.join(_OPTIONAL)}")
    if not isinstance(raw["id"], str | int) or isinstance(raw["id"], bool) or raw["id"] == "":
        raise _Refused("'id' is neither a string nor an integer")
    optional = {key: raw[key] for key in _OPTIONAL if raw.get(key) is not None}
    for key, value in optional.items():
        if not isinstance(value, _OPTIONAL[key]) or (isinstance(value, bool) and key != "success"):
            raise _Refused(f"'{key}' is not of type {_JSON_NAMES[_OPTIONAL[key][0]]}")
    if ("reward" in optional) != ("success" in optional):
        raise _Refused("'reward' and 'success' go together: give both or neither")
    if not _finite(optional.get("reward", 0.0)):
        raise _Refused("'reward' is not a finite number")
    split = optional.get("split")
    if split is not None and split not in list(Split):
        raise _Refused(f"'split' is '{split}', not one of {', '.join(Split)}")
    return JsonlRecord(
        id=str(raw["id"]),
        line=number,
        turns=_turns(raw["turns"]),
        split=None if split is None else Split(split),
        optional=optional,
    )


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _turns(raw: Any) -> tuple[tuple[Side, str], ...]:
    if not isinstance(raw, list) or not raw:
        raise _Refused("'turns' is not a list of at least one turn")
    turns: list[tuple[Side, str]] = []
    for index, turn in enumerate(raw):
        where = f"turns[{index}]"
        if not isinstance(turn, dict) or set(turn) != {"side", "text"}:
            raise _Refused(f"{where} is not an object of exactly 'side' and 'text'")
        if turn["side"] not in list(Side):
            raise _Refused(f"{where}: 'side' is {turn['side']!r}, not 'user' or 'policy'")
        if not isinstance(turn["text"], str) or not turn["text"].strip():
            raise _Refused(f"{where}: 'text' is blank or no string")
        side, text = Side(turn["side"]), turn["text"].strip()
        if turns and turns[-1][0] is side:
            turns[-1] = (side, f"{turns[-1][1]}\n{text}")
        else:
            turns.append((side, text))
    if all(side is Side.POLICY for side, _ in turns):
        raise _Refused("the user never speaks")
    return tuple(turns)


class JsonLines:
    """Reads one file of JSON Lines as dialogues of ``task``; see the module's docstring.

    Raises:
        UserError: the file is missing or no line fits, or the shares of the splits are impossible.
    """

    @dataclass(frozen=True)
    class Config:
        path: Name = "logs.jsonl"
        """The file."""
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
        self.task = task
        records, self.problems = read_jsonl(Path(config.path).expanduser())
        self._dialogues: dict[Split, list[Dialogue]] = {split: [] for split in Split}
        for record in records:
            try:
                dialogue = self._dialogue(record)
            except _Refused as refusal:
                self.problems.append(LogProblem(config.path, record.line, str(refusal)))
            else:
                self._dialogues[dialogue.scenario.split].append(dialogue)
        self.problems.sort(key=lambda problem: problem.line)

    def read(self, split: Split) -> list[Dialogue]:
        """The dialogues of ``split`` in the file's order.

        Raises:
            UserError: the split has none.
        """
        if not self._dialogues[split]:
            raise UserError(
                f"{self.config.path}: no dialogue for the {split} split; raise its share or mark lines "
                f'with "split": "{split}"'
            )
        return list(self._dialogues[split])

    def _split(self, record: JsonlRecord) -> Split:
        if record.split is not None:
            return record.split
        digest = blake2b(f"{self.config.seed}|{record.id}".encode("utf-8", "backslashreplace"), digest_size=8)
        draw = int.from_bytes(digest.digest(), "big") / 2**64
        for split in (Split.HELD_OUT, Split.MONITOR, Split.TUNING):
            share: float = getattr(self.config, split.value)
            if draw < share:
                return split
            draw -= share
        return Split.CALIBRATION

    def _dialogue(self, record: JsonlRecord) -> Dialogue:
        told = record.optional
        greeted = record.turns[0][0] is Side.POLICY
        greeting = record.turns[0][1] if greeted else self.config.greeting
        scenario = Scenario(
            id=record.id,
            split=self._split(record),
            policy_instructions=told.get("policy_instructions", self.config.policy_instructions),
            user_instructions=told.get("user_instructions", self.config.user_instructions),
            greeting=greeting,
            goal=told.get("goal", {}),
        )
        spoken = record.turns[1:] if greeted else record.turns
        turns = (
            Turn(side=Side.POLICY, text=greeting, source=Source.GREETING),
            *(Turn(side=side, text=text, source=Source.LOG) for side, text in spoken),
        )
        ending, outcome, acts = self._judge(scenario, turns, told)
        return Dialogue(
            id=f"log-{record.id}",
            task=self.task.name,
            scenario=scenario,
            turns=turns,
            ending=ending,
            outcome=outcome,
            kind="log",
            group_id=f"log-{record.id}",
            annotations={"acts": acts},
        )

    def _judge(
        self, scenario: Scenario, turns: tuple[Turn, ...], told: Mapping[str, Any]
    ) -> tuple[str, Outcome | None, list[list[str]]]:
        """Ending, outcome (the line's own, else the task's if the line has a goal, else None) and acts."""
        try:
            ending = str(told.get("ending") or self.task.ending(scenario, turns) or "log_end")
            outcome = None
            if "reward" in told:
                outcome = Outcome(reward=float(told["reward"]), success=bool(told["success"]))
            elif "goal" in told:
                outcome = self.task.outcome(scenario, turns, ending)
            acts = [list(self.task.acts(scenario, turns, index)) for index in range(len(turns))]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # A goal is data of the user's; what a task makes of a foreign one shows as one of these.
            problem = f"{type(error).__name__}: {error}"
            raise _Refused(f"the task {self.task.name} cannot use this line's goal ({problem})") from error
        return ending, outcome, acts
