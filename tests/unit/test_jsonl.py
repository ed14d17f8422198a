"""JSON Lines logs and ``jobs/logs.py check``: what fits is read, what does not is named by line."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.data.dialogue import Outcome, Scenario, Side, Source, Split, Turn
from calibrated_rl.errors import UserError
from calibrated_rl.logs.base import LogProblem, LogReader, problem_lines
from calibrated_rl.logs.jsonl import JsonLines, read_jsonl
from tests.support.paths import ROOT


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
    ('{"id": 1, "turns": [{"side": "user"}]}', r"turns\[0\] is not an object with"),
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


@pytest.mark.slow
def test_the_job_says_what_fits_by_exit_code_and_line(tmp_path: Path) -> None:
    good, torn, bad = tmp_path / "good.jsonl", tmp_path / "torn.jsonl", tmp_path / "bad.jsonl"
    good.write_text(line(1) + "\n" + line(2) + "\n")
    torn.write_text(line(1) + "\n" + line(2)[:20])
    bad.write_text("no\n")
    (empty := tmp_path / "empty").mkdir()
    result = check("check", str(good))
    assert result.returncode == 0 and "2 dialogues with 4 turns fit, 0 refused" in result.stdout
    result = check("check", str(torn), "--format", "jsonl")
    assert result.returncode == 1 and f"{torn}:2: not JSON" in result.stdout and result.stderr == ""
    for arguments in (
        [str(bad)],
        [str(tmp_path / "none")],
        [str(empty)],
        [str(good), "--format", "casino"],
    ):
        result = check("check", *arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert check("--help").returncode == 0 and check("check", "--help").returncode == 0
    assert check("check", str(good), "--format", "csv").returncode == 2


@pytest.mark.slow
def test_the_job_reads_negotiations(tmp_path: Path) -> None:
    from tests.unit.test_casino import record, write

    folder = write(tmp_path / "data", [record(1), record(2, chat_logs=[])])
    result = check("check", str(folder), "--format", "casino")
    assert result.returncode == 1
    assert "casino_train.json:2: 'chat_logs' is empty" in result.stdout and "1 dialogues" in result.stdout


TURNS4 = ("u hi", "p hello", "u for two", "p done")
TWICE = '"turns": [], "turns": [{"side": "user", "text": "hi"}]}'
MORE_BROKEN = [
    ('{"id": 1, ' + TWICE, "the key 'turns' occurs twice in one object"),
    ('{"id": 1, "id": 2, "turns": [{"side": "user", "text": "hi"}]}', "the key 'id' occurs twice"),
    ('{"id": 1, "turns": [{"side": "user", "text": "a", "text": "b"}]}', "the key 'text' occurs twice"),
    (line(1)[:-1] + ', "goal": {"worth": 1, "deep": [{"a": 1, "a": 2}]}}', "the key 'a' occurs twice"),
    (line(1, goal={"worth": float("nan")}), "not a finite number"),
    (line(1)[:-1] + ', "goal": {"worth": 1e999}}', "not a finite number"),
    (line(1, goal={"worth": 10**400}), "not a finite number"),
    (line(1, goal={"worth": 5.0}), r"outcome .*reward is 5: reward_range\(\) says 0 to 1"),
    (line(1, reward=1e9, success=True), r"'reward' is 1e\+09: reward_range\(\) says 0 to 1"),
    (line(1, reward="0.5", success=True), "'reward' is not of type number .it is a str '0.5'"),
    (line(1, reward=0.5, success="yes"), "'success' is not of type boolean"),
    (line(1, rewrd=0.5), "unknown key 'rewrd'; did you mean 'reward'"),
    (line(1, split="heldout"), "'split' is 'heldout'; did you mean 'held_out'"),
    (line(1, split="Held-Out"), "'split' is 'Held-Out'; did you mean 'held_out'"),
    (line(1, ending=" "), "'ending' is blank"),
    (line(" "), "'id' is neither"),
    ('{"id": 1.5, "turns": []}', "'id' is neither"),
    ('{"id": 1, "turns": {"side": "user"}}', "'turns' is not a list"),
    ('{"id": 1, "turns": ["hi"]}', r"turns\[0\] is not an object .*it is a str 'hi'"),
    ('{"id": 1, "turns": [{"role": "user", "content": "x"}]}', "it has 'role', 'content'"),
    ('{"id": 1, "turns": [{"side": "assistant", "text": "x"}]}', "'side' is 'assistant', .*did you mean 'policy'"),
    ('{"id": 1, "turns": [{"side": "User", "text": "x"}]}', "'side' is 'User', .*did you mean 'user'"),
    ('{"id": 1, "turns": [{"side": "user", "text": 3}]}', r"turns\[0\]: 'text' is an int 3"),
    ("3", "not a JSON object"), ("null", "not a JSON object"), ('"x"', "not a JSON object"),
    (line(1) + line(2), "not JSON: Extra data"), ("\ufeff" + line(1), "not JSON: Unexpected UTF-8 BOM"),
    (line("7") + "\n" + line(7), "id '7' occurred before, in line 3"),
]  # fmt: skip


class BoundedEcho(Echo):
    def reward_range(self) -> tuple[float, float]:
        return 0.0, 1.0


@pytest.mark.parametrize(("bad", "reason"), MORE_BROKEN)
def test_what_would_be_lost_or_learned_wrongly_is_named(bad: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "logs.jsonl"
    file.write_text("\n".join([line("first"), "", bad, line("last")]))
    shares = {"held_out": 0.0, "monitor": 0.0, "tuning": 0.0}
    reader = JsonLines(JsonLines.Config(path=str(file), **shares), task=BoundedEcho())
    kept = [log.id for log in reader.read(Split.CALIBRATION)]
    assert kept in (["log-first", "log-last"], ["log-first", "log-7", "log-last"])
    (problem,) = reader.problems
    with pytest.raises(AssertionError, match=rf"logs\.jsonl:{problem.line}: .*{reason}"):
        raise AssertionError(str(problem))


def test_one_dialogue_under_two_ids_stays_in_one_split(tmp_path: Path) -> None:
    shares = {"held_out": 0.4, "monitor": 0.2, "tuning": 0.2}
    lines = [line(i, *TURNS4[:3], f"p {i % 20}") for i in range(200)]
    reader = reader_of(tmp_path, *lines, **shares)
    where = {split: {log.turns[-1].text for log in reader.read(split)} for split in Split}
    assert sum(map(len, where.values())) == 20, "none of the 20 dialogues is in two splits"
    reader = reader_of(tmp_path, line(1, *TURNS4, split="held_out"), line(2, *TURNS4), line(3, *TURNS4, split="tuning"))
    assert [log.id for log in reader.read(Split.HELD_OUT)] == ["log-1", "log-2"]
    (problem,) = reader.problems
    assert "3: it is word for word the dialogue of line 1, which is in the held_out split" in str(problem)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"), (b" \n\r\n\t", "is empty"), (b"\xef\xbb\xbf", "is empty"),
        (None, "is a folder without log files"),
        (line(1).encode("utf-16"), "is UTF-16.*iconv"), (line(1).encode("utf-16-le"), "is UTF-16"),
        (line(1).encode("utf-16-be"), "is UTF-16"), (b"\x1f\x8b\x08\x00", "is a torn or damaged gzip file"),
        (b"PK\x03\x04", "is a ZIP"), (b"BZh9", "damaged bzip2"), (b"PAR1", "damaged Parquet"),
        (b"\x28\xb5\x2f\xfd1", "damaged zstd"), (f"[\n{line(1)},\n{line(2)}\n".encode(), "torn or damaged: .*line 4"),
        (b"\xff\xff\xff\xff\x10", "damaged Arrow"), (b"\x00\x01\x02\x03", "binary .*00 01 02 03"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_told_once(content: bytes | None, told: str, tmp_path: Path) -> None:
    file = tmp_path / "logs.jsonl"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=told) as refused:
        read_jsonl(file)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("indent", [None, 1])
def test_one_json_value_is_read_as_its_records(indent: int | None, tmp_path: Path) -> None:
    file = tmp_path / "logs.json"
    both = [json.loads(line(1)), json.loads(line(2))]
    for content, names in ((both, ["1", "2"]), (both[0], ["1"]), ({"data": both, "version": 3}, ["1", "2"])):
        file.write_text(json.dumps(content, indent=indent))
        records, problems = read_jsonl(file)
        assert [record.id for record in records] == names and not problems


def test_what_is_said_beside_the_turns_is_kept(tmp_path: Path) -> None:
    turns = [{"side": "user", "text": "hi", "time": 1}, {"side": "user", "text": "there", "metadata": {"time": 2}},
             {"side": "policy", "text": "yes"}]  # fmt: skip
    more = {"language": "de", "metadata": {"rewrd": 1}}
    lines = [json.dumps({"id": 1, "turns": turns, **more}), line(2), line(3, language="en")]
    logs = reader_of(tmp_path, *lines).read(Split.CALIBRATION)
    assert logs[0].annotations["metadata"] == {"language": "de", "rewrd": 1}
    assert logs[0].annotations["turn_metadata"] == [[], [{"time": 1}, {"time": 2}], []]
    assert len(logs[0].turns) == 3 and "metadata" not in logs[1].annotations
    strict = reader_of(tmp_path, *lines, strict=True)
    assert [log.scenario.id for log in strict.read(Split.CALIBRATION)] == ["2"]
    assert ["unknown key 'language'" in str(problem) for problem in strict.problems] == [True, True]


def test_line_ends_of_other_systems_and_huge_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrated_rl.logs.containers.json_lines.LONGEST_LINE", 300)
    file = tmp_path / "logs.jsonl"
    huge = line("huge", f"u {'x' * 2000}")
    file.write_bytes("\r\n".join([line(1), huge, line(2), "", line(3)]).encode())
    records, problems = read_jsonl(file)
    assert [record.line for record in records] == [1, 3, 5]
    assert [(p.line, p.reason) for p in problems] == [(2, "the line is longer than 0 MiB")]
    file.write_bytes(f"{line(1)}\n{huge}".encode())
    assert [problem.line for problem in read_jsonl(file)[1]] == [2]


def test_many_refused_lines_are_counted_by_reason(tmp_path: Path) -> None:
    lines = [line("good"), *(json.dumps({"id": i}) for i in range(4999)), line("x", rewrd=1), line("y", rewrd=1)]
    said = problem_lines(reader_of(tmp_path, *lines).problems)
    assert len(said) == 6 and [text.split(": ")[1][-3:] for text in said[:3]] == ["l:2", "l:3", "l:4"]
    assert said[3] == "refused: 4996 more for this reason, 4999 in all"
    assert all("unknown key 'rewrd'" in text for text in said[4:])
    letters = [f"{'abcdefghijklmnopqrstuvwxyz'[i]}?" for i in range(26)]
    problems = [LogProblem("f", number, reason) for number, reason in enumerate(letters)]
    assert problem_lines(problems)[-1] == "refused: 6 more for 6 other reasons"


def test_empty_splits_are_told_with_what_is_there(tmp_path: Path) -> None:
    reader = reader_of(tmp_path, line(1), line(2, edning="x"))
    with pytest.raises(UserError, match="no dialogue for the monitor split .*calibration 1, monitor 0") as told:
        reader.read(Split.MONITOR)
    assert "the first of 1 refused" in str(told.value) and "unknown key 'edning'" in str(told.value)


ECHO = """
from collections.abc import Mapping
from dataclasses import dataclass
from calibrated_rl.data.dialogue import Outcome, Scenario

