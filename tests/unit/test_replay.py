"""The replay store: nothing lost, nothing handed out twice, torn and foreign files refused by name."""

import asyncio
import dataclasses
import hashlib
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrated_rl.data.dialogue import (
    Dialogue,
    Finish,
    Outcome,
    Scenario,
    Side,
    Source,
    Split,
    TokenSequence,
    Turn,
)
from calibrated_rl.errors import UserError, is_disk_full
from calibrated_rl.replay.actor import ReplayService
from calibrated_rl.replay.schema import FORMAT_KEY, SCHEMA, from_table, to_table
from calibrated_rl.replay.segments import RefusedSegment, read_segment
from calibrated_rl.replay.store import ReplayStore
from tests.support.made_up_rollouts import assert_same, filled, group, ids, resign, rollout, tokens_of
from tests.support.paths import ROOT

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["", "\x00", "<|im_start|>system\n", "a\u2028b", "\ufeff", "e\u0301", "\U0001f600", "'\"\\{}\n\r\t"]
)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
mapping = st.dictionaries(text, json_value, max_size=3)
version = st.none() | st.integers(0, 2**31 - 1)


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence | None:
    if draw(st.booleans()):
        return None
    n = draw(st.integers(0, 6))

    def column(element: st.SearchStrategy[Any], dtype: Any) -> Any:
        return np.array(draw(st.lists(element, min_size=n, max_size=n)), dtype)

    int32 = st.integers(-1, 2**31 - 1)
    return TokenSequence(
        ids=column(int32, np.int32),
        mask=column(st.booleans(), np.bool_),
        logprobs=column(st.floats(width=32), np.float32),
        versions=column(int32, np.int32),
        turns=column(int32, np.int32),
    )


turns = st.builds(
    Turn,
    side=st.sampled_from(Side),
    text=text,
    source=st.sampled_from(Source),
    finish=st.sampled_from(Finish),
    simulator_version=version,
    flaw=st.none() | text,
)
scenarios = st.builds(
    Scenario,
    id=text,
    split=st.sampled_from(Split),
    policy_instructions=text,
    user_instructions=text,
    greeting=text,
    goal=mapping,
    persona=mapping,
    population=text,
)
outcomes = st.builds(
    Outcome,
    reward=st.floats(allow_nan=False),
    success=st.booleans(),
    turn_rewards=st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
    details=mapping,
)
dialogues = st.builds(
    Dialogue,
    id=text,
    task=text,
    scenario=scenarios,
    turns=st.lists(turns, max_size=3).map(tuple),
    ending=text,
    outcome=st.none() | outcomes,
    kind=text,
    arm=text,
    group_id=text,
    group_size=st.integers(1, 99),
    update=st.integers(-1, 2**31 - 1),
    sampling_seed=st.integers(-(2**63), 2**63 - 1),
    simulator_version=version,
    policy_tokens=sequences(),
    user_tokens=sequences(),
    annotations=mapping,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(dialogues, max_size=4), st.integers(0, 3), st.integers(0, 3))
def test_any_dialogue_comes_back_as_it_was(many: list[Dialogue], start: int, count: int) -> None:
    table = to_table(many)
    table.validate(full=True)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    for a, b in zip(many, from_table(table), strict=True):
        assert_same(a, b)
    for a, b in zip(many[start : start + count], from_table(table.slice(start, count)), strict=True):
        assert_same(a, b)


def test_lone_surrogate_becomes_a_question_mark() -> None:
    hostile = rollout("g\ud800", 0, turns=(Turn(side=Side.USER, text="a\udfffb", source=Source.HUMAN),))
    hostile = dataclasses.replace(hostile, annotations={"k\ud800": "\udc00"})
    (back,) = from_table(to_table([hostile]))
    assert back.group_id == "g?" and back.turns[0].text == "a?b" and back.annotations == {"k?": "?"}


def test_every_field_is_documented() -> None:
    manual = (ROOT / "docs/replay.md").read_text()

    def check(field: Any, prefix: str) -> None:
        assert field.metadata[b"doc"], field.name
        assert f"`{prefix}{field.name}`" in manual, f"docs/replay.md lacks {prefix}{field.name}"
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_struct(inner):
            for child in inner:
                check(child, prefix if field.name == "user_tokens" else f"{field.name}.")

    for field in SCHEMA:
        if field.name != "user_tokens":
            check(field, "")


