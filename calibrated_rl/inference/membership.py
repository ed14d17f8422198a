"""Which replicas belong to a role, and which of them serve. A state machine: events in, decisions out.

It knows no actor, thread or clock: each event is a method, which returns the decision, and times come with the events.

    start -> pending --join--> serving --lost--> unavailable --back--> serving
                |                 |                   |
                +----withdrawn----+-------leave-------+----> gone

- A *pending replica* was started and does not serve yet. It joins, and a lost one rejoins, only with the weights that
  were published last: else the decision is to send them and to report again.
- Each restart of a member is another *incarnation*: a late error of an earlier one does not affect the current one.
- A member that is unavailable for too long is given up: nothing waits for it any more, but it serves again once it is
  back, since the machine that it needs may come much later.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Admit:
    """The replica serves from now on, under this index."""

    index: int


@dataclass(frozen=True, slots=True)
class SendWeights:
    """The replica needs the weights of this publication first; then it is to report again."""

    publication: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Nothing waits for the replica any more."""


Decision = Admit | SendWeights | Discard


@dataclass(frozen=True, slots=True)
class Withdraw:
    """End the pending replica of this number."""

    pending: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Let the member of this index finish its turns, then end it."""

    index: int


@dataclass(slots=True)
class _Member:
    incarnation: int = 0
    lost_at: float | None = None
    """When it was lost; None: it serves."""
    given_up: bool = False


class Membership:
    """The members of one role, of which at least one stays, and its pending replicas."""

    def __init__(self, replicas: int) -> None:
        """``replicas``: how many there are from the beginning; they serve at once, under the indices from 0."""
        self._members = {index: _Member() for index in range(replicas)}
        self._next_index = replicas
        self._pending: list[int] = []
        self._next_pending = 0
        self._closed = False
        self.publication = 0
        """Number of the weights that were published last; 0: of those that replicas are started with."""
        self._settle()

    def _settle(self) -> None:
        self.members: tuple[int, ...] = tuple(self._members)
        """Indices of all that dialogues may be sent to, serving or not, oldest first."""
        self.serving: tuple[int, ...] = tuple(i for i, member in self._members.items() if member.lost_at is None)
        """Indices of those that serve, oldest first."""
        self.unavailable = frozenset(self._members) - frozenset(self.serving)
        """Indices of those that were lost and are not back."""

    # ---- queries -----------------------------------------------------------------------------------

    @property
    def pending(self) -> tuple[int, ...]:
        """Numbers of the pending replicas, oldest first."""
        return tuple(self._pending)

    def incarnation(self, index: int) -> int:
        """How often a member was restarted."""
        return self._members[index].incarnation

    def lost_at(self, index: int) -> float | None:
        """When a member was lost; None: it serves, or is no member."""
        member = self._members.get(index)
        return None if member is None else member.lost_at

    def awaited(self) -> frozenset[int]:
        """Members that are unavailable and not given up."""
        return frozenset(index for index in self.unavailable if not self._members[index].given_up)

    def overdue(self, now: float, patience: float) -> frozenset[int]:
        """Those of them that were lost more than ``patience`` ago, in the unit of the events' times."""
        return frozenset(index for index in self.awaited() if now - (self._members[index].lost_at or 0.0) > patience)

    # ---- events --------------------------------------------------------------------------------------

    def published(self) -> int:
        """New weights were published; their number."""
        self.publication += 1
        return self.publication

    def lost(self, index: int, incarnation: int, at: float) -> bool:
        """A call to a member's ``incarnation`` failed. Returns whether to restart the member: not if that has been done
        since, or if it has left."""
        member = self._members.get(index)
        if self._closed or member is None or member.incarnation != incarnation:
            return False
        member.incarnation += 1
        member.lost_at = at
        self._settle()
        return True

    def give_up(self, indices: Iterable[int]) -> list[int]:
        """Stop waiting for these members; returns those that were waited for and are still unavailable."""
        given_up = sorted(self.awaited().intersection(indices))
        for index in given_up:
            self._members[index].given_up = True
        return given_up

    def back(self, index: int, incarnation: int, publication: int | None) -> Decision:
        """A lost member answers again, and has the weights of ``publication``; None: it has not reported any."""
        member = self._members.get(index)
        if member is None or member.incarnation != incarnation or member.lost_at is None:
            return Discard()
        if publication != self.publication:
            return SendWeights(self.publication)
        member.lost_at, member.given_up = None, False
        self._settle()
        return Admit(index)

    def start(self) -> int:
        """Another replica is being started; its number among pending ones."""
        number, self._next_pending = self._next_pending, self._next_pending + 1
        self._pending.append(number)
        return number

    def join(self, pending: int, publication: int | None) -> Decision:
        """A pending replica has loaded its model, and the weights of ``publication``; None: it has not reported any.
        Where it is admitted, its index is one that no other ever had."""
        if pending not in self._pending:
            return Discard()
        if publication != self.publication:
            return SendWeights(self.publication)
        self._pending.remove(pending)
        index, self._next_index = self._next_index, self._next_index + 1
        self._members[index] = _Member()
        self._settle()
        return Admit(index)

    def failed(self, pending: int) -> bool:
        """A pending replica did not start; returns whether it was still waited for."""
        if pending not in self._pending:
            return False
        self._pending.remove(pending)
        return True

    def leave(self) -> Withdraw | Drain | None:
        """Remove one replica: a pending one if there is any, else an unavailable one, else the youngest. The last
        member stays (None)."""
        if self._pending:
            return Withdraw(self._pending.pop())
        if len(self._members) == 1:
            return None
        index = max(self.unavailable or self.members)
        del self._members[index]
        self._settle()
        return Drain(index)

    def close(self) -> None:
        """All end: from now on none is restarted, and none joins."""
        self._closed = True
        self._pending.clear()
