"""MATH-Chat: right answers and wrong ones, files of problems, and what the user's messages tell."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrated_rl.components.component import build
from calibrated_rl.data.dialogue import Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.examples.math_chat import MathChat
from calibrated_rl.examples.math_chat.answers import answer_of, is_right
from calibrated_rl.examples.math_chat.problems import read_problems
from calibrated_rl.logs.jsonl import JsonLines
from calibrated_rl.tasks.checked import checked_task
from tests.support.paths import SHARED

GSM8K, PEOPLE = SHARED / "data" / "gsm8k", SHARED / "data" / "simulatorarena" / "math_tutoring.json"
TASK = "calibrated_rl.examples.math_chat:MathChat"


def write(folder: Path, count: int = 8) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [
        {"question": f"Ann has {n} apples and buys 1,0{n}0 more . How many ?", "answer": f"{n} + 1 . \n#### {n + 1}"}
        for n in range(count)
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture
def task(tmp_path: Path) -> MathChat:
    made: MathChat = build(TASK, {"path": str(write(tmp_path / "data")), "held_out": 2, "monitor": 1, "tuning": 1})
    return made


def said(*texts: str) -> list[Turn]:
    """The policy's greeting, then the sides in turn, the user first."""
    sides = [Side.POLICY, Side.USER] * (len(texts) + 1)
    return [Turn(side=s, text=t, source=Source.LOG) for s, t in zip(sides, ("hi", *texts), strict=False)]


# ---- answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("72", "72", True), ("$72.00", "72", True), ("72 clips", "72", True), ("71", "72", False),
        ("3 x", "3", False), ("3x", "3", False),
        ("Even.", "even", True), ("odd", "even", False), ("9!", "9!", True),
        ("$5 an hour", "5", True), ("3 + x", "3", False),
        ("1000", "1,000", True), ("0.5", "\\frac{1}{2}", True), ("1/2", "0.5", True), ("50%", "0.5", True),
        ("$2\\sqrt{2}$", "\\sqrt{8}", True), ("2\\sqrt{2}", "\\sqrt{8}", True), ("x + 1", "1 + x", True),
        ("ten", "10", False), ("", "10", False), ("I do not know", "10", False), ("-3", "3", False),
        ("\\frac{", "3", False), ("1/0", "3", False),
    ],
)  # fmt: skip
def test_answers_are_compared_as_mathematics(answer: str, expected: str, right: bool) -> None:
    assert is_right(answer, expected) is right


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "answer", ["9^{9^{9^9}}", "9**9**9**9", "99999999!", "9^999999999", "2^{10^8}", "1" * 200, "(9^9)^{9^9}", "9^(9^9)"]
)
def test_what_would_take_forever_is_wrong_at_once(answer: str) -> None:
    assert not is_right(answer, "3")


def test_answers_are_compared_in_any_thread() -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(is_right("\\frac{4}{8}", "0.5")))
    thread.start()
    thread.join()
    assert results == [True]


@given(st.text(max_size=60))
def test_no_text_breaks_the_comparison(text: str) -> None:
    assert is_right(text, "3") in (True, False)


@given(st.integers(-(10**6), 10**6), st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=20))
def test_the_last_answer_counts(number: int, words: str) -> None:
    answer = answer_of(f"{words}\nAnswer: 0\n{words.replace(':', '')}\nAnswer: {number}")
    assert answer is not None and is_right(answer, str(number))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So:\n**Answer:** 12", "12"), ("Final answer: 12.", "12."), ("The answer is 12", None), ("Answer:", None),
        ("My answer: 12", None), ("answer : x = 3", "x = 3"),
    ],
)  # fmt: skip
def test_only_a_line_of_its_own_answers(text: str, answer: str | None) -> None:
    assert answer_of(text) == answer


# ---- problems --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not GSM8K.is_dir(), reason="GSM8K is not on this machine")
def test_each_problem_of_gsm8k_has_an_answer_that_is_its_own() -> None:
    problems, refused = read_problems(GSM8K)
    assert len(problems) == 7473 and not refused and len({problem.id for problem in problems}) == 7473
    assert all(is_right(problem.answer, problem.answer) for problem in problems[::50])


