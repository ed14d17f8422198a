"""Waiting for room: what is said and when, and that it is called hopeless only where it is."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.placement import placement_of, resources_of
from calibrated_rl.replay.actor import start_store
from calibrated_rl.replay.config import ReplayConfig
from calibrated_rl.runtime import capacity as machines
from calibrated_rl.runtime.capacity import (
    EVERY_S,
    FIRST_S,
    SETTLED_S,
    Machine,
    Need,
    Patience,
    capacity_problem,
    wait_for_machines,
)


def need(what: str = "policy replica", cpus: float = 0.5, gpus: float = 0, has_room: Any = bool, **labels: str) -> Need:
    key = {"learner rank": "learner"}.get(what, "policy.engine")
    return Need(what, key, {"CPU": cpus, "GPU": gpus}, labels, has_room)


def machine(cpus: float, gpus: float = 0, **labels: str) -> Machine:
    return Machine({"CPU": cpus, "GPU": gpus, "memory": 1e9}, labels)


THREE = [need(), need(), need("learner rank")]


def test_what_can_never_be_placed_by_hand() -> None:
    assert capacity_problem(THREE, [machine(1.5)]) == "" == capacity_problem(THREE, [machine(0.5), machine(1)])
    assert capacity_problem(THREE, [machine(1)]) == (
        "2 x policy replica (CPU 0.5), learner rank (CPU 0.5) need CPU 1.5 at once, and the machines have CPU 1 in all"
    )
    assert capacity_problem([need(cpus=4)], [machine(2), machine(3, 1)]) == (
        "no machine has capacity for a policy replica (CPU 4) of policy.engine: the largest of 2 has CPU 3, GPU 1"
    )
    assert "none has these labels" in capacity_problem([need(part="rollout")], [machine(9, part="learner")])
    labelled = [need(cpus=1, part="rollout")] * 2
    assert capacity_problem(labelled, [machine(1, part="rollout"), machine(9)]) == (
        "2 x policy replica (CPU 1; part=rollout) need CPU 2 at once, "
        "and the machines with these labels have CPU 1 in all"
    )
    assert capacity_problem([need(part="!rollout"), need(part="in(a,b)")], [machine(9)]) == ""


amounts = st.integers(0, 8).map(lambda eighths: eighths / 8)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.tuples(amounts, amounts, st.booleans()), max_size=4), amounts, st.sampled_from("ab")),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_what_fits_is_never_called_hopeless(plan: list[tuple[list[tuple[float, float, bool]], float, str]]) -> None:
    """Machines are made large enough for the processes that are planned on them."""
    there = [
        machine(spare + sum(cpus for cpus, _, _ in placed), spare + sum(gpus for _, gpus, _ in placed), part=part)
        for placed, spare, part in plan
    ]
    needs = [
        need(cpus=cpus, gpus=gpus, **({"part": part} if labelled else {}))
        for placed, _, part in plan
        for cpus, gpus, labelled in placed
    ]
    assert capacity_problem(needs, there) == ""
    too_much = need(cpus=1 + sum(each.resources["CPU"] for each in there))
    assert "no machine has capacity" in capacity_problem([*needs, too_much], there)


def test_what_is_said_and_when() -> None:
    patience, there, free = Patience(100.0), [machine(1), machine(1, 1)], {"CPU": 0.5, "memory": 5.0}

    def line(at: float, *, may_grow: bool = False) -> str:
        return patience.line(at, THREE, THREE[1:], there, free, may_grow)

    assert line(100) == "" == line(100 + FIRST_S - 1)
    assert line(100 + FIRST_S) == (
        "waiting for 15 s for capacity, or to start: policy replica (CPU 0.5), learner rank (CPU 0.5); "
        "the cluster has CPU 2, GPU 1 on 2 machines, of which CPU 0.5 is free; it adds no machines by itself"
    )
    assert line(100 + FIRST_S + EVERY_S - 1) == ""
    assert line(100 + FIRST_S + EVERY_S, may_grow=True).endswith("more machines may come")


def test_nobody_gives_up_while_machines_still_come() -> None:
    patience, one, two = Patience(0.0), [machine(0.5)], [machine(0.5), machine(0.5)]

    def look(at: float, there: list[Machine], *, may_grow: bool = False) -> None:
        patience.line(at, THREE, THREE, there, {}, may_grow)

    look(0, one)
    look(SETTLED_S - 1, two)
    look(2 * SETTLED_S - 2, two)
    look(2 * SETTLED_S, two, may_grow=True)
    with pytest.raises(
        UserError, match="no capacity for this run: .* Add machines, or request less in learner, policy.e"
    ):
        look(2 * SETTLED_S, two)


@contextmanager
def reserving(cpus: float) -> Iterator[tuple[Any, Need]]:
    """A replica's placement in the Ray of the tests, which has 8 CPUs."""
    config = EngineConfig(num_cpus=cpus)
    group = placement_of(config)
    try:
        has_room = machines.reserved(group)
        yield group, Need("policy replica", "policy.engine", resources_of(config), {}, has_room)
    finally:
        ray.util.remove_placement_group(group)


@pytest.fixture
def impatient(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(machines, "FIRST_S", 0.2)
    monkeypatch.setattr(machines, "SETTLED_S", 0.5)
    monkeypatch.delenv(machines.IN_KUBERNETES, raising=False)
    return monkeypatch


def test_a_cluster_that_is_too_small_is_said_and_refused(
    impatient: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "calibrated_rl")
    with reserving(9) as (_, too_large), pytest.raises(UserError, match=r"the largest of 1 has CPU 8\. Add"):
        wait_for_machines([too_large])
    (line,) = caplog.messages
    assert "policy replica (CPU 9); the cluster has CPU 8 on 1 machine" in line


def test_where_others_have_the_room_or_machines_may_come_it_is_waited_for(impatient: pytest.MonkeyPatch) -> None:
    store, stores_need = start_store(ReplayConfig())
    with reserving(5) as (others, theirs), reserving(5) as (_, ours):
        wait_for_machines([stores_need, theirs])
        impatient.setattr(machines.logger, "info", lambda line: ray.util.remove_placement_group(others))
        wait_for_machines([stores_need, ours])
    ray.kill(store)
    with reserving(9) as (_, too_large):
        impatient.setenv(machines.IN_KUBERNETES, "10.0.0.1")
        impatient.setattr(machines, "EVERY_S", 1.0)
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if len(said) == 2:
                raise TimeoutError

        impatient.setattr(machines.logger, "info", say)
        with pytest.raises(TimeoutError):
            wait_for_machines([too_large])
        assert all(line.endswith("more machines may come") for line in said)
