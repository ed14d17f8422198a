"""What parts of users raise names their own line; what is a mistake of ours stays one."""

import pickle
import textwrap
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.calibration.checked import CheckedMethod
from calibrated_rl.components.component import build, import_path
from calibrated_rl.components.user_code import UserCodeError
from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import PartLost, UserError
from calibrated_rl.examples.front_desk.human import FrontDeskHuman
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.tasks.base import BoundedTask, ScriptedTask, Task, UserCheckingTask
from calibrated_rl.tasks.checked import build_human, build_task, checked_human, checked_task
from tests.support.made_up_shop import TURNS, Shop, asked, scenario


def part(folder: Path, body: str, name: str = "mine.py") -> Path:
    (folder / name).write_text(textwrap.dedent(body))
    return folder / name


OWN = """
    from dataclasses import dataclass
    from calibrated_rl.examples.front_desk.task import FrontDesk
    from calibrated_rl.examples.front_desk.human import FrontDeskHuman

    class Desk(FrontDesk):
        def outcome(self, scenario, turns, ending):
            return helper(ending)

    def helper(ending):
        {statement}

    class Guest(FrontDeskHuman):
        def reply(self, scenario, turns):
            {statement}
"""


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise KeyError('day')", "KeyError: 'day'"),
        ("assert not ending, 'two\\nlines'", "AssertionError: two"),
        ("import json; json.loads('{')", "JSONDecodeError: Expecting property name"),
        ("import sys; sys.exit(0)", r"it called sys.exit\(0\)"),
        ("raise StopIteration", "StopIteration"),
        ("raise ExceptionGroup('several', [ValueError('first'), TypeError('x')])", "ValueError: first"),
        ("import asyncio; asyncio.run(asyncio.wait_for(asyncio.sleep(9), 0.01))", "TimeoutError"),
        (
            "from concurrent.futures import ThreadPoolExecutor as P; P(1).submit(lambda: 1 / 0).result()",
            "ZeroDivisionError",
        ),
        ("helper(ending)", "RecursionError"),
        ("return FrontDesk.outcome(None, None, None, None)", "AttributeError|TypeError"),
    ],
)
def test_what_a_task_raises_names_the_users_line(statement: str, told: str, tmp_path: Path) -> None:
    file = part(tmp_path, OWN.format(statement=statement))
    task = build_task(f"{file}:Desk", {}, "task_config")
    named = rf"the task Desk: outcome \(.*mine.py:7\), scenario 's1' failed: ({told})"
    with pytest.raises(UserCodeError, match=named) as bad:
        task.outcome(scenario(), TURNS, "left")
    message = str(bad.value)
    assert f"{file}:11: {statement[:20]}" in message and "\n" not in message
    assert "Traceback" in bad.value.details and "mine.py" in bad.value.details
    sent = pickle.loads(pickle.dumps(bad.value))
    assert (str(sent), sent.details) == (message, bad.value.details), "as from another process"


def test_what_a_human_raises_names_the_users_line(tmp_path: Path) -> None:
    file = part(tmp_path, OWN.format(statement="raise RuntimeError('no idea')"))
    task = build_task(f"{file}:Desk", {}, "task_config")
    human = build_human(f"{file}:Guest", {}, "human_config", task)
    with pytest.raises(UserCodeError, match=rf"the human Guest: reply .* RuntimeError: no idea \({file}:15: raise"):
        human.reply(scenario(), TURNS[:1])


def test_a_call_that_does_not_fit_names_the_definition(tmp_path: Path) -> None:
    file = part(tmp_path, OWN.replace("outcome(self, scenario, turns, ending)", "outcome(self, scenario)").format(
        statement="pass"
    ))  # fmt: skip
    with pytest.raises(UserCodeError, match=rf"TypeError: Desk.outcome\(\) takes 2 .* \({file}:7: def outcome"):
        build_task(f"{file}:Desk", {}, "task_config").outcome(scenario(), TURNS, "left")


def test_an_async_method_is_refused(tmp_path: Path) -> None:
    file = part(tmp_path, OWN.replace("def outcome", "async def outcome").format(statement="pass"))
    with pytest.raises(UserError, match="outcome .*is 'async def', and nobody awaits it"):
        build_task(f"{file}:Desk", {}, "task_config").outcome(scenario(), TURNS, "left")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("mine"), PartLost("gone"), OSError(28, "full")])
def test_what_is_meant_for_others_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as passed:
        asked("outcome", error)
    assert passed.value is error


def test_a_mistake_of_ours_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrontDesk, "outcome", eval("lambda self, *_: 1 / 0"))
    with pytest.raises(ZeroDivisionError):
        build_task("calibrated_rl.examples.front_desk:FrontDesk", {}, "task_config").outcome(scenario(), TURNS, "left")

    def align(self: Any, inputs: Any) -> Any:
        return import_path(inputs)

    with pytest.raises(AttributeError) as shown:  # a method calls the running system, which may have mistakes
        CheckedMethod(type("Own", (), {"align": align})()).align(3)
    (note,) = shown.value.__notes__
    assert note.startswith("raised in calibrated_rl, called from") and note.endswith("return import_path(inputs)")


def test_what_is_made_of_settings_names_the_users_line(tmp_path: Path) -> None:
    body = """
        from dataclasses import dataclass

        class Thing:
            @dataclass(frozen=True)
            class Config:
                a: int = 1

            def __init__(self, config):
                {}[config.a]
    """
    path = f"{part(tmp_path, body)}:Thing"
    with pytest.raises(UserCodeError, match=r"making the part Thing .*KeyError: 1 \(.*mine.py:10"):
        build(path, {})


def test_a_checked_part_passes_for_its_own_class() -> None:
    desk = FrontDesk(FrontDesk.Config())
    task = checked_task(desk)
    assert isinstance(task, FrontDesk) and isinstance(task, Task) and checked_task(task) is task
    assert isinstance(task, ScriptedTask) == isinstance(desk, ScriptedTask)
    for protocol in (ScriptedTask, BoundedTask, UserCheckingTask):
        assert isinstance(task, protocol) == isinstance(desk, protocol)
        assert not isinstance(checked_task(Shop()), protocol)
    assert task.config is desk.config
    first = task.scenarios(Split.CALIBRATION, 5)
    assert first == desk.scenarios(Split.CALIBRATION, 5)
    human = checked_human(FrontDeskHuman(FrontDeskHuman.Config(), task=desk))
    turns = TURNS[:1]
    assert human.reply(first[0], turns) == FrontDeskHuman(FrontDeskHuman.Config(), task=desk).reply(first[0], turns)
    copied = pickle.loads(pickle.dumps(task))
    assert copied.scenarios(Split.TUNING, 2) == desk.scenarios(Split.TUNING, 2)


def test_import_path_is_what_it_was_for_installed_modules() -> None:
    assert import_path("calibrated_rl.examples.front_desk:FrontDesk") is FrontDesk
