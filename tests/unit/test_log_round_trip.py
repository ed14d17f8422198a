"""Dialogues that are written in any format and kind of file, read, converted and read again are the same."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from calibrated_rl.data.dialogue import Side
from calibrated_rl.errors import UserError
from calibrated_rl.logs.convert import Conversion, convert_files
from calibrated_rl.logs.formats.base import formats
from calibrated_rl.logs.options import FORMATS, FileSettings
from calibrated_rl.logs.reading import REPEATED, LogReading, read_logs
from tests.unit.test_log_formats import write_lines

Talk = tuple[str, list[tuple[Side, str]]]
"""Id, and who says what."""
U, P = Side.USER, Side.POLICY
OURS = ("user", "policy")

WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).filter(lambda text: "###" not in text)
TALKS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=6),
        st.lists(st.tuples(st.sampled_from([U, P]), WORDS), min_size=1, max_size=5),
    ),
    min_size=1, max_size=4, unique_by=lambda talk: talk[0],
)  # fmt: skip


def as_turns(talk: Talk, side: str, text: str, names: tuple[str, str]) -> list[dict[str, str]]:
    return [{side: names[own is P], text: said} for own, said in talk[1]]


def chat(talk: Talk) -> list[dict[str, str]]:
    return as_turns(talk, "role", "content", ("user", "assistant"))


def spoken(talk: Talk) -> list[tuple[Side, str]]:
    """Without empty turns, which our own format refuses."""
    return [(side, text) for side, text in talk[1] if text.strip()]


def utterances(talk: Talk) -> list[dict[str, Any]]:
    names = [f"{talk[0]}/{index}" for index in range(len(talk[1]))]
    return [
        {"id": names[i], "conversation_id": talk[0], "speaker": own.value, "text": said, "meta": {"n": i},
         "reply-to": names[i - 1] if i else None}
        for i, (own, said) in enumerate(talk[1])
    ]  # fmt: skip


def rows(talk: Talk) -> list[dict[str, Any]]:
    return [{"dialogue_id": talk[0], "role": own.value, "text": said} for own, said in talk[1]]


RECORDS: dict[str, Callable[[Talk], list[dict[str, Any]]]] = {
    "messages": lambda talk: [{"id": talk[0], "messages": chat(talk)}],
    "sharegpt": lambda talk: [{"id": talk[0], "conversations": as_turns(talk, "from", "value", ("human", "gpt"))}],
    "wildchat": lambda talk: [{"conversation_id": talk[0], "conversation": chat(talk), "model": "m"}],
    "tau_bench": lambda talk: [{"task_id": talk[0], "reward": 0.5, "traj": chat(talk)}],
    "simulatorarena": lambda talk: [
        {
            "id": talk[0],
            "user_queries": [said if own is U else "" for own, said in talk[1]],
            "ai_responses": [said if own is P else "" for own, said in talk[1]],
        }
    ],
    "convokit": utterances,
    "rows": rows,
    "runs": lambda talk: [{"id": talk[0], "turns": as_turns((talk[0], spoken(talk)), "side", "text", OURS)}],
}


def write_csv(file: Path, records: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(records[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        plain = [{k: v if isinstance(v, str | None) else json.dumps(v) for k, v in each.items()} for each in records]
        writer.writerows(plain)


def write_arrow(file: Path, records: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(records)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def write_feather(file: Path, records: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(records)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def packed(pack: Callable[[bytes], bytes]) -> Callable[[Path, list[dict[str, Any]]], None]:
    def write(file: Path, records: list[dict[str, Any]]) -> None:
        file.write_bytes(pack(write_lines(file, records).read_bytes()))

    return write


FILES: dict[str, Callable[[Path, list[dict[str, Any]]], Any]] = {
    "x.jsonl": write_lines,
    "x.json": lambda file, records: file.write_text(json.dumps(records, indent=1)),
    "one_line.json": lambda file, records: file.write_text(json.dumps(records)),
    "x.csv": write_csv,
    "x.parquet": lambda file, records: parquet.write_table(pa.Table.from_pylist(records), file),
    "x.arrow": write_arrow,
    "x.feather": write_feather,
    "x.jsonl.gz": packed(gzip.compress),
    "x.jsonl.bz2": packed(bz2.compress),
    "x.jsonl.xz": packed(lzma.compress),
    "x.jsonl.zst": packed(lambda data: bytes(pa.compress(data, "zstd", asbytes=True))),
}  # fmt: skip


def expected(talk: Talk) -> tuple[tuple[Side, str], ...] | None:
    """Turns by the house's rules; None: refused, because no user speaks."""
    turns: list[tuple[Side, str]] = []
    for side, text in talk[1]:
        if turns and text.strip() and turns[-1][0] is side:
            turns[-1] = (side, f"{turns[-1][1]}\n{text.strip()}")
        elif text.strip():
            turns.append((side, text.strip()))
    return tuple(turns) if any(side is U for side, _ in turns) else None


