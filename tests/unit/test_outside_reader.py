"""Logs that are read by a reader from a file outside the repository: one file, named on the command line alone."""

import json
from pathlib import Path

import pytest

from calibrated_rl.cli.measure_shift import log_files, parser_of
from calibrated_rl.errors import UserError
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.shift.sources import LogFiles, read_source
from tests.support.made_up_logs import population, terse

LINES = '''
from dataclasses import dataclass

from calibrated_rl.data.dialogue import Dialogue, Scenario, Side, Source, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem
from calibrated_rl.settings.fields import Name

class Lines:
    """One dialogue a line: id, split, and what was said in turns, between bars."""

    @dataclass(frozen=True)
    class Config:
        path: Name
        greeting: Name = "hello"

    def __init__(self, config, *, task):
        self.config, self.task, self.problems = config, task, []

    def read(self, split):
        rows = [line.split("|") for line in open(self.config.path).read().splitlines()]
        self.problems[:] = [LogProblem(self.config.path, 1, "short") for row in rows if len(row) < 3]
        found = [self.dialogue(row, split) for row in rows if len(row) > 2 and row[1] == split]
        if not found:
            raise UserError(f"{self.config.path} has nothing of {split}")
        return found

    def dialogue(self, row, split):
        scenario = Scenario(
            id=row[0], split=split, policy_instructions="p", user_instructions="u", greeting=self.config.greeting
        )
        sides = (Side.USER, Side.POLICY) * len(row)
        turns = [Turn(side=side, text=text, source=Source.LOG) for side, text in zip(sides, row[2:])]
        greeting = Turn(side=Side.POLICY, text=self.config.greeting, source=Source.GREETING)
        return Dialogue(
            id=row[0], task="", scenario=scenario, turns=(greeting, *turns), ending="end", outcome=None, kind="log"
        )

class Asking(Lines):
    def dialogue(self, row, split):
        return self.task.name

class Broken(Lines):
    def dialogue(self, row, split):
        return "no dialogue" if split == "tuning" else super().dialogue(row, split)

class Placeless(Lines):
    @dataclass(frozen=True)
    class Config:
        url: Name = "x"

class Talk:
    name, max_policy_turns = "talk", 3

    @dataclass(frozen=True)
    class Config:
        act: Name = "speak"

    def __init__(self, config):
        self.config = config

    def scenarios(self, split, count, population="same"): ...
    def ending(self, scenario, turns): ...
    def outcome(self, scenario, turns, ending): ...
    def profile(self, scenario, turns): ...
    def acts(self, scenario, turns, index):
        return (self.config.act,)
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(LINES)
    (tmp_path / "people.txt").write_text("a|calibration|yes\nb|held_out|no|why?|so\nbroken\nc|tuning|well\n")
    return tmp_path / "mine.py"


def test_a_reader_reads_what_no_built_in_source_does(code: Path) -> None:
    people, how = str(code.with_name("people.txt")), LogFiles(reader=f"{code}:Lines", reader_config={"greeting": "hi"})
    found = read_source(people, how)
    assert (found.name, found.left_out) == (people, 1)
    assert [(d.id, d.turns[0].text) for d in found.dialogues] == [("a", "hi"), ("c", "hi"), ("b", "hi")]
    assert not any("acts" in d.annotations for d in found.dialogues)
    assert [d.id for d in read_source(f"{people}@held_out", how).dialogues] == ["b"]
    with pytest.raises(UserError, match="there is no split 'heldout'; there are calibration, "):
        read_source(f"{people}@heldout", how)
    with pytest.raises(UserError, match="has nothing of monitor"):
        read_source(f"{people}@monitor", how)
    with pytest.raises(UserError, match="there is no file or folder"):
        read_source(f"{people}.gone", how)


def test_a_task_tells_the_acts_of_its_dialogues(code: Path) -> None:
    how = LogFiles(reader=f"{code}:Lines", task=f"{code}:Talk", task_config={"act": "nod"})
    (found,) = read_source(f"{code.with_name('people.txt')}@calibration", how).dialogues
    assert found.annotations["acts"] == [["nod"], ["nod"]]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("Lines", {"greting": "hi"}, "unknown key 'greting'; did you mean 'greeting'"),
        ("Line", {}, "has no 'Line'; did you mean 'Lines'"), ("Placeless", {}, "its Config has no 'path'"),
        ("Asking", {}, r"the log reader asks its task for 'name', and no task is named \(--task\)"),
        ("Broken", {}, r"the log reader Broken: read .*mine.py:20.*, tuning: dialogue 0 is a str 'no dialogue'"),
        ("Talk", {}, "its Config has no 'path'"), ("UserError", {}, "it has no Config dataclass|is not a component"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name: str, settings: dict[str, str], message: str, code: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_source(str(code.with_name("people.txt")), LogFiles(reader=f"{code}:{name}", reader_config=settings))


def test_runs_are_read_as_ever(code: Path, tmp_path: Path) -> None:
    ReplayStore(tmp_path / "run" / "replay" / "logs").append(population(terse, 3, 0))
    how = LogFiles(reader=f"{code}:Lines")
    assert len(read_source(f"{tmp_path / 'run'}@logs", how).dialogues) == 3
    assert len(read_source(str(tmp_path / "run" / "replay" / "logs") + "@logs", how).dialogues) == 3
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "turns": [{"side": "user", "text": "yes"}]}) + "\n")
    assert len(read_source(str(tmp_path / "a.jsonl")).dialogues) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--reader-config", "greeting=hi"), "--reader-config is for --reader, which is not given"),
        (("--task", "mine.py:Talk"), "--task is for --reader"),
        (("--reader", "mine.py:Lines", "--task-config", "act=nod"), "--task-config is for --task"),
        (("--reader", "mine.py:Lines", "--reader-config", "greeting"), "--reader-config: 'greeting' is not key=value"),
        (("--reader", "mine.py:Lines", "--reader-config", "path=x"), "'path' is the set itself"),
        (("--reader", "mine.py:Lines", "--reader-config", "greeting=hi", "--reader-config", "most=3"), ""),
    ],
)  # fmt: skip
def test_options_are_used_or_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    arguments = parser_of().parse_args([str(tmp_path / "people.txt"), *options])
    if not message:
        expected = LogFiles(reader="mine.py:Lines", reader_config={"greeting": "hi", "most": 3})
        assert log_files(arguments) == expected
        return
    with pytest.raises(UserError, match=message):
        log_files(arguments)


def test_a_reader_for_nothing_is_refused(tmp_path: Path) -> None:
    ReplayStore(tmp_path / "run" / "replay" / "logs").append(population(terse, 3, 0))
    with pytest.raises(UserError, match="--reader is for sets that are of no run, and there is none"):
        log_files(parser_of().parse_args([f"{tmp_path / 'run'}@logs", "--reader", "mine.py:Lines"]))
