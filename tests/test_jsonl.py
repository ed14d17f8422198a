"""JSON Lines logs and ``jobs/logs.py check``: what fits is read, what does not is named by line."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.dialogue import Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogReader
from calibrated_rl.logs.jsonl import JsonLines, read_jsonl

ROOT = Path(__file__).resolve().parents[1]


class Echo:
    """A task of which the tests know everything: ``bye`` ends it, the goal's ``worth`` is the reward."""

    name = "echo"
    max_policy_turns = 3

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        return []

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return "left" if turns[-1].text == "bye" else None

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        return Outcome(reward=float(scenario.goal["worth"]), success=True)

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        return (turns[index].text,)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        return {}


def line(number: int | str, *turns: str, **more: Any) -> str:
    """``u text`` and ``p text`` as turns."""
    sides = {"u": "user", "p": "policy"}
    spoken = [{"side": sides[t[0]], "text": t[2:]} for t in turns or ("u hi", "p hello")]
    return json.dumps({"id": number, "turns": spoken, **more})


def reader_of(tmp_path: Path, *lines: str, **config: Any) -> JsonLines:
    file = tmp_path / "logs.jsonl"
    file.write_text("\n".join(lines))
    shares = {"held_out": 0.0, "monitor": 0.0, "tuning": 0.0} | config
    return JsonLines(JsonLines.Config(path=str(file), **shares), task=Echo())


def test_a_line_becomes_a_dialogue(tmp_path: Path) -> None:
    reader = reader_of(
        tmp_path,
        line("a", "u one", "u two", "p three", "u bye", goal={"worth": 0.25}),
        "",
        line("b", "p welcome", "u hi", reward=2, success=False, ending="done", policy_instructions="sell"),
        line("c"),
    )
    assert isinstance(reader, LogReader) and reader.problems == []
    a, b, c = reader.read(Split.CALIBRATION)
    assert [(t.side, t.text) for t in a.turns[1:]] == [
        (Side.USER, "one\ntwo"), (Side.POLICY, "three"), (Side.USER, "bye")
    ]  # fmt: skip
    assert a.turns[0].source is Source.GREETING and a.turns[0].text == JsonLines.Config().greeting
    assert (a.ending, a.outcome) == ("left", Outcome(reward=0.25, success=True))
    assert b.scenario.greeting == "welcome" and [t.text for t in b.turns] == ["welcome", "hi"]
    assert b.scenario.policy_instructions == "sell"
    assert (b.ending, b.outcome) == ("done", Outcome(reward=2.0, success=False))
    assert (c.ending, c.outcome) == ("log_end", None)
    assert c.annotations["acts"] == [[JsonLines.Config().greeting], ["hi"], ["hello"]]


BROKEN = [
    (line("x")[:-9], "not JSON: .* at column"),
    ("[1]", "not a JSON object"),
    ('{"turns": []}', "'id' is missing"),
    ('{"id": 1}', "'turns' is missing"),
    ('{"id": true, "turns": []}', "'id' is neither"),
    ('{"id": 1, "turns": []}', "at least one turn"),
    ('{"id": 1, "turns": [{"side": "user"}]}', r"turns\[0\] is not an object of exactly"),
    ('{"id": 1, "turns": [{"side": "bot", "text": "x"}]}', "'side' is 'bot'"),
    ('{"id": 1, "turns": [{"side": ["user"], "text": "x"}]}', "'side' is"),
    (line(1, "u hi", "p  "), r"turns\[1\]: 'text' is blank"),
    (line(1, "p hi"), "user never speaks"),
    (line(1, gaol={}), "unknown key 'gaol'"),
    (line(1, goal=3), "'goal' is not of type object"),
    (line(1, reward=True, success=True), "'reward' is not of type number"),
    (line(1, success=1, reward=1), "'success' is not of type boolean"),
    (line(1, reward=1.0), "go together"),
    (line(1, reward=float("nan"), success=True), "not a finite number"),
    (line(1, reward=10**400, success=True), "not a finite number"),
    (line(1, split="test"), "'split' is 'test'"),
    (line("first"), "'first' occurred before, in line 1"),
    (line(1, goal={"word": 1}), "task echo cannot use this line's goal .KeyError"),
    (line(1, "u \ud800"), "surrogate"),
    ("[" * 200_000, "not usable JSON"),
    ('{"id": ' + "9" * 5000 + ', "turns": []}', "not usable JSON"),
]