def through(folder: Path, name: str, file_name: str, talks: list[Talk]) -> tuple[dict[str, Any], Conversion | None]:
    """What is read of ``talks``, written in a format and a kind of file, after it was converted and read again."""
    file = folder / file_name
    FILES[file_name](file, [record for talk in talks for record in RECORDS[name](talk)])
    how = FileSettings(format=name)
    reading = LogReading([str(file)], how)
    first = {record.id: record for record, _ in reading}
    assert len(first) + len(reading.problems) == len(talks)
    if not first:
        with pytest.raises(UserError, match="contains no usable dialogue"):
            convert_files([str(file)], folder / "out.jsonl", how)
        return {}, None
    done = convert_files([str(file)], folder / "out.jsonl", how)
    again, read_back = read_logs([str(done.file)], FileSettings(format="runs", strict=True))
    assert not read_back.problems and done.dialogues == len(again)
    for record in again:
        before = first[record.id]
        assert (record.turns, record.optional, record.metadata) == (before.turns, before.optional, before.metadata)
        assert record.turn_metadata == before.turn_metadata and record.split == before.split
    return {record.id: record.turns for record in again}, done


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=12)
@given(talks=TALKS)
def test_any_dialogues_come_through_every_format(
    name: str, talks: list[Talk], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found, _ = through(tmp_path_factory.mktemp("f"), name, "x.jsonl", talks)
    assert found == {talk[0]: turns for talk in talks if (turns := expected(talk)) is not None}


@pytest.mark.parametrize("file_name", FILES)
@settings(max_examples=6)
@given(talks=TALKS, name=st.sampled_from(FORMATS))
def test_any_dialogues_come_through_every_kind_of_file(
    file_name: str, talks: list[Talk], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if name == "convokit" and file_name == "x.csv":
        name = "rows"  # a corpus is never a table of texts
    found, _ = through(tmp_path_factory.mktemp("f"), name, file_name, talks)
    assert found == {talk[0]: turns for talk in talks if (turns := expected(talk)) is not None}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_found_by_their_keys(name: str, tmp_path: Path) -> None:
    talks: list[Talk] = [("a", [(U, "hi"), (P, "so")]), ("b", [(P, "Hello"), (U, "yes")])]
    for file_name, write in FILES.items():
        write(tmp_path / file_name, [record for talk in talks for record in RECORDS[name](talk)])
        records, reading = read_logs([str(tmp_path / file_name)])
        assert [record.id for record in records] == ["a", "b"] and reading.report.files[0].format == formats()[
            name
        ].title


# --- what is no dialogue -----------------------------------------------------------------------------------

ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text", "side", "function"]), inner
        )
    ),
    max_leaves=8,
)
OTHERS = st.dictionaries(
    st.sampled_from(["id", "meta", "reward", "success", "goal", "timestamp", "task_id", "metadata", "turns", "split"]),
    ODD, max_size=3,
)  # fmt: skip


def like(required: dict[str, Any], *optional: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these keys, most of which hold what they should and some of which do not."""
    return st.fixed_dictionaries(
        {key: st.sampled_from(values) | ODD for key, values in required.items()},
        optional=dict.fromkeys(optional, ODD),
    )


CALLS = st.lists(like({"id": ["a", "b"], "function": [{"name": "f"}]}, "name", "arguments"), max_size=2) | ODD
MESSAGES = st.lists(
    st.builds(
        lambda message, calls: {**message, "tool_calls": calls},
        like(
            {"role": ["user", "assistant", "system", "tool"], "content": ["", "x"]}, "tool_call_id", "refusal", "name"
        ),
        CALLS,
    ),
    max_size=4,
)
ENTRIES = st.lists(like({"from": ["human", "gpt", "function_call", "observation"], "value": ["x"]}), max_size=4)
RECORD = st.one_of(
    st.builds(
        lambda key, talk, more: {**more, key: talk},
        st.sampled_from(["messages", "traj", "conversation", "conversations", "conversation_a"]),
        MESSAGES | ENTRIES, OTHERS,
    ),
    like(
        {"id": ["a", "b"], "conversation_id": ["x"], "speaker": ["p", "q"], "text": ["", "x"], "reply-to": ["a", None]},
        "meta", "timestamp",
    ),
    like({"dialogue_id": ["x", "y"], "role": ["user", "agent"], "text": ["x"], "time": [1, 2]}, "reward", "success"),
    OTHERS, ODD,
)  # fmt: skip


@pytest.mark.parametrize("name", ("auto", *FORMATS))
@settings(max_examples=25)
@given(records=st.lists(RECORD, min_size=1, max_size=4))
def test_any_records_are_dialogues_or_refused_in_words(
    name: str, records: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    records = [{}, *records]  # lines, not one value
    file = write_lines(tmp_path_factory.mktemp("f") / "x.jsonl", records)
    reading = LogReading([str(file)], FileSettings(format=name))
    try:
        found = [record for record, _ in reading]
    except UserError as refused:
        assert str(file) in str(refused) and "\n" not in str(refused)
        return
    if name not in ("rows", "convokit", "auto"):  # in which a dialogue has several records
        assert len(found) + len(reading.problems) + reading.report.counts[REPEATED] >= len(records)
    assert found or reading.problems
    assert all(str(problem).isprintable() and str(problem).startswith(str(file)) for problem in reading.problems)


@pytest.mark.parametrize("file_name", FILES)
@settings(max_examples=15)
@given(cut=st.floats(0, 1), noise=st.binary(max_size=8))
def test_any_damage_is_told_as_a_mistake_of_the_file(
    file_name: str, cut: float, noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("f") / file_name
    FILES[file_name](file, [each for number in range(9) for each in rows((str(number), [(U, "hi"), (P, "so")]))])
    content = file.read_bytes()
    place = int(cut * len(content))
    file.write_bytes(content[:place] + noise)
    try:
        records, reading = read_logs([str(file)])
    except UserError as refused:
        assert str(file) in str(refused) and "\n" not in str(refused)
    else:
        assert len(records) <= 9 and all(problem.file == str(file) for problem in reading.problems)
