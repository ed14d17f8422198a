"""Rollouts that run on while the learner steps: nothing lost or repeated, nothing too old, nobody waited for."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.config.load import check, load_config
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import TrainingConfig
from calibrated_rl.data.dialogue import Dialogue, Outcome, Scenario, TokenSequence
from calibrated_rl.errors import PartLost, UserError
from calibrated_rl.learner.staleness import Staleness, fresh_turns
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.rollout.stream import EndedGroup, GroupStream
from calibrated_rl.training.accounts import signal_notice
from calibrated_rl.training.quota import RolloutBatch, filled
from calibrated_rl.training.rollout_source import InFlight, RolloutSource
from tests.support.made_up_logs import dialogue, policy, user
from tests.support.paths import MICRO

MADE = dialogue("p", policy("hi"), user("yes"))
SCENARIO = MADE.scenario


def tokens_of(versions: Sequence[int], turns: Sequence[int], own: Sequence[bool] | None = None) -> TokenSequence:
    """An unmasked scaffold token, then tokens of these versions and turns."""
    mask = np.array([False, *(own if own is not None else [True] * len(versions))])
    return TokenSequence(
        ids=np.arange(len(mask), dtype=np.int32), mask=mask, logprobs=np.where(mask, -0.5, np.nan).astype(np.float32),
        versions=np.array([-1, *versions], np.int32), turns=np.array([-1, *turns], np.int32),
    )  # fmt: skip


# --- staleness, turn by turn


def test_a_turn_is_as_stale_as_its_oldest_token() -> None:
    tokens = tokens_of([3, 4, 4, 6, 6], [2, 2, 4, 4, 6])  # turn 2: of version 3 and 4; turn 4: 4 and 6; turn 6: 6
    kept, seen = fresh_turns(tokens, update=6, max_staleness=2)
    assert kept.mask.tolist() == [False, False, False, True, True, True]
    assert seen == Staleness(turns=3, total=3 + 2 + 0, maximum=3, left_out=1)
    assert seen.metrics() == {"staleness": 5 / 3, "staleness_max": 3.0, "stale_turns_share": 1 / 3}
    all_kept, _ = fresh_turns(tokens, update=6, max_staleness=3)
    assert all_kept is tokens
    none, _ = fresh_turns(tokens, update=9, max_staleness=1)
    assert not none.mask.any()


def test_what_no_engine_sampled_is_never_stale() -> None:
    tokens = tokens_of([-1, -1, 2], [2, 2, 4], [True, True, False])
    kept, seen = fresh_turns(tokens, update=50, max_staleness=0)
    assert kept is tokens and seen == Staleness() and seen.metrics()["staleness"] == 0
    assert Staleness(1, 2, 2, 0) + Staleness(2, 1, 1, 1) == Staleness(3, 3, 2, 1)


# --- the stream


def group_of(update: int, number: int, *, size: int = 2, version: int = 0) -> list[Dialogue]:
    return [
        replace(MADE, id=f"arm-0-{update}-{number}-{member}", kind="rollout", arm="arm", group_size=size,
                group_id=f"arm-0-{update}-{number}", update=update, policy_tokens=tokens_of([version], [2]))
        for member in range(size)
    ]  # fmt: skip


class ByHand:
    """Holds groups until the test says how they end."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, int], tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]] = {}
        self._changed = threading.Condition()
        self.cut_off: list[tuple[int, int]] = []

    async def group(self, number: int, scenario: Scenario, user: Any, *, update: int, **named: Any) -> Any:
        assert named == {"group_size": 2, "arm": "arm", "seed": 0}
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._changed:
            self._running[update, number] = loop, future
            self._changed.notify_all()
        try:
            return await future
        except asyncio.CancelledError:
            self.cut_off.append((update, number))
            raise

    def end(self, update: int, number: int, result: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (update, number) in self._running, 10)
            loop, future = self._running.pop((update, number))
        settle = future.set_exception if isinstance(result, Exception) else future.set_result
        loop.call_soon_threadsafe(settle, result)

    def complete(self, update: int, number: int) -> None:
        self.end(update, number, group_of(update, number))


@pytest.fixture
def hand() -> ByHand:
    return ByHand()


@pytest.fixture
def stream(hand: ByHand) -> Iterator[GroupStream]:
    made = GroupStream(hand, None, group_size=2, arm="arm", seed=0)  # type: ignore[arg-type]
    yield made
    made.close()
    made.close()
    assert not made._thread.is_alive()


def admit(stream: GroupStream, update: int, *numbers: int) -> None:
    stream.admit(update, [(number, SCENARIO) for number in numbers])


