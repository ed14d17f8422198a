"""Rollouts that run on while the learner steps: nothing lost or repeated, nothing too old, nobody waited for."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_logs import dialogue, policy, user

from calibrated_rl.algorithms.ahead import AheadState, RolloutsAhead
from calibrated_rl.config import RunConfig, TrainingConfig, check
from calibrated_rl.dialogue import Dialogue, Scenario, TokenSequence
from calibrated_rl.errors import PartLost, UserError
from calibrated_rl.learner.staleness import Staleness, fresh_turns
from calibrated_rl.replay.store import ReplayStore
from calibrated_rl.rollout.collector import RolloutFailure
from calibrated_rl.rollout.stream import GroupStream

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
    assert seen == Staleness(turns=3, total=3 + 2 + 0, most=3, left_out=1)
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


def names(groups: Sequence[Sequence[Dialogue]]) -> list[str]:
    return [group[0].group_id.removeprefix("arm-0-") for group in groups]


def test_groups_come_in_the_order_in_which_they_were_complete(hand: ByHand, stream: GroupStream) -> None:
    admit(stream, 0, 0, 1, 2)
    admit(stream, 1, 0)
    for update, number in ((1, 0), (0, 2), (0, 0)):
        hand.complete(update, number)
    assert names(stream.take(2, 10)) == ["1-0", "0-2"]
    assert names(stream.take(1, 10)) == ["0-0"] and stream.in_flight == 1
    hand.complete(0, 1)
    assert names(stream.take(1, 10)) == ["0-1"] and stream.in_flight == 0


def test_dropped_groups_are_not_waited_for(hand: ByHand, stream: GroupStream) -> None:
    admit(stream, 0, 0, 1)
    hand.end(0, 0, None)
    hand.complete(0, 1)
    assert names(stream.take(2, 10)) == ["0-1"]
    admit(stream, 1, 0)
    hand.end(1, 0, None)
    with pytest.raises(RolloutFailure, match="no group"):
        stream.take(1, 10)


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
    """A stream that completes its groups in an order drawn at random, with tokens of the weights of that moment."""

    def __init__(self, seed: int) -> None:
        self.random, self.version = np.random.default_rng(seed), 0
        self.running: list[tuple[int, int, int]] = []
        self.done: list[list[Dialogue]] = []
        self.admitted: list[tuple[int, int, int]] = []

    def admit(self, update: int, scenarios: Sequence[tuple[int, Scenario]]) -> None:
        self.running += [(update, number, self.version) for number, _ in scenarios]
        self.admitted += [(update, number, self.version) for number, _ in scenarios]

    def take(self, count: int, timeout_s: float) -> list[list[Dialogue]]:
        while len(self.done) < count and self.running:
            update, number, _ = self.running.pop(int(self.random.integers(len(self.running))))
            self.done.append(group_of(update, number, version=self.version))
        taken, self.done = self.done[:count], self.done[count:]
        return taken


def scenarios(update: int, count: int) -> list[Scenario]:
    return [replace(SCENARIO, id=f"{update}/{number}") for number in range(count)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 99),
       st.one_of(st.none(), st.integers(1, 3)), st.integers(0, 7))  # fmt: skip
def test_all_that_begin_are_learned_from_none_too_early_and_none_too_late(
    most: int, wanted: list[int], seed: int, every: int | None, stopped_after: int
) -> None:
    """Also where the run is stopped and goes on, with the replay store in between."""
    store, learned, updates = ReplayStore(), [], len(wanted)
    instant = Instant(seed)
    ahead = RolloutsAhead(instant, scenarios, max_staleness=most, updates=updates, first=0)  # type: ignore[arg-type]
    asked: dict[int, int] = {}
    for update in range(updates):
        until = None if every is None else (update // every + 1) * every
        groups, asked[update] = ahead.next(update, wanted[update], until)
        store.append([each for group in groups for each in group])
        found = store.sample(len(groups), update=update, max_staleness=most, arm="arm", fewer=True)
        learned += names(found)
        assert len(found) == asked[update]
        for of, _, version in instant.admitted:
            assert of <= version + most
            assert every is None or of // every == version // every, "begun under another user model"
        if update == stopped_after:  # a later checkpoint is lost: what came after this one happens again
            saved = ahead.state("arm-0", {})
            state = AheadState(admitted=saved.admitted, requested=dict(saved.requested), open=list(saved.open))
            if update + 1 < updates:
                instant.version = update + 1
                lost, _ = ahead.next(update + 1, wanted[update + 1], None)
                store.append([each for group in lost for each in group])
                store.sample(len(lost), update=update + 1, max_staleness=most, arm="arm", fewer=True)
            store.rewind(update + 1)
            instant = Instant(seed + 1)
            instant.version = update + 1
            ahead = RolloutsAhead(
                instant, scenarios, max_staleness=most, updates=updates, first=update + 1, state=state  # type: ignore[arg-type]
            )  # fmt: skip
        instant.version = update + 1
    assert sorted(learned) == sorted(f"{update}-{number}" for update in asked for number in range(asked[update]))


def test_groups_that_were_dropped_are_not_held_again() -> None:
    instant = Instant(0)
    ahead = RolloutsAhead(instant, scenarios, max_staleness=1, updates=5, first=0)  # type: ignore[arg-type]
    ahead.next(0, 2, None)
    open_before = {tuple(each) for each in ahead.state("arm-0", {}).open}
    (update, number) = min(open_before)
    left = ahead.state("arm-0", {f"arm-0-{update}-{number}": "without an opening turn"})
    assert {tuple(each) for each in left.open} == open_before - {(update, number)}


def test_settings_that_do_not_go_together() -> None:
    for training, deterministic, words in (
        (TrainingConfig(max_staleness=1), True, "give up one of the two"),
        (TrainingConfig(max_staleness=-1), False, "must not be negative"),
    ):
        with pytest.raises(UserError, match=words):
            check(RunConfig(arms=["interactive"], training=training, deterministic=deterministic), "made up")
