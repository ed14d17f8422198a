"""Groups in the replay store: which are handed out, when they are too stale, what a rewind takes back."""

import dataclasses
from pathlib import Path

import pytest

from calibrated_rl.replay.store import ReplayStore
from tests.support.made_up_rollouts import group, ids, rollout, tokens_of


def test_complete_groups_are_handed_out_once_in_order(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        store = ReplayStore(folder)
        first, second = group("g1"), group("g2")
        assert store.append([first[0], *second]) == 3
        assert ids(store.sample(1, update=0, max_staleness=0)) == [["g2/0", "g2/1"]]
        assert store.sample(1, update=0, max_staleness=0) == []
        store.append([first[1]])
        assert store.sample(2, update=0, max_staleness=0) == [], "all or nothing"
        assert ids(store.sample(1, update=0, max_staleness=0)) == [["g1/0", "g1/1"]]
        assert store.counts()["groups_delivered"] == 2 and store.ready() == 0
        assert store.table(kind="rollout").num_rows == 4


def test_logs_and_evaluations_are_never_sampled_and_arms_are_apart() -> None:
    store = ReplayStore()
    store.append([rollout("g", 0, size=1, kind="evaluation"), rollout("", 1, size=1)])
    store.append([*group("g", arm="a"), *group("g", arm="b")])
    assert store.ready() == 2 and store.ready("b") == 1
    (members,) = store.sample(1, update=0, max_staleness=0, arm="b")
    assert {d.arm for d in members} == {"b"}
    assert store.table(kind="evaluation").num_rows == 1
    assert store.table(arm="b").num_rows == 2 and store.table(kind="log").num_rows == 0


def test_a_group_is_as_stale_as_its_freshest_token() -> None:
    store = ReplayStore()
    mixed = group("mixed", version=1)
    mixed[1] = dataclasses.replace(mixed[1], policy_tokens=tokens_of([0, 2, 1]))
    silent = [dataclasses.replace(each, policy_tokens=tokens_of([])) for each in group("silent")]
    store.append([*mixed, *silent, *group("fresh", version=5)])
    assert ids(store.sample(2, update=5, max_staleness=2)) == [["silent/0", "silent/1"], ["fresh/0", "fresh/1"]]
    assert store.counts()["groups_stale"] == 1, "5 - 2 = 3 updates behind"
    again = ReplayStore()
    again.append(mixed)
    assert len(again.sample(1, update=5, max_staleness=3)) == 1
    with pytest.raises(AssertionError, match="rewind"):
        again.append(group("future", version=9))
        again.sample(1, update=5, max_staleness=3)


def test_fewer_are_handed_out_where_that_is_asked_for() -> None:
    store = ReplayStore()
    store.append([*group("g1"), *group("g2")])
    assert store.sample(3, update=0, max_staleness=0) == []
    assert ids(store.sample(3, update=0, max_staleness=0, allow_fewer=True)) == [["g1/0", "g1/1"], ["g2/0", "g2/1"]]
    assert store.sample(3, update=0, max_staleness=0, allow_fewer=True) == [] and store.ready() == 0


@pytest.mark.parametrize("durable", [False, True])
def test_rewind_keeps_what_was_learned_from_early_and_forgets_groups_as_a_whole(tmp_path: Path, durable: bool) -> None:
    """With rollouts that run ahead: a group of update 2 that was delivered to update 0, one of update 0 that ended
    under weights which are gone, and one that is complete and waits."""
    store = ReplayStore(tmp_path if durable else None)
    store.append([dataclasses.replace(each, update=2) for each in group("early", version=0)])
    assert ids(store.sample(1, update=0, max_staleness=2)) == [["early/0", "early/1"]]
    late = group("late", version=0)
    late[1] = dataclasses.replace(late[1], policy_tokens=tokens_of([0, 2]))
    store.append([*group("waits", version=1), *late])
    store.rewind(1)
    for opened in [store, ReplayStore(tmp_path)] if durable else [store]:
        counts = opened.counts()
        assert (counts["groups_delivered"], counts["groups_ready"], counts["groups_waiting"]) == (1, 1, 0)
        assert counts["dialogues"] == 4
    assert store.append([dataclasses.replace(each, update=2) for each in group("early", version=0)]) == 0
    assert store.append(late) == 2, "the member that was older is forgotten as well"
    assert ids(store.sample(2, update=2, max_staleness=2)) == [["waits/0", "waits/1"], ["late/0", "late/1"]]


def test_append_is_idempotent_and_surplus_is_counted() -> None:
    store = ReplayStore()
    assert store.append(group("g")) == 2
    assert store.append(group("g")) == 0
    assert store.append([rollout("g", 7)]) == 1
    assert store.counts()["repeated"] == 2 and store.counts()["surplus"] == 1
    assert [len(g) for g in store.sample(1, update=0, max_staleness=0)] == [2]


def test_members_of_a_group_must_be_comparable() -> None:
    store = ReplayStore()
    store.append([rollout("g", 0, simulator_version=1)])
    with pytest.raises(AssertionError, match="does not fit"):
        store.append([rollout("g", 1, simulator_version=2)])
    assert store.counts()["dialogues"] == 1


def test_stale_groups_stay_dropped_after_reopening(tmp_path: Path) -> None:
    store = ReplayStore(tmp_path)
    store.append(group("old"))
    assert store.sample(1, update=2, max_staleness=1) == []
    assert ReplayStore(tmp_path).counts()["groups_stale"] == 1


@pytest.mark.parametrize("durable", [False, True])
def test_rewind_goes_back_to_the_checkpoint(tmp_path: Path, durable: bool) -> None:
    store = ReplayStore(tmp_path if durable else None)
    for v in range(3):
        store.append(group(f"g{v}", version=v))
        store.sample(1, update=v, max_staleness=0)
    store.append([rollout("g3", 0, version=3)])
    store.rewind(1)
    for opened in [store, ReplayStore(tmp_path)] if durable else [store]:
        counts = opened.counts()
        assert (counts["groups_delivered"], counts["groups_ready"], counts["dialogues"]) == (1, 1, 4)
    assert ids(store.sample(1, update=1, max_staleness=0)) == [["g1/0", "g1/1"]]
    assert store.append(group("g2", version=2)) == 2, "collected anew under the same name"
    assert ids(store.sample(1, update=2, max_staleness=0)) == [["g2/0", "g2/1"]]
    if durable:
        again = ReplayStore(tmp_path)
        assert again.counts()["groups_delivered"] == 3 and again.counts()["dialogues"] == 6


def test_groups_that_come_mixed_and_over_several_segments_are_put_together(tmp_path: Path) -> None:
    for store in (ReplayStore(), ReplayStore(tmp_path)):
        a, b, c = group("a"), group("b"), group("c")
        store.append([a[0], b[0], c[0], rollout("", 9), a[1]])
        store.append([b[1], c[1]])
        assert ids(store.sample(3, update=0, max_staleness=0)) == [
            ["a/0", "a/1"], ["b/0", "b/1"], ["c/0", "c/1"],
        ]  # fmt: skip
        store.append([*group("d", arm="y"), *group("e", arm="x"), *group("f", arm="y")])
        assert [members[0].group_id for members in store.sample(3, update=0, max_staleness=0)] == ["d", "e", "f"]


def test_a_rewind_forgets_a_group_as_a_whole_with_its_surplus(tmp_path: Path) -> None:
    """Dialogues of update 1 that were sampled with weights 1 and 2, two of them more than the group has places."""
    for store in (ReplayStore(), ReplayStore(tmp_path)):
        members = [rollout("g", i, update=1, policy_tokens=tokens_of([v])) for i, v in enumerate((1, 2, 1, 2))]
        store.append(members)
        store.append(group("h", update=1))
        assert store.counts()["surplus"] == 2 and store.ready() == 2
        assert ids(store.sample(1, update=2, max_staleness=1)) == [["g/0", "g/1"]]
        store.rewind(1)
        for opened in [store, ReplayStore(tmp_path)] if store.folder else [store]:
            assert opened.counts() | {"repeated": 0} == {
                "dialogues": 2, "groups_waiting": 0, "groups_ready": 1, "groups_delivered": 0, "groups_stale": 0,
                "surplus": 0, "repeated": 0, "refused": 0,
            }  # fmt: skip
        assert store.append(members) == 4, "all of it was forgotten"
        assert ids(store.sample(2, update=2, max_staleness=2)) == [["h/0", "h/1"], ["g/0", "g/1"]]
