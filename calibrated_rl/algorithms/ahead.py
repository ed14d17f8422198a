"""Rollouts that run on while the learner steps: which groups may begin, and which an update learns from.

With ``training.max_staleness = K`` above 0, the groups of update ``u`` begin as soon as ``u - K`` updates are done. An
update learns from as many groups as were begun for it, in the order in which they became complete: one that takes long
is learned from later, and what becomes complete early, sooner. So all that are begun are learned from, long ones like
short ones. No group waits for more than ``K`` updates after its last turn; turns that do are left out of the loss one
by one (``learner/staleness.py``).

No group begins for an update before which the user model changes: its turns must come from one simulator (contract 4).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from calibrated_rl.dialogue import Dialogue, Scenario
from calibrated_rl.rollout.stream import GroupStream

TIMEOUT_S = 1800.0
"""Within which at least one group must become complete."""


@dataclass(frozen=True, kw_only=True)
class AheadState:
    """What a checkpoint keeps: what was begun and is not learned from."""

    admitted: int
    """The first update for which no group has begun."""
    requested: dict[str, int] = field(default_factory=dict)
    """Groups that were begun for updates that are not done, by update."""
    open: list[list[int]] = field(default_factory=list)
    """Update and number of the groups that were neither learned from nor dropped."""


class RolloutsAhead:
    """The groups of one arm."""

    def __init__(
        self,
        stream: GroupStream,
        scenarios: Callable[[int, int], Sequence[Scenario]],
        *,
        max_staleness: int,
        updates: int,
        first: int,
        state: AheadState | None = None,
    ) -> None:
        """
        Args:
            scenarios: those of an update, so many.
            updates: of the whole arm.
            first: the update that comes next.
            state: of a checkpoint. What was in flight then is held anew; what the replay store has of it already is
                skipped there when it arrives once more, and handed out in its place.
        """
        self._stream, self._scenarios = stream, scenarios
        self._max_staleness, self._updates = max_staleness, updates
        self._admitted = state.admitted if state else first
        self._requested = {int(update): count for update, count in state.requested.items()} if state else {}
        self._open = {(update, number) for update, number in state.open} if state else set()
        for update in sorted({update for update, _ in self._open}):
            numbers = sorted(number for of, number in self._open if of == update)
            found = scenarios(update, numbers[-1] + 1)
            stream.admit(update, [(number, found[number]) for number in numbers])

    def next(self, update: int, wanted: int, until: int | None) -> tuple[list[list[Dialogue]], int]:
        """Begin what may begin, ``wanted`` groups an update, and wait for those of ``update``.

        Args:
            until: the update before which the user model changes.

        Returns:
            complete groups, and how many were begun for ``update``.

        Raises:
            RolloutFailure, PartLost: as ``GroupStream.take``.
        """
        last = min(update + self._max_staleness, self._updates - 1)
        if until is not None:
            last = min(last, until - 1)
        while self._admitted <= last:
            scenarios = self._scenarios(self._admitted, wanted)
            self._stream.admit(self._admitted, list(enumerate(scenarios)))
            self._requested[self._admitted] = len(scenarios)
            self._open |= {(self._admitted, number) for number in range(len(scenarios))}
            self._admitted += 1
        requested = self._requested.pop(update)
        groups = self._stream.take(requested, TIMEOUT_S)
        self._open -= {(group[0].update, _number(group[0].group_id)) for group in groups}
        return groups, requested

    def busy_seconds(self) -> float:
        """How long groups were in flight since this was last asked."""
        return self._stream.busy_seconds()

    def close(self) -> None:
        """The arm is done: nothing begins any more."""
        self._stream.close()

    def state(self, name: str, dropped: Mapping[str, str]) -> AheadState:
        """For a checkpoint.

        Args:
            name: what the ids of the arm's groups begin with, ``ARM-SEED``.
            dropped: ids of groups that were dropped: they are not held anew.
        """
        left = sorted(each for each in self._open if f"{name}-{each[0]}-{each[1]}" not in dropped)
        return AheadState(
            admitted=self._admitted, requested={str(u): n for u, n in self._requested.items()},
            open=[list(each) for each in left],
        )  # fmt: skip


def _number(group_id: str) -> int:
    return int(group_id.rpartition("-")[2])
