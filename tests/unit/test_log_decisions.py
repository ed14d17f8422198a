"""Logs of other formats: who is heard, who is which side, and which dialogues are the same one."""

from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.data.dialogue import Split
from calibrated_rl.errors import UserError
from calibrated_rl.logs import chat_messages, utterances
from calibrated_rl.logs import reading as decided
from calibrated_rl.logs.formats import tau_bench
from calibrated_rl.logs.jsonl import JsonLines
from calibrated_rl.logs.options import FileSettings
from calibrated_rl.logs.reading import read_logs
from tests.unit.test_jsonl import Echo
from tests.unit.test_log_formats import P, U, one, write_lines

CALL = {"id": "c", "function": {"name": "look", "arguments": "{}"}}
MADE = {"name": "look", "arguments": {}, "id": "c"}


def said(role: str, content: Any = None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


# --- who is heard ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["traj", "messages"])
def test_words_beside_calls_of_tau_bench_are_nobodys_turn(key: str, tmp_path: Path) -> None:
    talk = [
        said("user", "hi"), said("assistant", "Let me look.", tool_calls=[CALL]),
        said("tool", "seen", tool_call_id="c"), said("assistant", "Done.", tool_calls=None),
    ]  # fmt: skip
    record, reading = one(tmp_path, {"task_id": 1, "reward_info": {"reward": 1.0}, key: talk})
    assert record.turns == ((U, "hi"), (P, "Done."))
    assert record.turn_metadata[1][0]["tools"] == [{**MADE, "content": "Let me look.", "result": "seen"}]
    assert reading.report.counts[chat_messages.UNHEARD] == 1
    record, _ = one(tmp_path, {"messages": talk})
    assert record.turns[1] == (P, "Let me look.\nDone."), "other assistants speak while they call"


@pytest.mark.parametrize("text", ['Thought:\nI look.\nAction:\n{"name": "look"}', 'Action: {"name": "respond"}', None])
def test_calls_as_text_are_refused(text: str | None, tmp_path: Path) -> None:
    spoken = said("user", "API output: seen") if text is None else said("assistant", text)
    good = {"task_id": 1, "traj": [said("user", "hi"), said("assistant", "Action: none. API output: none.")]}
    bad = {"task_id": 2, "traj": [said("user", "hi"), spoken, said("assistant", "so")]}
    records, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", [good, bad]))])
    assert [record.id for record in records] == ["1"]
    assert "message 1 is a tool call or its result as text" in reading.problems[0].reason


@pytest.mark.parametrize("reason", ["user_error", "infrastructure_error"])
def test_failed_simulations_are_not_scored(reason: str, tmp_path: Path) -> None:
    simulation = {"task_id": "0", "reward_info": {"reward": 0.0}, "termination_reason": reason, "messages": [
        said("user", "hi"), said("assistant", "so")]}  # fmt: skip
    record, reading = one(tmp_path, simulation)
    assert record.optional == {"ending": reason}
    assert reading.report.counts[tau_bench.NOT_SCORED] == 1
    record, _ = one(tmp_path, {**simulation, "reward": 0.0, "success": False})
    assert record.optional == {"ending": reason} and record.metadata["reward"] == 0.0


def test_calls_are_beside_a_turn_of_their_own_side(tmp_path: Path) -> None:
    talk = [said("user", "hi"), said("assistant", tool_calls=[CALL]), said("user", "hello?"), said("assistant", "so")]
    record, _ = one(tmp_path, {"messages": talk})
    assert record.turn_metadata == ((), ({"tools": [MADE]},))


# --- who is which side -------------------------------------------------------------------------------------


def test_selectors_see_the_whole_record(tmp_path: Path) -> None:
    talk = [said("user", "hi", by="desk"), said("assistant", "so")]
    record, _ = one(tmp_path, {"messages": talk}, policy=["role=assistant"])
    assert record.turns == ((U, "hi"), (P, "so"))
    record, _ = one(tmp_path, {"messages": talk}, policy=["by=desk"])
    assert record.turns == ((P, "hi"), (U, "so"))
    entries = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "so"}]
    record, _ = one(tmp_path, {"conversations": entries}, policy=["from=gpt"])
    assert record.turns == ((U, "hi"), (P, "so"))
    (tmp_path / "x.csv").write_text("dialogue_id,who,text\n1,anna,hi\n1,desk,so\n")
    for selector in ("who=desk", "side=desk"):
        (record,), _ = read_logs(
            [str(tmp_path / "x.csv")], FileSettings(columns={"side": "who"}, policy=[selector])
        )  # fmt: skip
        assert record.turns == ((U, "hi"), (P, "so"))


