"""Log readers, wrapped in checks (``components/checked.py``), and the logs of a run as all jobs read them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

from calibrated_rl.components.checked import CheckedPart
from calibrated_rl.components.component import build, import_path
from calibrated_rl.components.plain_data import NotPlain, kind_of, plain, words
from calibrated_rl.components.user_code import described, is_ours
from calibrated_rl.data.dialogue import Dialogue, Side, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, LogReader
from calibrated_rl.tasks.base import BoundedTask, Task
from calibrated_rl.tasks.checked import (
    checked_outcome,
    checked_scenario,
    refuse_duplicates,
    refuse_missing,
    refuse_two_splits,
    unchecked,
)


class _NoTask:
    """Takes the task's place where none is named."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError(f"the log reader asks its task for '{name}', and no task is named (--task)")


def build_reader(path: str, values: Mapping[str, Any] | None, location: str, task: Task | None) -> LogReader:
    """The log reader at import path ``path``, with checks.

    Args:
        task: None where none is named; a reader that asks for it is refused then.

    Raises:
        UserError: it cannot be built, or is no log reader.
    """
    cls = import_path(path)
    reader_task: Any = unchecked(task) if isinstance(cls, type) and not is_ours(cls) else task
    reader_task = _NoTask() if task is None else reader_task
    return checked_reader(build(path, values, location, task=reader_task), task)


def checked_reader(reader: LogReader, task: Task | None) -> LogReader:
    """``reader``, whose dialogues are of ``task`` where one is known, with checks.

    Raises:
        UserError: it lacks a method, or its problems are no list of ``LogProblem``.
    """
    return reader if isinstance(reader, CheckedReader) else cast("LogReader", CheckedReader(reader, task))


class CheckedReader(CheckedPart):
    """A log reader of which every dialogue is used or refused."""

    _KIND = "log reader"

    def __init__(self, part: Any, task: Task | None) -> None:
        refuse_missing(part, self._KIND, ("read",))
        super().__init__(part)
        self.__dict__["_seen"], self.__dict__["_task"] = {}, task
        problems = getattr(self, "problems", None)
        if not isinstance(problems, list) or not all(isinstance(each, LogProblem) for each in problems):
            description = f"{described(type(part), self._KIND)}: problems is {kind_of(problems)}"
            raise UserError(f"{description}: it must be a list of LogProblem")

    def __reduce__(self) -> Any:
        return type(self), (self.__dict__["_part"], self.__dict__["_task"])

    def _checks(self) -> Mapping[str, Callable[..., Any]]:
        return {"read": self._read}

    def _about(self, name: str, arguments: tuple[Any, ...]) -> str:
        return f", {arguments[0]}" if arguments else ""

    def _read(self, returned: Any, split: Split) -> list[Dialogue]:
        if not isinstance(returned, list | tuple):
            raise NotPlain("it", f"is {kind_of(returned)}: it must be a list of dialogues")
        if not returned:
            raise NotPlain("it", "is empty: a reader must raise UserError and say what is wanted")
        task: Task | None = self.__dict__["_task"]
        bounds = task.reward_range() if isinstance(task, BoundedTask) else None
        dialogues = [_checked_log(each, f"dialogue {index}", split, bounds) for index, each in enumerate(returned)]
        names = [dialogue.id for dialogue in dialogues]
        refuse_duplicates(names, "dialogue")
        refuse_two_splits(self.__dict__["_seen"], split, names, "dialogue")
        self.__dict__["_seen"][split] = names
        return dialogues


def _checked_log(log: Any, place: str, split: Split, bounds: tuple[float, float] | None) -> Dialogue:
    """A logged dialogue of ``split`` that can be learned from and stored.

    Raises:
        NotPlain: something of it is of another type, or its turns do not alternate.
    """
    if not isinstance(log, Dialogue):
        raise NotPlain(place, f"is {kind_of(log)}: it must be a Dialogue")
    place = f"dialogue '{words(log.id, f'{place}: id')}'"
    if log.kind != "log":
        raise NotPlain(f"{place}: kind", f"is {kind_of(log.kind)}: it must be 'log'")
    words(log.ending, f"{place}: ending")
    words(log.group_id, f"{place}: group_id", blank=True)
    scenario = checked_scenario(log.scenario, f"{place}: scenario", split, None)
    turns = log.turns
    if not isinstance(turns, tuple | list) or not all(isinstance(turn, Turn) for turn in turns) or not turns:
        raise NotPlain(f"{place}: turns", f"is {kind_of(turns)}: it must be a tuple of at least one Turn")
    for index, turn in enumerate(turns):
        words(turn.text, f"{place}: turns[{index}].text", blank=not index)
        if turn.side is not (Side.USER if index % 2 else Side.POLICY):
            raise NotPlain(
                f"{place}: turns[{index}].side", f"is {turn.side}: the policy's greeting comes first, then the sides "
                "take turns",
            )  # fmt: skip
    outcome = log.outcome
    if outcome is not None:
        try:
            outcome = checked_outcome(outcome, turns, bounds)
        except NotPlain as problem:
            raise NotPlain(f"{place}: outcome.{problem.place}", problem.reason) from None
    if not isinstance(log.annotations, Mapping):
        raise NotPlain(f"{place}: annotations", f"is {kind_of(log.annotations)}: it must be a mapping")
    annotations = plain(log.annotations, f"{place}: annotations")
    return dataclasses.replace(log, scenario=scenario, turns=tuple(turns), outcome=outcome, annotations=annotations)
