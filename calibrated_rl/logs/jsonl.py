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
- ``asked``: optional boolean; true for a reply that a human was asked for (``calibrated-rl ask``): only the last turn,
  of side ``user``, is a human's. The turns before were said by a policy and a simulator, and nothing is learned from
  them. Such a dialogue is not over: it has no outcome, and its ending is ``asked`` unless the line has one.

Other keys are refused, so that a misspelt one is not silently lost. A line that does not fit is named in
``problems`` and costs no other line.
"""

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from calibrated_rl.components.plain_data import NotPlain, kind_of
from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError, printable
from calibrated_rl.logs.base import LogProblem, json_problem, object_of, refuse_other_files
from calibrated_rl.settings.fields import Name, Seed, Share, check_settings
from calibrated_rl.tasks.base import BoundedTask, Task
from calibrated_rl.tasks.checked import checked_outcome, checked_task

WANTED = 'wanted is one JSON object a line, at least {"id": ..., "turns": [{"side": "user", "text": ...}, ...]}'

_OPTIONAL: dict[str, tuple[type, ...]] = {
    "goal": (dict,),
    "reward": (int, float),
    "success": (bool,),
    "ending": (str,),
    "split": (str,),
    "policy_instructions": (str,),
    "user_instructions": (str,),
    "asked": (bool,),
}
LONGEST_LINE = 64 * 2**20
"""Bytes. A dialogue of human users is some KiB; what is longer has lost its line breaks."""
LEAST_ALIKE = 4
"""From so many turns on, a dialogue does not occur word for word under two ids by chance."""
_SIDES = {"user": "user", "human": "user", "customer": "user", "policy": "policy", "assistant": "policy",
          "agent": "policy", "bot": "policy"}  # fmt: skip
"""Other common names of the two sides."""
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
    refuse_other_files(file, WANTED)
    records: dict[str, JsonlRecord] = {}
    problems: list[LogProblem] = []
    for number, line in _lines(file):
        try:
            if line is None:
                raise _Refused(f"the line is longer than {LONGEST_LINE >> 20} MiB")
            record = _record(line, number)
            if record.id in records:
                raise _Refused(f"id '{record.id}' occurred before, in line {records[record.id].line}")
            records[record.id] = record
        except _Refused as refusal:
            problems.append(LogProblem(str(file), number, str(refusal)))
    one_value = len(problems) > 1 and _is_one_value(file)
    if not records or one_value:
        first = f"; the first reason: {problems[0]}" if problems else ""
        complaint = "looks like one JSON value over many lines" if one_value else "contains no usable dialogue"
        raise UserError(f"{file} {complaint}{first}; {WANTED}")
    return list(records.values()), problems


def _lines(file: Path) -> Iterator[tuple[int, bytes | None]]:
    """Number and bytes of each line that is not blank; None for one that is too long."""
    try:
        with file.open("rb") as stream:
            number = 0
            while line := stream.readline(LONGEST_LINE + 1):
                number += 1
                is_short_enough = len(line) <= LONGEST_LINE
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    line = stream.readline(LONGEST_LINE + 1) or b"\n"
                if not is_short_enough:
                    yield number, None
                elif line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {WANTED}") from error


def _is_one_value(file: Path) -> bool:
    """Whether the file is one JSON value over many lines (pretty-printed JSON) instead of one value a line."""
    first = next((line for _, line in _lines(file)), None) or b""
    return first.removeprefix(b"\xef\xbb\xbf").strip()[:1] in (b"[", b"{") and len(first.strip()) < 3


def _record(line: bytes, number: int) -> JsonlRecord:
    try:
        raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"), object_pairs_hook=object_of)
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
    if missing_keys := [key for key in ("id", "turns") if key not in raw]:
        raise _Refused(f"'{missing_keys[0]}' is missing")
    if unknown := [key for key in raw if key not in ("id", "turns", *_OPTIONAL)]:
        raise _Refused(f"unknown key {_unknown(unknown[0], ('id', 'turns', *_OPTIONAL))}")
    if not isinstance(raw["id"], str | int) or isinstance(raw["id"], bool) or not str(raw["id"]).strip():
        raise _Refused("'id' is neither a string nor an integer, or blank")
    optional = {key: raw[key] for key in _OPTIONAL if raw.get(key) is not None}
    for key, value in optional.items():
        if not isinstance(value, _OPTIONAL[key]) or (isinstance(value, bool) and bool not in _OPTIONAL[key]):
            raise _Refused(f"'{key}' is not of type {_JSON_NAMES[_OPTIONAL[key][0]]} (it is {kind_of(value)})")
    if "ending" in optional and not optional["ending"].strip():
        raise _Refused("'ending' is blank: leave it out, and the task says why the dialogue ended")
    if ("reward" in optional) != ("success" in optional):
        raise _Refused("'reward' and 'success' go together: give both or neither")
    if not _finite(optional.get("reward", 0.0)):
        raise _Refused("'reward' is not a finite number")
    if optional.get("asked") and "reward" in optional:
        raise _Refused("'asked' and 'reward' exclude each other: a dialogue that was asked about is not over")
    split = optional.get("split")
    if split is not None and split not in list(Split):
        raise _Refused(f"'split' is {_unknown(split, tuple(Split))}")
    turns = _turns(raw["turns"])
    if optional.get("asked") and turns[-1][0] is not Side.USER:
        raise _Refused("'asked' is true, and the last turn is not the user's: it is the reply that was asked for")
    return JsonlRecord(
        id=str(raw["id"]),
        line=number,
        turns=turns,
        split=None if split is None else Split(split),
        optional=optional,
    )


def _unknown(word: str, valid_names: Sequence[str]) -> str:
    """``'wrod'; did you mean 'word'?``, or with all that are known."""
    close = difflib.get_close_matches(word.lower().replace("-", "_").replace(" ", "_"), valid_names, n=1)
    # Not only the nearest: it may not be what was meant.
    hint = f"; did you mean '{close[0]}'?" if close else ","
    return f"'{printable(word, 40)}'{hint} known are {', '.join(valid_names)}"


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
        place = f"turns[{index}]"
        if not isinstance(turn, dict):
            raise _Refused(f"{place} is not an object of exactly 'side' and 'text' (it is {kind_of(turn)})")
        if set(turn) != {"side", "text"}:
            has = ", ".join(printable(repr(key), 40) for key in list(turn)[:5]) or "no key"
            raise _Refused(f"{place} is not an object of exactly 'side' and 'text' (it has {has})")
        if turn["side"] not in list(Side):
            hint = f"; did you mean '{_SIDES[name]}'?" if (name := str(turn["side"]).strip().lower()) in _SIDES else ""
            raise _Refused(f"{place}: 'side' is {printable(repr(turn['side']), 40)}, not 'user' or 'policy'{hint}")
        if not isinstance(turn["text"], str):
            raise _Refused(f"{place}: 'text' is {kind_of(turn['text'])}: 'text' is blank or no string")
        if not turn["text"].strip():
            raise _Refused(f"{place}: 'text' is blank or no string")
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
        self.task = checked_task(task)
        self._bounds = self.task.reward_range() if isinstance(self.task, BoundedTask) else None
        records, self.problems = read_jsonl(Path(config.path).expanduser())
        self._dialogues: dict[Split, list[Dialogue]] = {split: [] for split in Split}
        self._first: dict[tuple[tuple[Side, str], ...], tuple[JsonlRecord, Split]] = {}
        """The first record of each dialogue of at least ``LEAST_ALIKE`` turns, by its turns."""
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
            split_sizes = ", ".join(f"{name} {len(dialogues)}" for name, dialogues in self._dialogues.items())
            first = f"; the first of {len(self.problems)} refused: {self.problems[0]}" if self.problems else ""
            raise UserError(
                f"{self.config.path}: no dialogue for the {split} split (dialogues a split: {split_sizes}); "
                f'raise its share, mark lines with "split": "{split}", or give more dialogues{first}'
            )
        return list(self._dialogues[split])

    def _split(self, record: JsonlRecord) -> Split:
        """The line's own, that of the line that it repeats, or the one that is drawn by its id.

        Raises:
            _Refused: it repeats a line of another split: what is fitted on the one would be evaluated on the other.
        """
        if len(record.turns) < LEAST_ALIKE:
            return record.split or self._drawn(record)
        first, split = self._first.setdefault(record.turns, (record, record.split or self._drawn(record)))
        if record.split not in (None, split):
            raise _Refused(f"it is word for word the dialogue of line {first.line}, which is in the {split} split")
        return split

    def _drawn(self, record: JsonlRecord) -> Split:
        digest = blake2b(f"{self.config.seed}|{record.id}".encode("utf-8", "backslashreplace"), digest_size=8)
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
            annotations={"acts": acts},
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
            raise _Refused(f"'{problem.place}' {problem.reason}") from None
        except (UserError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            # A goal is data of the user's; what a task makes of a foreign one shows as one of these.
            reason = error.raised if isinstance(error, UserCodeError) else str(error)
            reason = reason if isinstance(error, UserError) else f"{type(error).__name__}: {reason}"
            complaint = (
                "cannot use this line's goal" if "goal" in optional else "cannot evaluate this line, which has no goal"
            )
            raise _Refused(f"the task {self.task.name} {complaint} ({reason})") from error
        return ending, outcome, acts
