"""Persuasion for Good: what was given as the file states it, the line that says it, and files that do not fit."""

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.data.dialogue import Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.front_desk.task import FrontDesk
from calibrated_rl.examples.persuasion_for_good import PersuasionForGood, PersuasionLogs
from calibrated_rl.examples.persuasion_for_good.records import read_records
from calibrated_rl.examples.persuasion_for_good.task import decision_line, decision_of
from calibrated_rl.logs.base import LogReader
from calibrated_rl.logs.checked import checked_reader
from calibrated_rl.tasks.checked import checked_task
from tests.support.paths import SHARED

DATA = SHARED / "data" / "persuasionforgood"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data of Persuasion for Good is not on this machine")
TASK = "calibrated_rl.examples.persuasion_for_good:PersuasionForGood"
READER = "calibrated_rl.examples.persuasion_for_good:PersuasionLogs"
TALK = ("Hello !", "Hi", "Would you give to a charity ?", "Sure , a dollar")


def write(folder: Path, talks: dict[str, tuple[str, ...]], given: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "full_dialog.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["", "Unit", "Turn", "B4", "B2"])
        for name, talk in talks.items():
            for number, text in enumerate(talk):
                rows.writerow([number, text, number // 2, number % 2, name])
    with (folder / "full_info.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["B2", "B4", "B6", "B7"])
        for name, amount in given.items():
            rows.writerows([[name, 0, "2.0", 10], [name, 1, amount, 10]])
    return folder


def read(folder: Path, **config: Any) -> tuple[PersuasionForGood, PersuasionLogs]:
    values = {"path": str(folder), "held_out": 2, "monitor": 1, "tuning": 1} | config
    only = {"only": values.pop("only")} if "only" in values else {}
    task = build(TASK, values)
    return task, build(READER, values | only, task=task)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Eight dialogues, with 0.00, 0.25, ..., 1.75 given; in those of odd number the policy's side has the last word."""
    talks = {f"d{number}": (*TALK, *(("Thank you",) if number % 2 else ())) for number in range(8)}
    return write(tmp_path / "data", talks, {f"d{number}": str(number / 4) for number in range(8)})


def said(*texts: str) -> list[Turn]:
    """The policy's greeting, then the sides in turn, the user first."""
    sides = [Side.POLICY, Side.USER] * (len(texts) + 1)
    return [Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, ("hi", *texts), strict=False)]


# ---- the real dialogues ----------------------------------------------------------------------------------


@needs_data
def test_rewards_are_what_the_participants_gave() -> None:
    task = build(TASK, {"path": str(DATA)})
    reader = build(READER, {"path": str(DATA)}, task=task)
    with (DATA / "full_info.csv").open() as stream:
        given = {row["B2"]: float(row["B6"]) for row in csv.DictReader(stream) if row["B4"] == "1"}
    assert len(reader.problems) == 35 == sum(amount > 2 for amount in given.values())
    assert all("more than the 2 dollars" in problem.reason for problem in reader.problems)
    compared = 0
    for split in Split:
        for dialogue in reader.read(split):
            assert dialogue.ending == "decided" and dialogue.outcome is not None
            assert dialogue.outcome.reward == pytest.approx(given[dialogue.scenario.id.removeprefix("persuasion-")] / 2)
            assert task.ending(dialogue.scenario, dialogue.turns[:-1]) is None
            assert not task.against_goal(dialogue.scenario, dialogue.turns)
            assert [turn.side for turn in dialogue.turns[:3]] == [Side.POLICY, Side.USER, Side.POLICY]
            compared += 1
    assert compared == 1017 - 35
    assert len(reader.read(Split.CALIBRATION)) == 982 - 420


# ---- reading ---------------------------------------------------------------------------------------------


def test_what_was_given_is_a_line_of_the_last_user_turn_or_a_turn_of_its_own(small: Path) -> None:
    task, reader = read(small)
    dialogues = {d.scenario.id: d for split in Split for d in reader.read(split)}
    assert [turn.text for turn in dialogues["persuasion-d2"].turns] == [*TALK[:3], f"{TALK[3]}\nDonate: $0.50"]
    assert [turn.text for turn in dialogues["persuasion-d3"].turns] == [*TALK, "Thank you", "Donate: $0.75"]
    assert dialogues["persuasion-d2"].turns[0].source is Source.GREETING
    rewards = {name: dialogue.outcome.reward for name, dialogue in dialogues.items() if dialogue.outcome}
    assert rewards == {f"persuasion-d{number}": number / 8 for number in range(8)}
    assert not dialogues["persuasion-d0"].outcome.success and dialogues["persuasion-d1"].outcome.success  # type: ignore[union-attr]
    assert isinstance(reader, LogReader) and checked_reader(reader, task).read(Split.MONITOR)


def test_the_generous_are_those_who_gave_a_dollar(small: Path) -> None:
    _, reader = read(small, held_out=0, monitor=0, tuning=0, only="generous")
    assert {d.scenario.id for d in reader.read(Split.CALIBRATION)} == {f"persuasion-d{n}" for n in (4, 5, 6, 7)}
    poor = write(small.parent / "poor", {f"d{n}": TALK for n in range(5)}, {f"d{n}": "0.5" for n in range(5)})
    with pytest.raises(UserError, match="in no dialogue of the calibration split was a dollar given"):
        read(poor, only="generous")[1].read(Split.CALIBRATION)


def test_no_dialogue_is_in_two_splits_whatever_the_order_of_the_file(small: Path) -> None:
    def names(folder: Path) -> dict[Split, list[str]]:
        reader = read(folder)[1]
        return {split: [dialogue.scenario.id for dialogue in reader.read(split)] for split in Split}

    lines = (small / "full_dialog.csv").read_text().splitlines()
    other = write(small.parent / "other", {}, {f"d{number}": str(number / 4) for number in range(8)})
    by_name = sorted(lines[1:], key=lambda line: line.rsplit(",", 1)[1], reverse=True)
    (other / "full_dialog.csv").write_text("\n".join([lines[0], *by_name]) + "\n")
    assert names(other) == names(small)
    assert sorted(name for each in names(small).values() for name in each) == [f"persuasion-d{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("talk", "given", "expected"),
    [
        (TALK, "2.01", "B6 is 2.01: more than the 2 dollars"),
        (TALK, "-1", "B6 is '-1', which is no amount"),
        (TALK, "0.005", "B6 is '0.005', which is no amount in dollars and cents"),
        (TALK, "nan", "B6 is 'nan', which is no amount"),
        (TALK, "a dollar", "B6 is 'a dollar', which is no amount"),
        (TALK, None, "full_info.csv does not say what was given"),
        (("Hello",), "1", "nobody answered"),
        (("Hello", "  ", "You there ?"), "1", "turn 1 is empty"),
    ],
)
def test_dialogues_that_do_not_fit_are_named(
    tmp_path: Path, talk: tuple[str, ...], given: str | None, expected: str
) -> None:
    folder = write(
        tmp_path / "data", {"good": TALK, "bad": talk}, {"good": "1"} | ({} if given is None else {"bad": given})
    )
    records, problems = read_records(folder)
    assert [record.id for record in records] == ["good"]
    assert [problem.line for problem in problems] == [6] and expected in problems[0].reason


def test_two_turns_of_one_side_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"good": TALK}, {"good": "1"})
    with (folder / "full_dialog.csv").open("a") as stream:
        stream.write("0,Hello,0,1,bad\n1,Hi,0,0,bad\n")
    assert "turn 0 has the role '1'" in read_records(folder)[1][0].reason


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("full_dialog.csv", None, "there is no file .*full_dialog.csv; wanted is the public data set"),
        ("full_info.csv", None, "there is no file .*full_info.csv; wanted is the public data set"),
        ("full_dialog.csv", b"a,b\n1,2\n", "full_dialog.csv has no column B2, B4, Turn, Unit; wanted"),
        ("full_dialog.csv", b"B2,B4,Turn,Unit\n", "contains no usable dialogue; wanted"),
        ("full_dialog.csv", b"B2,B4,Turn,Unit\nx,0,0,\xff\n", "full_dialog.csv is not a readable CSV file"),
    ],
)
def test_other_files_are_refused(small: Path, file: str, content: bytes | None, expected: str) -> None:
    (small / file).unlink() if content is None else (small / file).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read(small)