class Shop:
    @dataclass(frozen=True)
    class Config:
        pass
    name, max_policy_turns = "shop", 3
    def __init__(self, config): pass
    def scenarios(self, split, count, population="same"):
        named = dict(split=split, policy_instructions="", user_instructions="", greeting="hi", population=population)
        return [Scenario(id=f"{split}-{i}", **named) for i in range(count)]
    def ending(self, scenario, turns): return None
    def outcome(self, scenario, turns, ending): return Outcome(reward=scenario.goal["worth"] + 0, success=True)
    def acts(self, scenario, turns, index): return ()
    def profile(self, scenario, turns): return {}
    def reward_range(self): return 0.0, 1.0
"""


@pytest.mark.slow
def test_the_job_asks_what_a_run_would_ask(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(ECHO)
    splits = [line(f"{split}{i}", split=split.value, goal={"worth": 1}) for split in Split for i in range(12)]
    bad = [line("g", goal={"word": 1}), line("s", goal={"worth": "1"}), line("r", reward=7, success=True)]
    (tmp_path / "good.jsonl").write_text("\n".join(splits))
    (tmp_path / "bad.jsonl").write_text("\n".join([*splits, *bad]))
    (tmp_path / "few.jsonl").write_text("\n".join(splits[:2]))
    config = tmp_path / "c.yaml"
    logs = f"{{reader: 'calibrated_rl.logs.jsonl:JsonLines', path: {tmp_path}/good.jsonl}}"
    config.write_text(f"name: c\ntask: {tmp_path}/shop.py:Shop\narms: [start]\nlogs: {logs}\n")
    result = check("check", "--config", str(config))
    assert result.returncode == 0, result.stderr
    assert "calibration 12 (36 turns), monitor 12 (36 turns), tuning 12 (36 turns), held_out 12" in result.stdout
    result = check("check", str(tmp_path / "bad.jsonl"), "--config", str(config))
    assert result.returncode == 1 and "3 refused" in result.stdout
    assert f"KeyError: 'worth' ({tmp_path}/shop.py:16" in result.stdout
    assert f'TypeError: can only concatenate str (not "int") to str ({tmp_path}/shop.py:16' in result.stdout
    assert "'reward' is 7: reward_range() says 0 to 1" in result.stdout
    result = check("check", "--config", str(config), f"logs.path={tmp_path}/few.jsonl")
    assert result.returncode == 2 and "calibration 2 (6 turns), monitor 0" in result.stdout
    assert "no dialogue for the monitor split" in result.stderr and result.stderr.count("\n") == 1
    (tmp_path / "held.jsonl").write_text("\n".join(splits[:-1]))
    result = check("check", str(tmp_path / "held.jsonl"), "--config", str(config))
    assert result.returncode == 2 and "the held-out split has 11 dialogues" in result.stderr