def test_reopened_store_neither_loses_nor_repeats(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path)
    for name in ("g1", "g2", "g3"):
        store.append(group(name))
    store.append([rollout("g4", 0)])
    store.sample(1, update=0, max_staleness=0)

    again = ReplayStore(tmp_path)
    assert again.counts() == store.counts() and not again.refused
    assert again.append([rollout("g4", 0)]) == 0
    again.append([rollout("g4", 1)])
    rest = again.sample(3, update=0, max_staleness=0)
    assert ids(rest) == [[f"{g}/0", f"{g}/1"] for g in ("g2", "g3", "g4")]
    assert_same(rest[0][0], rollout("g2", 0))
    assert ReplayStore(tmp_path).counts()["groups_ready"] == 0
    assert not again._tables, "delivered groups are not kept in memory"


def test_plain_pyarrow_reads_a_segment(tmp_path: Path) -> None:
    filled(tmp_path)
    table = pa.ipc.open_file(tmp_path / "segment-000002.arrow").read_all()
    assert table.column("id").to_pylist() == ["g2/0", "g2/1"]
    assert table.column("turns").to_pylist()[0][0]["text"] == "hello"
    assert table.schema.metadata[FORMAT_KEY] == b"1"


def test_checksums_of_older_versions_are_read_and_checked(tmp_path: Path) -> None:
    filled(tmp_path)
    for new in tmp_path.glob("*.b3"):
        digest = hashlib.sha256(new.with_suffix("").read_bytes()).hexdigest()
        new.with_suffix(".sha256").write_text(f"{digest}  {new.stem}\n")
        new.unlink()
    store = ReplayStore(tmp_path)
    assert not store.refused and store.counts()["dialogues"] == 6
    store.append(group("g4"))
    segment = tmp_path / "segment-000002.arrow"
    segment.write_bytes(segment.read_bytes().replace(b"hello", b"HELLO"))
    store = ReplayStore(tmp_path)
    assert list(store.refused) == [segment.name] and store.counts()["dialogues"] == 6


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "checksum differs"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b"hello", b"HELLO")), "checksum differs"),
        (lambda p: p.write_bytes(b""), "checksum differs"),
        (lambda p: p.unlink(), "missing"),
        (lambda p: p.with_name(p.name + ".b3").unlink(), "no checksum"),
    ],
)
def test_damaged_segment_is_refused_and_the_rest_is_read(tmp_path: Path, damage: Any, reason: str) -> None:
    filled(tmp_path)
    damage(tmp_path / "segment-000002.arrow")
    store = ReplayStore(tmp_path)
    assert list(store.refused) == ["segment-000002.arrow"] and reason in store.refused["segment-000002.arrow"]
    assert ids(store.sample(2, update=0, max_staleness=0)) == [["g1/0", "g1/1"], ["g3/0", "g3/1"]]
    store.append(group("g4"))
    assert (tmp_path / "segment-000004.arrow").exists()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (SCHEMA.with_metadata({FORMAT_KEY: b"2"}), "newer than this program"),
        (SCHEMA.with_metadata({}), "not a file of dialogues"),
        (SCHEMA.remove(3), "columns"),
        (None, "not an Arrow file"),
    ],
)
def test_foreign_arrow_file_is_refused(tmp_path: Path, schema: Any, reason: str) -> None:
    filled(tmp_path)
    path = tmp_path / "segment-000002.arrow"
    if schema is None:
        path.write_bytes(b"PAR1 no arrow at all")
    else:
        with pa.ipc.new_file(path, schema) as writer:
            writer.write_table(schema.empty_table())
    resign(path)
    assert reason in ReplayStore(tmp_path).refused[path.name]


@pytest.mark.slow
def test_a_last_segment_torn_at_any_byte_is_refused_and_the_rest_is_there(tmp_path: Path) -> None:
    filled(tmp_path)
    last = tmp_path / "segment-000003.arrow"
    whole = last.read_bytes()
    for length in range(len(whole)):
        last.write_bytes(whole[:length])
        with pytest.raises(RefusedSegment, match="torn or altered"):
            read_segment(tmp_path, 3)
        if length % 1000 == 0:
            store = ReplayStore(tmp_path)
            assert list(store.refused) == [last.name] and store.ready() == 2
    last.write_bytes(whole)
    assert ReplayStore(tmp_path).ready() == 3