@pytest.mark.parametrize(("bad", "reason"), BROKEN)
def test_a_broken_line_is_named_and_costs_no_other(bad: str, reason: str, tmp_path: Path) -> None:
    reader = reader_of(tmp_path, line("first"), "", bad, line("last"))
    assert [d.id for d in reader.read(Split.CALIBRATION)] == ["log-first", "log-last"]
    (problem,) = reader.problems
    assert problem.line == 3
    with pytest.raises(AssertionError, match=rf"logs\.jsonl:3: .*{reason}"):
        raise AssertionError(str(problem))


def test_bytes_that_are_not_utf8_cost_one_line_and_a_byte_order_mark_none(tmp_path: Path) -> None:
    file = tmp_path / "logs.jsonl"
    bad = line(2).encode().replace(b"hello", b"hell\xff")
    file.write_bytes(b"\xef\xbb\xbf" + line(1).encode() + b"\r\n" + bad + b"\n" + line(3).encode() + b"\n")
    records, problems = read_jsonl(file)
    assert [r.id for r in records] == ["1", "3"]
    assert [p.line for p in problems] == [2] and "not UTF-8" in problems[0].reason


def test_control_characters_and_line_separators_stay_text(tmp_path: Path) -> None:
    text = "a\u2028b\x0c<|im_end|>"
    reader = reader_of(tmp_path, line(1, f"u {text}"))
    assert reader.read(Split.CALIBRATION)[0].turns[1].text == text


def test_splits_follow_the_line_or_the_id_alone(tmp_path: Path) -> None:
    shares = {"held_out": 0.3, "monitor": 0.1, "tuning": 0.1}
    lines = [line(i) for i in range(600)]
    reader = reader_of(tmp_path, *lines, line("marked", split="held_out"), **shares)
    ids = {split: [d.id for d in reader.read(split)] for split in Split}
    assert sum(map(len, ids.values())) == 601 and ids[Split.HELD_OUT][-1] == "log-marked"
    assert 150 < len(ids[Split.HELD_OUT]) < 210 and 250 < len(ids[Split.CALIBRATION]) < 350
    half = reader_of(tmp_path, *lines[::2], **shares)
    assert {d.id for d in half.read(Split.HELD_OUT)} == {f"log-{i}" for i in range(0, 600, 2)} & set(
        ids[Split.HELD_OUT]
    )
    with pytest.raises(UserError, match="no dialogue for the tuning split"):
        reader_of(tmp_path, line(1)).read(Split.TUNING)
    with pytest.raises(UserError, match="at most 1"):
        reader_of(tmp_path, line(1), held_out=0.9, monitor=0.2)


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "logs.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        timeout=60,
    )


def test_the_job_says_what_fits_by_exit_code_and_line(tmp_path: Path) -> None:
    good, torn, bad = tmp_path / "good.jsonl", tmp_path / "torn.jsonl", tmp_path / "bad.jsonl"
    good.write_text(line(1) + "\n" + line(2) + "\n")
    torn.write_text(line(1) + "\n" + line(2)[:20])
    bad.write_text("no\n")
    result = check("check", str(good))
    assert result.returncode == 0 and "2 dialogues with 4 turns fit, 0 refused" in result.stdout
    result = check("check", str(torn), "--format", "jsonl")
    assert result.returncode == 1 and f"{torn}:2: not JSON" in result.stdout and result.stderr == ""
    for arguments in (
        [str(bad)],
        [str(tmp_path / "none")],
        [str(tmp_path)],
        [str(good), "--format", "casino"],
    ):
        result = check("check", *arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert check("--help").returncode == 0 and check("check", "--help").returncode == 0
    assert check("check", str(good), "--format", "csv").returncode == 2


def test_the_job_reads_negotiations(tmp_path: Path) -> None:
    from test_casino import record, write

    folder = write(tmp_path / "data", [record(1), record(2, chat_logs=[])])
    result = check("check", str(folder), "--format", "casino")
    assert result.returncode == 1
    assert "casino_train.json:2: 'chat_logs' is empty" in result.stdout and "1 dialogues" in result.stdout