def names(groups: Sequence[EndedGroup | list[Dialogue]]) -> list[str]:
    """Update and number of groups; of those that were dropped with a mark."""
    found = []
    for group in groups:
        if isinstance(group, EndedGroup):
            found.append(f"{group.update}-{group.number}{'' if group.dialogues else ' dropped'}")
        else:
            found.append(group[0].group_id.removeprefix("arm-0-"))
    return found


def test_groups_come_in_the_order_in_which_they_were_complete(hand: ByHand, stream: GroupStream) -> None:
    admit(stream, 0, 0, 1, 2)
    admit(stream, 1, 0)
    for update, number in ((1, 0), (0, 2), (0, 0)):
        hand.complete(update, number)
    assert names(stream.take(2, 10)) == ["1-0", "0-2"]
    assert names(stream.take(1, 10)) == ["0-0"] and stream.in_flight == 1
    hand.complete(0, 1)
    assert names(stream.take(1, 10)) == ["0-1"] and stream.in_flight == 0


def test_dropped_groups_are_taken_like_others(hand: ByHand, stream: GroupStream) -> None:
    """So that whoever asked for them can ask for others at once."""
    admit(stream, 0, 0, 1, 2)
    hand.end(0, 0, None)
    hand.complete(0, 1)
    assert names(stream.take(2, 10)) == ["0-0 dropped", "0-1"] and stream.in_flight == 1
    hand.end(0, 2, None)
    assert names(stream.take(5, 10)) == ["0-2 dropped"] and stream.take(1, 10) == []


def test_an_error_reaches_who_waits_and_silence_has_an_end(hand: ByHand, stream: GroupStream) -> None:
    admit(stream, 0, 0, 1)
    with pytest.raises(PartLost, match="no dialogues ended for 0.1 s, with 2 groups in flight"):
        stream.take(1, 0.1)
    hand.end(0, 1, PartLost("no policy replica came back"))
    with pytest.raises(PartLost, match="came back"):
        stream.take(1, 10)


def test_closing_cuts_off_what_is_in_flight(hand: ByHand, stream: GroupStream) -> None:
    admit(stream, 0, 0, 1)
    hand.complete(0, 0)
    stream.take(1, 10)
    stream.close()
    assert hand.cut_off == [(0, 1)] and stream.in_flight == 0


def test_busy_is_the_time_with_something_in_flight(hand: ByHand, stream: GroupStream) -> None:
    assert stream.busy_seconds() == 0
    began = time.monotonic()
    admit(stream, 0, 0)
    time.sleep(0.05)
    assert 0.05 <= stream.busy_seconds() <= time.monotonic() - began
    hand.complete(0, 0)
    stream.take(1, 10)
    stream.busy_seconds()
    assert stream.busy_seconds() == 0


# --- which groups may begin


class Instant:
    """A stream that ends its groups in an order drawn at random, with tokens of the weights of that moment; some are
    dropped, and of some all rewards are equal."""

    def __init__(self, seed: int, dropped: float = 0.0, equal: float = 0.0) -> None:
        self.random, self.version = np.random.default_rng(seed), 0
        self.shares = dropped, equal
        self.running: list[tuple[int, int, int]] = []
        self.done: list[EndedGroup] = []
        self.admitted: list[tuple[int, int, int]] = []
        self.dropped: dict[str, str] = {}

    def admit(self, update: int, scenarios: Sequence[tuple[int, Scenario]]) -> None:
        assert all(scenario.id == f"{update}/{number}" for number, scenario in scenarios)
        self.running += [(update, number, self.version) for number, _ in scenarios]
        self.admitted += [(update, number, self.version) for number, _ in scenarios]

    def end_one(self) -> None:
        update, number, _ = self.running.pop(int(self.random.integers(len(self.running))))
        if self.random.random() < self.shares[0]:
            self.dropped[f"arm-0-{update}-{number}"] = "with a dialogue that could not be run"
            self.done.append(EndedGroup(update, number, None))
            return
        rewards = (1.0, 1.0) if self.random.random() < self.shares[1] else (0.0, 1.0)
        made = group_of(update, number, version=self.version)
        paid = [replace(d, outcome=Outcome(reward=r, success=True)) for d, r in zip(made, rewards, strict=True)]
        self.done.append(EndedGroup(update, number, paid))

    def take(self, count: int, timeout_s: float) -> list[EndedGroup]:
        while len(self.done) < count and self.running:
            self.end_one()
        taken, self.done = self.done[:count], self.done[count:]
        return taken


def scenarios(update: int, count: int) -> list[Scenario]:
    return [replace(SCENARIO, id=f"{update}/{number}") for number in range(min(count, 40))]


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 99),
       st.one_of(st.none(), st.integers(1, 3)), st.integers(0, 7), st.sampled_from([0.0, 0.2, 0.5]),
       st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 3))  # fmt: skip