def test_the_reader_refuses_other_tasks_and_other_splits(small: Path) -> None:
    task, _ = read(small)
    with pytest.raises(UserError, match="of the task PersuasionForGood, not of front_desk"):
        PersuasionLogs(PersuasionLogs.Config(path=str(small)), task=FrontDesk(FrontDesk.Config()))
    with pytest.raises(UserError, match="the logs' 'held_out' is 3 and the task's is 2"):
        PersuasionLogs(PersuasionLogs.Config(path=str(small), held_out=3, monitor=1, tuning=1), task=task)
    with pytest.raises(UserError, match="leave nothing of 8 usable dialogues"):
        read(small, held_out=6)


# ---- the task --------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=20))
def test_a_decision_is_read_as_it_was_written(cents: int, talk: str) -> None:
    assert decision_of(f"{talk}\n{decision_line(cents)}") == cents
    assert decision_of(f"{talk} {decision_line(cents)}") == cents  # as a proxy says it, which knows no lines
    assert decision_of(f"{decision_line(cents)} I would say") is None


@pytest.mark.parametrize(
    ("text", "cents"),
    [
        ("bye\ndonate: $1", 100), ("Donate: $0.5", 50), ("Donate: $0.50 .", None), ("Donate: 0.50", None),
        ("Donate: $0.10\nDonate: $0.20", 20), ("I donate", None), ("Donate: $-1", None), ("Donate: $1234567", None),
    ],
)  # fmt: skip
def test_only_how_a_turn_ends_decides(text: str, cents: int | None) -> None:
    assert decision_of(text) == cents


def test_outcomes(small: Path) -> None:
    task = checked_task(read(small)[0])
    scenario = task.scenarios(Split.HELD_OUT, 1)[0]
    gave = said("Hi", "Give", "Ok\nDonate: $1.50")
    assert task.ending(scenario, gave) == "decided"
    assert task.outcome(scenario, gave, "decided").reward == 0.75
    assert task.outcome(scenario, gave[:-1], "max_turns").reward == 0
    assert task.outcome(scenario, said("Hi", "Give", "No\nDonate: $0.00"), "decided").success is False
    # What the policy writes decides nothing.
    assert task.ending(scenario, said("Hi", "Donate: $2.00")) is None
    assert task.acts(scenario, gave, 3) == ("decide:something", "agree")
    assert task.profile(scenario, gave)["gave"] == 1 and task.profile(scenario, gave[:-1])["decided"] == 0


@pytest.mark.parametrize(("text", "turns", "broken"), [
    ("Donate: $1.00", 1, True), ("Donate: $1.00", 2, False), ("Donate: $2.01", 2, True), ("two dollars", 1, False),
])  # fmt: skip
def test_what_nobody_could_do_is_no_part_of_it(small: Path, text: str, turns: int, broken: bool) -> None:
    task = read(small)[0]
    scenario = task.scenarios(Split.HELD_OUT, 1)[0]
    before = ["Hi", "Would you give ?"] * (turns - 1)
    assert task.against_goal(scenario, said(*before, text)) is broken
