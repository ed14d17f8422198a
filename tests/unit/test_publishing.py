"""Weights reach replicas before they serve, and whoever does not take them serves no more; without any actor."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayActorError

from calibrated_rl.errors import PartLost
from calibrated_rl.inference.membership import Admit, Membership
from calibrated_rl.inference.publishing import WeightPublisher
from calibrated_rl.inference.replica_group import LoadedWeights


class FakeReplica:
    """Loads what it is told; ``meanwhile`` happens during its first load, ``error`` is raised by each."""

    def __init__(self, meanwhile: Any = None, error: Exception | None = None) -> None:
        self.loaded: list[int] = []
        self._meanwhile, self._error = meanwhile, error

    def update_weights(self, update: Any) -> Any:
        def result(timeout_s: float) -> None:
            if self._error is not None:
                raise self._error
            self.loaded.append(update.version)
            if self._meanwhile is not None and len(self.loaded) == 1:
                self._meanwhile()

        return SimpleNamespace(result=result)


class FakeGroup:
    """The part of ``ReplicaGroup`` that publishing uses."""

    role = "policy"

    def __init__(self, *replicas: FakeReplica) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.membership = Membership(len(replicas))
        self.fleet = SimpleNamespace(handle=lambda index: replicas[index])
        self.marked: list[tuple[int, int, str]] = []

    def mark_unavailable(self, index: int, incarnation: int, cause: str) -> None:
        self.marked.append((index, incarnation, cause))
        self.membership.lost(index, incarnation, at=0.0)


def update(version: int) -> Any:
    return SimpleNamespace(version=version)


def publisher_of(group: Any) -> WeightPublisher:
    return WeightPublisher(group, timeout_s=1.0)


def test_all_that_serve_get_the_weights_and_who_does_not_take_them_is_marked() -> None:
    replicas = FakeReplica(), FakeReplica(error=RayActorError()), FakeReplica()
    group = FakeGroup(*replicas)
    group.membership.lost(2, 0, at=0.0)
    publisher = publisher_of(group)
    publisher.announce(update(5))
    publisher.send()
    assert [replica.loaded for replica in replicas] == [[5], [], []]
    assert group.marked == [(1, 0, "RayActorError")] and group.membership.serving == (0,)


def test_a_replica_gets_what_is_published_while_it_loads_before_it_serves() -> None:
    group = FakeGroup(FakeReplica())
    publisher, pending = publisher_of(group), group.membership.start()
    publisher.announce(update(1))
    replica: Any = FakeReplica(meanwhile=lambda: publisher.announce(update(2)))
    reports: list[LoadedWeights | None] = []

    def report(loaded: LoadedWeights | None) -> Any:
        reports.append(loaded)
        return group.membership.join(pending, loaded and loaded.publication)

    assert publisher.bring_up_to_date(replica, report) == Admit(1)
    assert replica.loaded == [1, 2] and reports == [None, LoadedWeights(1, 1), LoadedWeights(2, 2)]


def test_before_anything_is_published_nothing_is_sent() -> None:
    group, replica = FakeGroup(FakeReplica()), FakeReplica()
    pending = group.membership.start()
    anything: Any = replica
    decision = publisher_of(group).bring_up_to_date(
        anything, lambda loaded: group.membership.join(pending, loaded and loaded.publication)
    )
    assert decision == Admit(1) and replica.loaded == []


def test_weights_that_are_gone_are_no_fault_of_the_replica() -> None:
    group = FakeGroup(FakeReplica(error=ObjectLostError("0" * 56, None, "")))
    publisher = publisher_of(group)
    publisher.announce(update(1))
    with pytest.raises(PartLost, match="the weights of policy are lost"):
        publisher.send()
    assert group.membership.serving == (0,) and not group.marked
