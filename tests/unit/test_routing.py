"""Where dialogues go: they stay, groups share, nobody is left idle, and those of a lost replica are placed anew."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from calibrated_rl.inference.routing import Router


def keys(groups: int, members: int) -> list[str]:
    return [f"{group:06d}-{member:03d}" for group in range(groups) for member in range(members)]


def test_whole_groups_are_spread_evenly_and_a_large_one_is_shared_out_in_bunches() -> None:
    router = Router(slack=8)
    router.serve([3, 5])
    homes = {key: router.route(key) for key in keys(4, 8)}
    assert [{homes[key] for key in keys(4, 8)[8 * g :][:8]} for g in range(4)] == [{3}, {5}, {3}, {5}]
    router = Router(slack=4)
    router.serve(range(4))
    assert Counter(router.route(key) for key in keys(1, 64)) == dict.fromkeys(range(4), 16)


def test_room_that_a_finished_dialogue_leaves_is_given_to_the_next() -> None:
    router = Router(slack=1)
    router.serve(range(3))
    placed = {key: router.route(key) for key in keys(6, 1)}
    gone = keys(6, 1)[4]
    router.leave(gone)
    router.leave("never placed-000")
    assert router.route("new-000") == placed[gone]


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_no_replica_has_many_more_than_another(replicas: int, groups: int, members: int, slack: int) -> None:
    router = Router(slack)
    router.serve(range(replicas))
    loads = Counter(router.route(key) for key in keys(groups, members))
    assert max(loads.values()) - min(loads[i] for i in range(replicas)) <= slack


class Routing(RuleBasedStateMachine):
    """Dialogues begin and end, replicas come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.serving = Router(slack=2), {0, 1, 2}
        self.router.serve(self.serving)
        self.running: dict[str, int] = {}

    @rule(group=st.integers(0, 5), member=st.integers(0, 5))
    def say(self, group: int, member: int) -> None:
        key = f"{group}-{member}"
        replica = self.router.route(key)
        assert replica in self.serving and self.running.get(key, replica) == replica
        self.running[key] = replica

    @rule(group=st.integers(0, 5), member=st.integers(0, 5))
    def end(self, group: int, member: int) -> None:
        self.router.leave(f"{group}-{member}")
        self.running.pop(f"{group}-{member}", None)

    @rule(serving=st.sets(st.integers(0, 5), min_size=1))
    def change(self, serving: set[int]) -> None:
        self.router.serve(serving)
        self.running = {key: replica for key, replica in self.running.items() if replica in serving}
        self.serving = serving

    @invariant()
    def loads_are_counted(self) -> None:
        counts = Counter(self.running.values())
        assert self.router._load == {replica: counts[replica] for replica in self.serving}
        assert self.router._least_loaded() == min(self.serving, key=lambda replica: (counts[replica], replica))


TestRouting = Routing.TestCase
TestRouting.settings = settings(max_examples=30, deadline=None)