def test_all_that_begin_are_learned_from_none_too_early_and_none_too_late(
    most: int, wanted: list[int], seed: int, every: int | None, stopped_after: int, drops: float, equal: float,
    extra: int,
) -> None:  # fmt: skip
    """Or were dropped, and replaced; also where the run is stopped and goes on, with the replay store in between."""
    store, learned, updates = ReplayStore(), [], len(wanted)
    instant = Instant(seed, drops, equal)
    dropped: dict[str, str] = instant.dropped
    ahead = RolloutSource(
        instant,
        scenarios,
        max_staleness=most,
        updates=updates,
        first=0,
        extra=extra,  # type: ignore[arg-type]
    )
    asked: dict[int, int] = {}
    left: set[str] = set()

    def held(update: int) -> RolloutBatch:
        until = None if every is None else (update // every + 1) * every
        batch = ahead.next(update, wanted[update], until)
        for group in batch.discarded:
            dropped[group[0].group_id] = "without signal"
        store.append([each for group in batch.groups for each in group])
        return batch

    for update in range(updates):
        batch = held(update)
        asked[update] = batch.requested + len(batch.extra)
        found = store.sample(len(batch.groups), update=update, max_staleness=most, arm="arm", allow_fewer=True)
        learned += names(found)
        # Where a lost attempt at an update had asked for other groups, the store has them and hands them out.
        left = (left | set(names(batch.groups))) - set(learned)
        assert len(batch.discarded) <= extra and len(batch.extra) <= max(batch.requested, 8) + extra
        assert len(found) == len(batch.groups) <= batch.requested
        if drops < 0.5:
            assert len(found) == batch.requested, "as many as it asked for at first, the last update too"
        for of, _, version in instant.admitted:
            assert of <= version + most
            assert every is None or of // every == version // every, "begun under another user model"
        if update == stopped_after:  # a later checkpoint is lost: what came after this one happens again
            for _ in range(len(instant.running) // 2):
                instant.end_one()  # some of it dropped, which nobody has looked at yet
            saved = ahead.state("arm-0", dropped)
            known = dict(dropped)
            state = InFlight(**json.loads(json.dumps(asdict(saved))))
            if update + 1 < updates:
                instant.version = update + 1
                lost = held(update + 1)
                store.sample(len(lost.groups), update=update + 1, max_staleness=most, arm="arm", allow_fewer=True)
            store.rewind(update + 1)
            instant = Instant(seed + 1, 0.0 if drops < 0.5 else drops, 0.0)
            instant.version, dropped = update + 1, known
            instant.dropped = dropped
            ahead = RolloutSource(
                instant, scenarios, max_staleness=most, updates=updates, first=update + 1, extra=extra,
                state=state,  # type: ignore[arg-type]
            )  # fmt: skip
        instant.version = update + 1
    everything = {f"{update}-{number}" for update in asked for number in range(asked[update])}
    gone = {group.removeprefix("arm-0-") for group in dropped}
    assert len(learned) == len(set(learned)) and not left - everything
    assert everything - gone - left <= set(learned)
    if not drops and not (extra and equal):
        assert not left and not gone and everything == set(learned)
    assert not instant.running and not instant.done


def test_a_dropped_group_is_replaced_and_the_last_update_finds_its_own() -> None:
    """12 updates of 2 groups, of which 2 are dropped: the last update found none."""
    for most in (1, 3):
        instant = Instant(0)
        ahead = RolloutSource(instant, scenarios, max_staleness=most, updates=12, first=0)  # type: ignore[arg-type]
        for update in range(12):
            if update in (3, 7):
                instant.shares = (1.0, 0.0)
                instant.end_one()
                instant.shares = (0.0, 0.0)
            batch = ahead.next(update, 2, None)
            assert len(batch.groups) == batch.requested == 2
            instant.version = update + 1
        assert len(instant.dropped) == 2 and len(instant.admitted) == 26
        assert not instant.running and not instant.done


def test_what_always_fails_is_not_asked_for_for_ever() -> None:
    instant = Instant(0, dropped=1.0)
    ahead = RolloutSource(instant, scenarios, max_staleness=1, updates=3, first=0)  # type: ignore[arg-type]
    batch = ahead.next(0, 4, None)
    assert batch.groups == [] and batch.requested == 4 and batch.extra == tuple(range(4, 12))


def test_groups_that_were_dropped_are_owed_and_not_run_again() -> None:
    instant = Instant(0)
    ahead = RolloutSource(instant, scenarios, max_staleness=1, updates=5, first=0)  # type: ignore[arg-type]
    ahead.next(0, 2, None)
    open_before = {tuple(each) for each in ahead.state("arm-0", {}).open}
    (update, number) = min(open_before)
    left = ahead.state("arm-0", {f"arm-0-{update}-{number}": "without an opening turn"})
    assert {tuple(each) for each in left.open} == open_before - {(update, number)} and left.owed == 1
    again = Instant(1)
    ahead = RolloutSource(again, scenarios, max_staleness=1, updates=5, first=1, state=left)  # type: ignore[arg-type]
    batch = ahead.next(1, 2, None)
    assert len(batch.groups) == 2 and batch.extra == (2,)
    assert ahead.state("arm-0", {}).owed == 0


# --- in turn with learning


def paid(update: int, number: int, *rewards: float) -> list[Dialogue]:
    made = group_of(update, number, size=len(rewards))
    return [replace(d, outcome=Outcome(reward=r, success=r > 0)) for d, r in zip(made, rewards, strict=True)]


def asker(said: list[tuple[int, int]], ends: Sequence[Sequence[float] | None]) -> Any:
    """Groups whose rewards ``ends`` gives by number (None: dropped), until they are all asked for."""

    def ask(first: int, count: int) -> list[list[Dialogue] | None]:
        said.append((first, count))
        numbered = list(enumerate(ends))[first : first + count]
        return [None if rewards is None else paid(0, number, *rewards) for number, rewards in numbered]

    return ask


SIGNAL, EQUAL = (0.0, 1.0), (1.0, 1.0)


def test_without_failures_groups_are_asked_for_once() -> None:
    said: list[tuple[int, int]] = []
    batch = filled(3, 0, asker(said, [SIGNAL, EQUAL, SIGNAL, SIGNAL]))
    assert said == [(0, 3)] and names(batch.groups) == ["0-0", "0-1", "0-2"]
    assert (batch.requested, batch.extra, batch.discarded) == (3, (), [])


def test_dropped_groups_are_replaced_and_so_are_those_without_signal() -> None:
    said: list[tuple[int, int]] = []
    batch = filled(3, 0, asker(said, [SIGNAL, None, None, None, SIGNAL, EQUAL, SIGNAL]))
    assert said == [(0, 3), (3, 2), (5, 1)] and batch.extra == (3, 4, 5)
    assert names(batch.groups) == ["0-0", "0-4", "0-5"]
    said.clear()
    batch = filled(3, 3, asker(said, [EQUAL, SIGNAL, EQUAL, EQUAL, SIGNAL, SIGNAL, SIGNAL]))
    assert said == [(0, 3), (3, 2), (5, 1)] and names(batch.groups) == ["0-1", "0-4", "0-5"]
    assert names(batch.discarded) == ["0-0", "0-2", "0-3"] and batch.extra == (3, 4, 5) and batch.requested == 3


def test_further_groups_are_bounded_and_what_is_left_is_learned_from() -> None:
    said: list[tuple[int, int]] = []
    batch = filled(2, 3, asker(said, [EQUAL] * 40))
    assert sum(count for _, count in said) == 5 and len(batch.groups) == 2 and len(batch.discarded) == 3
    batch = filled(2, 0, asker(said, [None] * 40))
    assert batch.groups == [] and len(batch.extra) == 8
    # No scenario is left: what was put aside for the sake of another is learned from after all.
    batch = filled(3, 5, asker(said, [EQUAL, SIGNAL, EQUAL, SIGNAL]))
    assert sorted(names(batch.groups)) == ["0-1", "0-2", "0-3"] and names(batch.discarded) == ["0-0"]
    batch = filled(5, 0, asker(said, [SIGNAL, SIGNAL]))
    assert batch.requested == len(batch.groups) == 2


def test_updates_without_signal_are_said_now_and_then() -> None:
    said = [signal_notice([0.5, *[0.0] * count]) for count in range(9)]
    assert [bool(words) for words in said] == [False, True, True, False, True, False, False, False, True]
    assert "in this update" in str(said[1]) and "8 updates in a row" in str(said[8])
    assert signal_notice([0.0, 0.0, 0.25]) == "rewards differ again, after 2 updates in which they did not"
    assert signal_notice([]) is None and signal_notice([1.0, 0.25]) is None


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(UserError, match="give up one of the two"):
        check(RunConfig(arms=["interactive"], training=TrainingConfig(max_staleness=1), deterministic=True), "made up")
    for key in ("max_staleness", "extra_groups"):
        with pytest.raises(UserError, match=f"training.{key}.*-1"):
            load_config(MICRO, [f"training.{key}=-1"])