@pytest.mark.parametrize("record", [
    {"messages": [said("user", "hi"), said("assistant", "so")]},
    {"dialogue_id": 1, "role": "user", "text": "hi"},
])  # fmt: skip
def test_a_policy_that_never_speaks_in_a_file_is_told(record: Any, tmp_path: Path) -> None:
    file = str(write_lines(tmp_path / "x.jsonl", [record]))
    for selector in ("desk", "role=desk"):
        with pytest.raises(UserError, match=rf"x.jsonl has no turn of the policy's side, which is {selector} .*'user'"):
            read_logs([file], FileSettings(policy=[selector]))


# --- which dialogues are the same --------------------------------------------------------------------------


def test_dialogues_of_the_same_words_differ_by_what_else_they_say(tmp_path: Path) -> None:
    talk = {"messages": [said("user", "hi"), said("assistant", "so")]}
    differing = [
        {}, {"policy_instructions": "Sell."}, {"user_instructions": "Buy."}, {"goal": {"n": 2}}, {"ending": "left"},
        {"reward": 1, "success": True}, {"reward": 1, "success": False}, {"reward": 0, "success": False},
    ]  # fmt: skip
    for name in ({"id": "a"}, {}):
        given = [{**name, **talk, **more} for more in [*differing, *differing]]
        records, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", given))])
        assert [record.optional for record in records] == differing
        assert reading.report.counts[decided.REPEATED] == len(differing), "the renamed ones as well"
        assert len({record.id for record in records}) == len(differing)


def test_a_pair_of_the_arena_is_in_one_split(tmp_path: Path) -> None:
    def talk(number: int, reply: str) -> list[dict[str, Any]]:
        return [said("user", f"hi {number}"), said("assistant", reply)]

    pairs = [
        {**({"question_id": f"q{number}"} if number % 2 else {}), "conversation_a": talk(number, "a"),
         "conversation_b": talk(number, "b")}
        for number in range(40)
    ]  # fmt: skip
    file = write_lines(tmp_path / "x.jsonl", pairs)
    reader = JsonLines(JsonLines.Config(path=str(file)), task=Echo())
    splits: dict[str, set[Split]] = {}
    for split in Split:
        for log in reader.read(split):
            splits.setdefault(log.turns[1].text, set()).add(split)
    assert len(splits) == 40 and all(len(each) == 1 for each in splits.values())


def test_a_dialogue_of_a_group_does_not_follow_its_words_into_another_split(tmp_path: Path) -> None:
    turns = [{"side": side, "text": f"{side} {number}"} for number in range(2) for side in ("user", "policy")]
    given = [{"id": 1, "split": "held_out"}, {"id": 2, "split_group": "g"}, {"id": 3}]
    file = write_lines(tmp_path / "x.jsonl", [{**each, "turns": turns} for each in given])
    reader = JsonLines(JsonLines.Config(path=str(file), held_out=0.0, monitor=0.0, tuning=0.0), task=Echo())
    assert [log.id for log in reader.read(Split.HELD_OUT)] == ["log-1", "log-3"]
    assert "word for word the dialogue of line 1, which is in the held_out split" in reader.problems[0].reason


def test_keys_that_occur_twice_are_told_before_they_are_renamed_or_unwrapped(tmp_path: Path) -> None:
    good = '{"k": 1, "chat": [{"role": "user", "content": "hi"}]}'
    twice = good.removesuffix("}") + ', "chat": []}'
    (tmp_path / "x.jsonl").write_text(f"{good}\n{twice}\n")
    records, reading = read_logs([str(tmp_path / "x.jsonl")], FileSettings(columns={"messages": "chat"}))
    assert len(records) == 1
    assert "the key 'chat' occurs twice in one object" in reading.problems[0].reason


# --- in which order ----------------------------------------------------------------------------------------


def test_turns_are_ordered_by_the_first_column_that_can_be_read(tmp_path: Path) -> None:
    rows = [("first", 2, "b"), ("second", 1, "a")]
    given = [{"dialogue_id": 1, "role": "user", "turn": turn, "time": time, "text": text} for turn, time, text in rows]
    record, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", given))])
    assert record[0].turns == ((U, "a\nb"),)
    assert reading.report.counts[utterances.UNORDERED] == 1
    unread = [{**row, "time": "soon"} for row in given]
    record, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", unread))])
    assert record[0].turns == ((U, "b\na"),) and reading.report.counts[utterances.UNORDERED] == 1
    whole = [{key: value for key, value in row.items() if key != "turn"} for row in given]
    assert not read_logs([str(write_lines(tmp_path / "x.jsonl", whole))])[1].report.counts[utterances.UNORDERED]
