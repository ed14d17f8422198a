"""Who serves is decided by events alone: sequences written by hand, and any sequence at all."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from calibrated_rl.inference.membership import Admit, Discard, Drain, Membership, SendWeights, Withdraw


def test_a_lost_member_comes_back_with_the_weights_that_are_current_by_then() -> None:
    membership = Membership(2)
    assert membership.members == membership.serving == (0, 1)
    assert membership.lost(1, 0, at=10.0)
    assert membership.serving == (0,) and membership.members == (0, 1) and membership.unavailable == {1}
    assert membership.published() == 1
    assert membership.back(1, 1, None) == SendWeights(1)
    membership.published()  # while it receives the first
    assert membership.back(1, 1, 1) == SendWeights(2)
    assert membership.lost_at(1) == 10.0
    assert membership.back(1, 1, 2) == Admit(1)
    assert membership.serving == (0, 1) and not membership.unavailable and membership.lost_at(1) is None


def test_before_anything_is_published_a_member_comes_back_with_what_it_was_started_with() -> None:
    membership = Membership(1)
    assert membership.lost(0, 0, at=0.0)
    assert membership.back(0, 1, None) == SendWeights(0)
    assert membership.back(0, 1, 0) == Admit(0)


def test_late_reports_of_an_earlier_incarnation_change_nothing() -> None:
    membership = Membership(2)
    assert membership.lost(0, 0, at=0.0) and not membership.lost(0, 0, at=1.0)
    assert membership.lost_at(0) == 0.0 and membership.incarnation(0) == 1
    assert membership.back(0, 0, 0) == Discard()
    assert membership.lost(0, 1, at=2.0), "it was lost again before it was back"
    assert membership.back(0, 1, 0) == Discard() and membership.back(0, 2, 0) == Admit(0)
    assert not membership.lost(7, 0, at=3.0), "no member"


def test_who_is_unavailable_for_too_long_is_given_up_once_and_serves_all_the_same_when_it_is_back() -> None:
    membership = Membership(3)
    membership.lost(0, 0, at=0.0)
    membership.lost(2, 0, at=5.0)
    assert membership.overdue(10.0, patience=10.0) == frozenset()
    assert membership.overdue(10.1, patience=10.0) == {0}
    assert membership.give_up({0, 1}) == [0], "1 serves"
    assert membership.give_up({0, 2}) == [2] and not membership.awaited()
    assert membership.unavailable == {0, 2}
    membership.lost(0, 1, at=20.0)
    assert not membership.awaited(), "lost again, it stays given up"
    assert membership.back(0, 2, 0) == Admit(0)
    membership.lost(0, 2, at=30.0)
    assert membership.awaited() == {0}, "it was back in between"


def test_a_pending_replica_joins_under_an_index_that_none_had() -> None:
    membership = Membership(2)
    membership.published()
    assert (membership.start(), membership.start()) == (0, 1) == membership.pending
    assert membership.join(1, None) == SendWeights(1) and membership.join(1, 1) == Admit(2)
    assert membership.leave() == Withdraw(0) and membership.join(0, 1) == Discard() and not membership.failed(0)
    assert membership.leave() == Drain(2)
    assert membership.failed(membership.start())
    assert membership.join(membership.start(), 1) == Admit(3)
    assert membership.members == membership.serving == (0, 1, 3)


def test_the_lost_leave_before_the_youngest_and_the_last_stays() -> None:
    membership = Membership(3)
    membership.lost(0, 0, at=0.0)
    assert membership.leave() == Drain(0) and membership.back(0, 1, 0) == Discard()
    assert not membership.lost(0, 1, at=1.0) and membership.lost_at(0) is None
    assert membership.leave() == Drain(2) and membership.leave() is None
    membership.lost(1, 0, at=2.0)
    assert membership.leave() is None and membership.members == (1,) and membership.serving == ()


def test_after_the_close_nobody_is_restarted_or_joins() -> None:
    membership = Membership(1)
    pending = membership.start()
    membership.close()
    assert not membership.lost(0, 0, at=0.0) and membership.join(pending, 0) == Discard()


class AnySequence(RuleBasedStateMachine):
    """Beside it runs what is known of each replica, kept in the plainest way."""

    def __init__(self) -> None:
        super().__init__()
        self.membership = Membership(2)
        self.clock = 0.0
        self.serves = {0: True, 1: True}
        self.restarts = {0: 0, 1: 0}
        self.pending: list[int] = []
        self.gone: set[int] = set()

    def known(self, data: st.DataObject) -> int:
        index: int = data.draw(st.sampled_from(sorted(self.serves.keys() | self.gone | {99})))
        return index

    @rule(data=st.data(), late=st.booleans())
    def lost(self, data: st.DataObject, late: bool) -> None:
        index, self.clock = self.known(data), self.clock + 1
        incarnation = self.restarts.get(index, 0) - late
        restarted = self.membership.lost(index, incarnation, self.clock)
        assert restarted == (index in self.serves and not late)
        if restarted:
            self.serves[index] = False
            self.restarts[index] += 1
            assert self.membership.lost_at(index) == self.clock

    @rule(data=st.data(), late=st.booleans(), behind=st.integers(0, 2))
    def back(self, data: st.DataObject, late: bool, behind: int) -> None:
        index = self.known(data)
        decision = self.membership.back(index, self.restarts.get(index, 0) - late, self.membership.publication - behind)
        if index not in self.serves or late or self.serves[index]:
            assert decision == Discard()
        elif behind:
            assert decision == SendWeights(self.membership.publication)
        else:
            assert decision == Admit(index)
            self.serves[index] = True

    @rule()
    def published(self) -> None:
        before = self.membership.publication
        assert self.membership.published() == before + 1

    @rule()
    def start(self) -> None:
        self.pending.append(self.membership.start())

    @rule(number=st.integers(0, 5), behind=st.integers(0, 1))
    def join(self, number: int, behind: int) -> None:
        decision = self.membership.join(number, self.membership.publication - behind)
        if number not in self.pending:
            assert decision == Discard()
        elif behind:
            assert decision == SendWeights(self.membership.publication)
        else:
            assert isinstance(decision, Admit) and decision.index not in self.serves.keys() | self.gone
            self.pending.remove(number)
            self.serves[decision.index], self.restarts[decision.index] = True, 0

    @rule(number=st.integers(0, 5))
    def failed(self, number: int) -> None:
        assert self.membership.failed(number) == (number in self.pending)
        if number in self.pending:
            self.pending.remove(number)

    @rule()
    def leave(self) -> None:
        decision = self.membership.leave()
        if self.pending:
            assert decision == Withdraw(self.pending.pop())
        elif len(self.serves) == 1:
            assert decision is None
        else:
            assert isinstance(decision, Drain)
            if not all(self.serves.values()):
                assert not self.serves[decision.index], "the lost go first"
            del self.serves[decision.index]
            self.gone.add(decision.index)

    @rule(patience=st.integers(0, 5))
    def give_up(self, patience: int) -> None:
        overdue = self.membership.overdue(self.clock, patience)
        assert self.membership.give_up(overdue) == sorted(overdue) and not self.membership.give_up(overdue)

    @invariant()
    def each_is_where_it_belongs(self) -> None:
        membership = self.membership
        assert set(membership.members) == set(self.serves) and len(membership.members) >= 1
        assert membership.serving == tuple(index for index in membership.members if self.serves[index])
        assert membership.unavailable == set(membership.members) - set(membership.serving)
        assert membership.pending == tuple(self.pending) and membership.awaited() <= membership.unavailable
        assert all(membership.incarnation(index) == self.restarts[index] for index in membership.members)
        assert all((membership.lost_at(index) is None) == serves for index, serves in self.serves.items())


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
