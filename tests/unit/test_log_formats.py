"""Logs of other formats: each is read as what it says, and what was decided on the way is counted."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import UserError
from calibrated_rl.logs import reading as decided
from calibrated_rl.logs.chat_messages import LATE_SYSTEM, PARTS, TOOL_CALLS, TOOLS_AT_THE_END
from calibrated_rl.logs.containers.base import containers
from calibrated_rl.logs.formats.base import formats
from calibrated_rl.logs.formats.tau_bench import STOPPED
from calibrated_rl.logs.options import FORMATS, FileSettings
from calibrated_rl.logs.reading import LogReading, read_logs
from calibrated_rl.logs.record import JsonlRecord
from calibrated_rl.logs.sides import BY_ORDER, SEVERAL
from calibrated_rl.logs.utterances import REORDERED
from tests.support.paths import SHARED

U, P = Side.USER, Side.POLICY


def write_lines(file: Path, records: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def one(tmp_path: Path, record: Any, **how: Any) -> tuple[JsonlRecord, LogReading]:
    """The dialogue of a file that has one."""
    (record,), reading = read_logs([str(write_lines(tmp_path / "one.jsonl", [record]))], FileSettings(**how))
    return record, reading


# --- what each format says ---------------------------------------------------------------------------------


def test_messages_have_parts_calls_and_instructions(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "book", "arguments": '{"n": 2}'}}
    messages = [
        {"role": "system", "content": "Sell."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "For"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        {"role": "user", "content": "two", "timestamp": "2026-01-02T03:04:05Z"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "ok"},
        {"role": "developer", "content": "Hurry."},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "", "function_call": {"name": "end", "arguments": "{}"}},
    ]
    record, reading = one(tmp_path, {"id": 7, "messages": messages, "model": "m", "reward": 1, "success": True})
    assert record.id == "7" and record.turns == ((U, "For\n[image]\ntwo"), (P, "Done."))
    assert record.optional == {"policy_instructions": "Sell.", "reward": 1, "success": True}
    assert record.turn_metadata[0] == ({"timestamp": "2026-01-02T03:04:05Z"},)
    made = {"name": "book", "arguments": {"n": 2}, "id": "c1", "result": "ok"}
    assert record.turn_metadata[1] == ({"tools": [made], "system": "Hurry."},)
    assert record.metadata == {"model": "m", "tools_at_the_end": [{"name": "end", "arguments": {}}]}
    expected = {TOOL_CALLS: 2, TOOLS_AT_THE_END: 1, LATE_SYSTEM: 1, PARTS: 1, decided.EMPTY: 1, decided.JOINED: 1}
    assert {what: count for what, count in reading.report.counts.items() if count} == expected


def test_an_assistant_that_speaks_first_greets(tmp_path: Path) -> None:
    messages = [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Hi"}]
    record, reading = one(tmp_path, messages)
    assert record.turns == ((P, "Hello"), (U, "Hi")) and len(record.id) == 16
    counts = reading.report.counts
    assert counts[decided.GREETED] == counts[decided.NO_REPLY] == counts[decided.WITHOUT_ID] == 1
    again, _ = one(tmp_path, {"messages": messages})
    assert again.id == record.id, "the words make the id"


def test_a_later_result_goes_to_the_first_open_call(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "function_call": {"name": "a", "arguments": "no json"}},
        {"role": "function", "name": "a", "content": "A"},
        {"role": "assistant", "content": "so"},
    ]
    record, _ = one(tmp_path, {"messages": messages})
    assert record.turn_metadata[1] == ({"tools": [{"name": "a", "arguments": "no json", "result": "A"}]},)


def test_sharegpt(tmp_path: Path) -> None:
    entries = [
        {"from": "human", "value": "hi"}, {"from": "function_call", "value": '{"name": "a", "arguments": {}}'},
        {"from": "observation", "value": "A"}, {"from": "gpt", "value": "so", "weight": 1},
    ]  # fmt: skip
    record, _ = one(tmp_path, {"id": "x", "conversations": entries, "system": "Be kind."})
    assert record.turns == ((U, "hi"), (P, "so")) and record.optional["policy_instructions"] == "Be kind."
    assert record.turn_metadata[1] == ({"weight": 1, "tools": [{"name": "a", "arguments": {}, "result": "A"}]},)


def test_wildchat_and_the_arena(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi", "toxic": False}, {"role": "assistant", "content": "so"}]
    record, _ = one(tmp_path, {"conversation_hash": "f", "model": "m", "conversation": talk, "toxic": False})
    assert record.id == "f" and record.metadata == {"model": "m", "toxic": False}
    assert record.turn_metadata[0] == ({"toxic": False},)
    pair = {"question_id": "q", "winner": "model_a", "conversation_a": talk, "conversation_b": talk}
    records, _ = read_logs([str(write_lines(tmp_path / "arena.jsonl", [pair]))])
    assert [each.id for each in records] == ["q-a", "q-b"]
    assert all(each.metadata == {"winner": "model_a"} for each in records)


def test_tau_bench_of_both_versions(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "policy"}, {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so"}, {"role": "user", "content": "bye ###STOP###"},
    ]  # fmt: skip
    record, reading = one(tmp_path, {"task_id": 3, "trial": 1, "reward": 1.0, "traj": talk, "info": {"n": 1}})
    assert (record.id, record.turns[-1]) == ("3-1", (U, "bye")) and reading.report.counts[STOPPED] == 1
    said = {"reward": 1.0, "success": True, "ending": "user_stop", "policy_instructions": "policy"}
    assert dict(record.optional) == said and record.metadata["info"] == {"n": 1}
    call = {"id": "c", "name": "look", "arguments": {"k": 1}, "requestor": "user"}
    talk = [
        {"role": "assistant", "content": "Hi!", "turn_idx": 0}, {"role": "user", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "c", "content": "seen", "requestor": "user"}, {"role": "user", "content": "###STOP###"},
        {"role": "user", "content": "I see"},
    ]  # fmt: skip
    simulation = {"id": "s", "task_id": "0", "reward_info": {"reward": 0.0}, "termination_reason": "user_stop"}
    (tmp_path / "tau2.json").write_text(
        json.dumps({"tasks": [], "info": {}, "simulations": [{**simulation, "messages": talk}]}, indent=1)
    )
    (record,), reading = read_logs([str(tmp_path / "tau2.json")])
    assert record.turns == ((P, "Hi!"), (U, "I see")) and record.optional["success"] is False
    made = {"name": "look", "arguments": {"k": 1}, "id": "c", "side": "user", "result": "seen"}
    made["result_metadata"] = {"requestor": "user"}
    assert record.turn_metadata == (({"turn_idx": 0},), ({"tools": [made]},))
    assert reading.report.counts[decided.BESIDE_LIST] == 2


ARENA = SHARED / "data" / "simulatorarena"


@pytest.mark.parametrize("write", [repr, json.dumps, lambda turns: turns])
def test_simulatorarena(write: Callable[[Any], Any], tmp_path: Path) -> None:
    said = {"user_queries": write(["hi", ["/tmp/image.png"], "it's 3"]), "ai_responses": write(["so", None])}
    record, reading = one(tmp_path, {**said, "overall_rating": 7, "level": {"of": "Level 4"}})
    assert record.turns == ((U, "hi"), (P, "so"), (U, "[image]\nit's 3"))
    assert record.metadata == {"overall_rating": 7, "level": {"of": "Level 4"}}
    assert reading.report.counts[PARTS] == reading.report.counts[decided.EMPTY] == 1
    file = write_lines(tmp_path / "strict.jsonl", [{**said, "overall_ratings": 7}])
    with pytest.raises(UserError, match="unknown key 'overall_ratings'"):
        read_logs([str(file)], FileSettings(strict=True))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_queries": "['a'"}, "'user_queries' is a text that holds no list"),
        ({"user_queries": "__import__('os')"}, "holds no list"), ({"ai_responses": "3"}, "is an int 3, not a list"),
        ({"user_queries": "[" * 9999}, "holds no list"), ({"user_queries": [3]}, r"user_queries\[0\] is an int 3"),
        ({"ai_responses": ["x", "y", "z"]}, "1 user_queries and 3 ai_responses: they do not take turns"),
    ],
)  # fmt: skip
def test_what_is_refused_of_simulatorarena(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    record = {"user_queries": ["hi"], "ai_responses": ["so"], **change}
    with pytest.raises(UserError, match=reason):
        one(tmp_path, record)


@pytest.mark.skipif(not ARENA.is_dir(), reason="SimulatorArena is not there (../shared/data/simulatorarena)")
@pytest.mark.parametrize(
    ("name", "dialogues", "rating"),
    [("math_tutoring", 30, "overall_rating"), ("document_creation", 31, "overall_interaction_rating")],
)
def test_the_real_files_of_simulatorarena(name: str, dialogues: int, rating: str) -> None:
    records, reading = read_logs([str(ARENA / f"{name}.json")], FileSettings(strict=True))
    assert len(records) == dialogues and not reading.problems
    assert all(1 <= record.metadata[rating] <= 10 for record in records)
    assert all(record.turns[0][0] is U and len(record.turns) >= 3 for record in records)


def utterance(
    name: str, speaker: str, text: str, reply_to: str | None, time: Any = None, **meta: Any
) -> dict[str, Any]:
    return {"id": name, "conversation_id": "c", "speaker": speaker, "text": text, "reply-to": reply_to,
            "timestamp": time, "meta": meta}  # fmt: skip


def test_a_convokit_folder(tmp_path: Path) -> None:
    said = [
        utterance("b", "p2", "two", "a"),
        utterance("a", "p1", "one", None, tone="kind"),
        utterance("c", "p1", "three", "b"),
    ]
    write_lines(tmp_path / "utterances.jsonl", said)
    (tmp_path / "conversations.json").write_text(json.dumps({"c": {"meta": {"topic": "x"}}}))
    (tmp_path / "speakers.json").write_text(json.dumps({"p1": {"meta": {"age": 3}}, "p9": {}}))
    (record,), reading = read_logs([str(tmp_path)])
    assert record.id == "c" and record.turns == ((U, "one"), (P, "two"), (U, "three")), "in the order of replies"
    assert record.metadata == {"topic": "x", "speakers": {"p1": {"meta": {"age": 3}}}}
    assert record.turn_metadata[0] == ({"speaker": "p1", "id": "a", "tone": "kind"},)
    assert reading.report.counts[BY_ORDER] == 1
    (record,), _ = read_logs([str(tmp_path)], FileSettings(policy=["p1"]))
    assert [side for side, _ in record.turns] == [P, U, P]
    (record,), _ = read_logs([str(tmp_path)], FileSettings(policy=["tone=kind"]))
    assert [side for side, _ in record.turns] == [P, U] and record.turns[1][1] == "two\nthree"


def test_conversations_that_branch_or_have_many_speakers_are_refused_or_told(tmp_path: Path) -> None:
    def read(said: list[dict[str, Any]], **how: Any) -> tuple[list[JsonlRecord], LogReading]:
        return read_logs([str(write_lines(tmp_path / "utterances.jsonl", said))], FileSettings(**how))

    branched = [utterance("a", "p1", "x", None), utterance("b", "p2", "x", "a"), utterance("c", "p1", "x", "a")]
    with pytest.raises(
        UserError, match="read as ConvoKit, contains no usable dialogue; .*:1: dialogue 'c': 1 of its .*branches"
    ):
        read(branched)
    three = [utterance("a", "p1", "x", None, 3), utterance("b", "p2", "y", None, 1), utterance("c", "p3", "z", None, 2)]
    with pytest.raises(UserError, match="of 3 speakers 'p2' is of neither side"):
        read(three)
    (record,), reading = read(three, users=["p1"])
    assert record.turns == ((P, "y\nz"), (U, "x")), "in the order of their times"
    assert reading.report.counts[SEVERAL] == reading.report.counts[REORDERED] == 1


def test_the_index_of_pandas_needs_no_name(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(",text,role,dialogue_id\n0,hi,user,a\n1,so,agent,a\n")
    (record,), _ = read_logs([str(tmp_path / "x.csv")])
    assert record.turns == ((U, "hi"), (P, "so"))
    assert record.turn_metadata[1] == ({"speaker": "agent", "column 1": "1"},)


CSV = 'ticket;sender;body;sent;reward;success;mood\n1;customer;"For two;\nplease";2;;;good\n2;agent;Hello;1;;;\n'
CSV += "1;agent;Which day?;1;0.5;yes;\n\n2;customer;Hi;2;;;\n1;customer;;3;;;\n"


def test_a_table_of_turns(tmp_path: Path) -> None:
    (tmp_path / "desk.csv").write_text(CSV)
    columns = {"dialogue": "ticket", "side": "sender", "text": "body"}
    first, second = read_logs([str(tmp_path / "desk.csv")], FileSettings(columns=columns))[0]
    assert first.turns == ((U, "For two;\nplease"), (P, "Which day?")) and first.id == "1"
    assert first.optional == {"reward": 0.5, "success": True}
    assert first.turn_metadata[0] == ({"speaker": "customer", "sent": "2", "mood": "good"},)
    assert second.turns == ((P, "Hello"), (U, "Hi"))
    timed = FileSettings(columns={**columns, "time": "sent"})
    records, reading = read_logs([str(tmp_path / "desk.csv")], timed)
    assert records[0].turns[0] == (P, "Which day?") and reading.report.counts[REORDERED] == 1
    with pytest.raises(UserError, match="desk.csv has no column 'bodi', .* it has 'ticket', 'sender', 'body'"):
        read_logs([str(tmp_path / "desk.csv")], FileSettings(columns={**columns, "text": "bodi"}))
    with pytest.raises(UserError, match="is CSV of no format that is known: .*'ticket', 'sender'.*--columns dialogue="):
        read_logs([str(tmp_path / "desk.csv")])
    strict = FileSettings(columns=columns, strict=True)
    with pytest.raises(UserError, match="unknown key 'sent'; without strict"):
        read_logs([str(tmp_path / "desk.csv")], strict)


def test_a_dialogue_with_a_turn_that_cannot_be_used_is_refused_as_a_whole(tmp_path: Path) -> None:
    good = {"dialogue_id": "a", "role": "user", "text": 3}
    said = [
        good,
        {**good, "dialogue_id": "b"},
        {**good, "dialogue_id": "b", "text": [3]},
        {**good, "dialogue_id": None},
    ]
    (record,), reading = read_logs([str(write_lines(tmp_path / "x.jsonl", said))])
    assert (record.id, record.turns) == ("a", ((U, "3"),))
    told = sorted(str(problem).partition(".jsonl:")[2] for problem in reading.problems)
    assert told[0].startswith("3: dialogue 'b': 'text' is a list, not a text") and told[1].startswith(
        "4: 'dialogue_id' is None"
    )


def test_a_column_with_whole_dialogues(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi, you"}, {"role": "assistant", "content": "so"}]
    with (tmp_path / "chats.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["name", "chat"], ["a", json.dumps(messages)], ["b", "not JSON"]])
    records, reading = read_logs(
        [str(tmp_path / "chats.csv")], FileSettings(columns={"messages": "chat", "id": "name"})
    )
    assert [(each.id, each.turns) for each in records] == [("a", ((U, "hi, you"), (P, "so")))]
    (problem,) = reading.problems
    assert problem.line == 3 and "the messages are a str 'not JSON', not a list" in problem.reason


def test_an_object_of_dialogues_by_their_ids(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "hi"}]
    (tmp_path / "all.json").write_text(json.dumps({"a": {"messages": talk}, "b": talk}))
    records, _ = read_logs([str(tmp_path / "all.json")])
    assert [record.id for record in records] == ["a", "b"]


REFUSED: list[tuple[Any, str]] = [
    ({"messages": [{"role": "narrator", "content": "x"}]}, "the role is 'narrator', which is of neither side"),
    ({"messages": [{"role": "user", "content": 3}]}, "message 0: content is an int 3"),
    ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, r"content\[0\] is a part of type 'hologram'"),
    ({"messages": [{"role": "user", "content": "x"}, 3]}, "message 1 is an int 3"),
    ({"messages": [{"role": "user", "content": " "}]}, "it has no turn with words"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "the user never speaks"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": 3}]}, "'tool_calls' is an int 3"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "surrogate"),
    ({"messages": []}, "the messages are a list, not a list of at least one"),
    ({"massages": []}, "'messages' is missing"),
]


@pytest.mark.parametrize(("bad", "reason"), REFUSED)
def test_a_dialogue_that_does_not_fit_is_named_and_costs_no_other(bad: Any, reason: str, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "hi"}]}
    records, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", [good, bad, {**good, "id": 2}]))])
    assert len(records) == 2
    (problem,) = reading.problems
    assert problem.line == 2
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(str(problem))


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    said = [{"id": "a", "messages": [{"role": "user", "content": text}]} for text in ("x", "y", "x", "z")]
    records, reading = read_logs([str(write_lines(tmp_path / "x.jsonl", said))])
    assert [(each.id, each.turns[0][1]) for each in records] == [("a", "x"), ("a-2", "y"), ("a-3", "z")]
    assert reading.report.counts[decided.REPEATED] == 1 and reading.report.counts[decided.RENAMED] == 2


def test_every_format_is_a_file_and_no_two_take_the_same_records(tmp_path: Path) -> None:
    assert tuple(formats()) == FORMATS and len(FORMATS) == 8
    assert len({each.title for each in formats().values()}) == len(FORMATS)
    assert [each.rank for each in containers()] == sorted(each.rank for each in containers())
    both = {"messages": [{"role": "user", "content": "x"}], "text": "x", "role": "user", "dialogue_id": 3}
    found = {name: each.fit(both) for name, each in formats().items()}
    assert found["rows"] > found["messages"] > 0