def test_problems_of_math_and_their_boxes(tmp_path: Path) -> None:
    (tmp_path / "algebra").mkdir()
    solution = "First $\\boxed{1}$, or rather $\\boxed{\\frac{1}{2}}$."
    content = {"problem": "What is half of one?", "solution": solution, "level": "Level 1"}
    (tmp_path / "algebra" / "1.json").write_text(json.dumps(content, indent=1))
    (problem,), refused = read_problems(tmp_path)
    assert (problem.question, problem.answer, refused) == ("What is half of one?", "\\frac{1}{2}", [])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "not JSON"),
        ("[1]", "it is list, not an object"),
        ('{"question": "q"}', "it has neither 'question' and 'answer' nor"),
        ('{"question": "q", "answer": "12"}', "'answer' has no answer, after '####'"),
        ('{"problem": "q", "solution": "\\\\boxed{1"}', "'solution' has no answer"),
        ('{"question": 3, "answer": "#### 1"}', "'question' is no text"),
    ],
)
def test_problems_that_do_not_fit_are_named(tmp_path: Path, line: str, expected: str) -> None:
    file = write(tmp_path / "data") / "train.jsonl"
    file.write_text(file.read_text() + file.read_text().splitlines()[0] + "\n" + line + "\n")
    problems, refused = read_problems(file)
    assert len(problems) == 8
    assert [problem.line for problem in refused] == [9, 10] and "occurred before" in refused[0].reason
    assert expected in refused[1].reason


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "has no file \\*.jsonl or \\*.json; wanted are problems"),
        (b"\n{}\n", "contains no usable problem \\(first: .*it has neither"),
        (b"\x1f\x8b\x08\x00", "wanted are problems"),
        (b"\xff\n", "wanted are problems"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        read_problems(tmp_path)


# ---- the task --------------------------------------------------------------------------------------------


def scenario_of(task: MathChat) -> Scenario:
    return task.scenarios(Split.CALIBRATION, 1)[0]


def test_splits_share_no_problem(task: MathChat) -> None:
    sizes = {Split.HELD_OUT: 2, Split.MONITOR: 1, Split.TUNING: 1, Split.CALIBRATION: 4}
    names = [scenario.id for split, size in sizes.items() for scenario in task.scenarios(split, size)]
    assert len(set(names)) == 8
    with pytest.raises(UserError, match="5 scenarios requested of the calibration split, which has 4"):
        task.scenarios(Split.CALIBRATION, 5)
    with pytest.raises(UserError, match="unknown population 'shifted'"):
        task.scenarios(Split.CALIBRATION, 1, "shifted")


def test_neither_side_is_told_the_answer_and_only_the_user_the_problem(task: MathChat) -> None:
    scenario = scenario_of(task)
    question, answer = scenario.goal["problem"], scenario.goal["answer"]
    assert question in scenario.user_instructions and question not in scenario.policy_instructions
    assert f"#### {answer}" not in scenario.user_instructions and "####" not in question


@pytest.mark.parametrize("word_cost", [0.0, 0.1, 1.0])
def test_rewards(tmp_path: Path, word_cost: float) -> None:
    values: dict[str, Any] = {"path": str(write(tmp_path / "data")), "held_out": 2, "monitor": 1, "tuning": 1}
    task = checked_task(build(TASK, values | {"word_cost": word_cost}))
    scenario = task.scenarios(Split.CALIBRATION, 1)[0]
    right = said("Apples ...", "How many ?", "Some", f"Easy\nAnswer: {scenario.goal['answer']}")  # 3 + 3 words
    assert task.ending(scenario, right) == "answered" and task.ending(scenario, right[:-1]) is None
    outcome = task.outcome(scenario, right, "answered")
    assert outcome.success and outcome.reward == pytest.approx(max(0, 1 - 6 * word_cost))
    wrong = task.outcome(scenario, said("Apples ...", "Answer: 12345"), "answered")
    assert (wrong.success, wrong.reward, wrong.details["answer"]) == (False, 0, "12345")
    assert task.outcome(scenario, right[:-1], "max_turns").reward == 0
    # What the user writes is no answer.
    assert task.ending(scenario, said(f"Answer: {scenario.goal['answer']}")) is None


def test_what_the_first_message_tells(task: MathChat) -> None:
    scenario = next(each for each in task.scenarios(Split.CALIBRATION, 4) if each.goal["answer"] != "2")
    (few, many) = (str(int(scenario.goal["answer"]) - 1), f"10{int(scenario.goal['answer']) - 1}0")
    assert task.profile(scenario, said(f"Ann has {few} apples"))["first_turn_disclosure"] == 0.5
    assert task.profile(scenario, said(f"{few} and then 1,{many[1:]} more"))["first_turn_disclosure"] == 1
    assert task.contradicts_goal(scenario, said(f"Ann has {few} apples")) is False
    assert task.contradicts_goal(scenario, said("Ann has 777 apples")) is True
    assert task.contradicts_goal(scenario, said("It is about apples")) is None
    assert task.contradicts_goal(scenario, said("It is about apples", "And ?", "I got 777")) is None
    assert task.acts(scenario, said("I don't know how , 3 + 4 ?"), 1) == ("stuck", "number", "formula", "ask")


@pytest.mark.skipif(not PEOPLE.is_file(), reason="the data of SimulatorArena is not on this machine")
def test_real_students_are_logs_of_the_task_without_its_problems(task: MathChat) -> None:
    logs = JsonLines(JsonLines.Config(path=str(PEOPLE)), task=checked_task(task))
    dialogues = [dialogue for split in Split for dialogue in logs.read(split)]
    assert len(dialogues) == 30 and not logs.problems
    assert all(dialogue.outcome is None for dialogue in dialogues)  # the problems' texts are not in the file
    profile = task.profile(dialogues[0].scenario, dialogues[0].turns)
    assert profile["words_per_turn"] > 0 and "first_turn_disclosure" not in profile