def test_a_full_disk_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Neither a segment nor a hand-out that found the disk full leaves a trace; both work when there is room again."""
    filled(tmp_path)
    store = ReplayStore(tmp_path)
    first = store.sample(1, update=0, max_staleness=0)
    log = tmp_path / "deliveries.jsonl"
    before, (soft, hard) = log.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 5, hard))
    try:
        with pytest.raises(OSError) as of_sample:
            store.sample(1, update=0, max_staleness=0)
        with pytest.raises(OSError) as of_append:
            store.append(group("g4"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert is_disk_full(of_sample.value) and is_disk_full(of_append.value)
    assert log.read_bytes() == before
    assert store.append(group("g4")) == 2
    rest = store.sample(3, update=0, max_staleness=0)
    assert ids(first + rest) == [[f"g{n}/0", f"g{n}/1"] for n in (1, 2, 3, 4)]
    again = ReplayStore(tmp_path)
    assert again.refused == {} and again.ready() == 0 and again.counts()["groups_delivered"] == 4


def test_strange_files_are_named(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "segment-000004.arrow.part").write_bytes(b"torn")
    store = ReplayStore(tmp_path)
    assert store.refused == {
        "notes.txt": "not a file of a replay store",
        "segment-000004.arrow.part": "a write that was never finished",
    }
    store.append(group("g4"))
    assert ReplayStore(tmp_path).ready() == 4


def test_torn_delivery_line_means_not_delivered(tmp_path: Path) -> None:
    filled(tmp_path)
    store = ReplayStore(tmp_path)
    store.sample(1, update=0, max_staleness=0)
    store.sample(1, update=0, max_staleness=0)
    log = tmp_path / "deliveries.jsonl"
    log.write_bytes(log.read_bytes()[:-5])
    again = ReplayStore(tmp_path)
    assert list(again.refused) == ["deliveries.jsonl:2"]
    assert ids(again.sample(2, update=0, max_staleness=0)) == [["g2/0", "g2/1"], ["g3/0", "g3/1"]]
    assert ReplayStore(tmp_path).refused == {} and ReplayStore(tmp_path).counts()["groups_delivered"] == 3


def test_two_writers_do_not_overwrite_each_other(tmp_path: Path) -> None:
    one, two = ReplayStore(tmp_path), ReplayStore(tmp_path)
    one.append(group("g1"))
    with pytest.raises(UserError, match="another process"):
        two.append(group("g2"))


def test_parquet_export(tmp_path: Path) -> None:
    filled(tmp_path / "replay")
    assert ReplayStore(tmp_path / "replay").export_parquet(tmp_path / "all.parquet") == 6
    table = pq.read_table(tmp_path / "all.parquet")
    assert [d.id for d in from_table(table)] == [f"g{g}/{i}" for g in (1, 2, 3) for i in (0, 1)]
    assert_same(from_table(table)[5], rollout("g3", 1))


def test_service_waits_for_groups_and_times_out() -> None:
    async def run() -> None:
        service = ReplayService()
        with pytest.raises(TimeoutError, match="1 groups for update 0"):
            await service.sample(1, update=0, max_staleness=0, timeout_s=0.01)
        waiting = asyncio.create_task(service.sample(1, update=0, max_staleness=0, timeout_s=5))
        await asyncio.sleep(0.01)
        members = group("g")
        await service.append(members[:1])
        assert not waiting.done()
        await service.append(members[1:])
        assert ids(await waiting) == [["g/0", "g/1"]]
        assert (await service.counts())["groups_delivered"] == 1

    asyncio.run(run())


# --- what makes it fast must not be seen


def test_tables_are_taken_as_they_are_and_strange_ones_are_refused() -> None:
    store = ReplayStore()
    table = pa.concat_tables([to_table(group("g1")), to_table(group("g2"))])
    assert store.append_table(table.slice(1)) == 3 and store.ready() == 1
    assert store.append_table(table) == 1 and store.counts()["repeated"] == 3, "in several pieces"
    assert ids(store.sample(2, update=0, max_staleness=0)) == [["g2/0", "g2/1"], ["g1/1", "g1/0"]]
    assert store.append_table(pa.concat_tables([table, table]).slice(0, 0)) == 0
    assert store.append_table(to_table([rollout("g3", 0), rollout("g3", 0)])) == 1, "twice in one table"
    with pytest.raises(ValueError, match="other columns"):
        store.append_table(table.drop_columns(["turns"]))
    with pytest.raises(ValueError, match="'arm' lacks values"):
        store.append_table(table.set_column(3, SCHEMA.field("arm"), pa.nulls(4, pa.string())))
    broken = pa.Array.from_buffers(pa.string(), 4, [None, pa.array([0, 1, 2, 3, 4], pa.int32()).buffers()[1],
                                                    pa.py_buffer(b"\xff\xff\xff\xff")])  # fmt: skip
    with pytest.raises(ValueError, match="UTF8"):
        store.append_table(table.set_column(1, SCHEMA.field("task"), broken))
    assert store.counts()["dialogues"] == 5


STEPS = st.lists(
    st.tuples(st.just("append"), st.lists(st.integers(0, 11), min_size=1, max_size=6))
    | st.tuples(st.just("sample"), st.integers(1, 2))
    | st.tuples(st.just("rewind"), st.integers(0, 3)),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, per_file=st.integers(1, 4))
def test_whatever_happens_an_opened_store_is_the_one_that_was_left(
    steps: list[tuple[str, Any]], per_file: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In memory, on disk, opened with index files and opened without: all the same after every step, and no group is
    handed out twice between rewinds."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("store", "index_files"):
            patch.setattr(f"calibrated_rl.replay.{module}.SEGMENTS", per_file)
        memory, disk = ReplayStore(), ReplayStore(folder)
        given_out: list[tuple[int, str]] = []
        update = 0
        for what, value in steps:
            if what == "append":
                new = [rollout(f"g{n // 3}", n, update=update, version=0, policy_tokens=tokens_of([update % 2]))
                       for n in value]  # fmt: skip
                assert memory.append(new) == disk.append(new)
            elif what == "sample":
                groups = memory.sample(value, update=update + 1, max_staleness=2)
                assert ids(groups) == ids(disk.sample(value, update=update + 1, max_staleness=2))
                given_out += [(update + 1, members[0].group_id) for members in groups]
                update += 1
            else:
                memory.rewind(value)
                disk.rewind(value)
                given_out = [(at, name) for at, name in given_out if at < value]
                update = min(update, value)
            names = [name for _, name in given_out]
            assert len(names) == len(set(names))
            opened = ReplayStore(folder)
            for file in folder.glob("index-*"):
                file.unlink()
            without = ReplayStore(folder)
            expected = memory.counts() | {"repeated": 0}
            assert all(store.counts() | {"repeated": 0} == expected for store in (disk, opened, without))
            dialogues = repr(memory.table().to_pylist())  # as text, where NaN is NaN
            assert all(repr(store.table().to_pylist()) == dialogues for store in (opened, without))
            disk = opened if update % 2 else without


def test_index_files_spare_the_reading_until_a_dialogue_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store", "index_files"):
        monkeypatch.setattr(f"calibrated_rl.replay.{module}.SEGMENTS", 2)
    filled(tmp_path)
    ReplayStore(tmp_path).append(group("g4"))
    assert [file.name for file in sorted(tmp_path.glob("index-*.arrow"))] == [
        "index-000002.arrow", "index-000004.arrow",
    ]  # fmt: skip
    second, third = (tmp_path / f"segment-{number:06d}.arrow" for number in (2, 3))
    second.write_bytes(second.read_bytes().replace(b"hello", b"HELLO"))  # the same size: not seen on opening
    third.write_bytes(third.read_bytes()[:-1])  # seen
    store = ReplayStore(tmp_path)
    assert list(store.refused) == [third.name] and store.ready() == 3
    assert ids(store.sample(2, update=0, max_staleness=0)) == [["g1/0", "g1/1"], ["g4/0", "g4/1"]]
    assert set(store.refused) == {second.name, third.name} and "checksum differs" in store.refused[second.name]
    assert store.append(group("g2")) == 2, "what was lost may come again"
    assert set(ReplayStore(tmp_path).refused) == {second.name, third.name}, "the index file has forgotten it"
    assert ReplayStore(tmp_path).table().column("group_id").to_pylist() == ["g1", "g1", "g4", "g4", "g2", "g2"]
    unharmed = ReplayStore(tmp_path).counts()
    for file in sorted(tmp_path.glob("index-*")):
        file.write_bytes(b"torn")
    assert ReplayStore(tmp_path).counts() == unharmed


def test_a_damaged_segment_among_all_is_left_out_of_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("store", "index_files"):
        monkeypatch.setattr(f"calibrated_rl.replay.{module}.SEGMENTS", 3)
    filled(tmp_path)
    path = tmp_path / "segment-000001.arrow"
    path.write_bytes(path.read_bytes().replace(b"hello", b"HELLO"))
    store = ReplayStore(tmp_path)
    assert not store.refused and store.counts()["dialogues"] == 6
    assert store.table(kind="rollout", arm="a", update=0).column("group_id").to_pylist() == ["g2", "g2", "g3", "g3"]
    assert list(store.refused) == [path.name] and store.counts()["dialogues"] == 4


def test_memory_is_bounded_by_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrated_rl.replay.store.CACHE_BYTES", 2 * to_table(group("g1")).nbytes)
    store = ReplayStore(tmp_path)
    for number in range(5):
        store.append(group(f"g{number}"))
    assert list(store._tables) == [4, 5]
    assert len(store.sample(5, update=0, max_staleness=0)) == 5 and not store._tables and store._cached_bytes == 0
