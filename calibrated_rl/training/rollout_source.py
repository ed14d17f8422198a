"""Where an update's groups of dialogues come from: which may begin, and which an update learns from.

With ``training.max_staleness = K``, the groups of update ``u`` begin as soon as ``u - K`` updates are done. ``K = 0``
is the synchronous source: an update's groups begin when the one before is done, all are waited for, and they are
learned from in the order of their numbers. Above 0, rollouts run on while the learner steps:

- An update learns from as many groups as were begun for it, in the order in which they became complete: one that takes
  long is learned from later, and what becomes complete early, sooner. So all that are begun are learned from, long ones
  like short ones. No group waits for more than ``K`` updates after its last turn; turns that do are left out of the
  loss one by one (``learner/staleness.py``).
- No group begins for an update before which the user model changes: its turns must come from one simulator (contract
  4).

A group that was dropped, or (with ``training.extra_groups``) has no signal, is replaced by a fresh one of the update
that waits for it (``quota.py``): so the groups in flight do not become fewer, and the last update finds its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from calibrated_rl.data.dialogue import Scenario
from calibrated_rl.rollout.stream import GroupStream
from calibrated_rl.training.quota import Quota, RolloutBatch

TIMEOUT_S = 1800.0
"""Within which at least one group must become complete."""


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """What a checkpoint keeps of the groups that were begun and not learned from."""

    admitted: int
    """The first update for which no group has begun."""
    requested: dict[str, int] = field(default_factory=dict)
    """Groups that were begun for updates that are not done, by update."""
    open: list[list[int]] = field(default_factory=list)
    """Update and number of the groups that were neither learned from nor dropped."""
    owed: int = 0
    """Groups that were dropped and not replaced yet."""


class RolloutSource:
    """The groups of one arm."""

    def __init__(
        self,
        stream: GroupStream,
        scenarios: Callable[[int, int], Sequence[Scenario]],
        *,
        max_staleness: int,
        updates: int,
        first: int,
        extra: int = 0,
        state: InFlight | None = None,
    ) -> None:
        """
        Args:
            scenarios: of an update, up to a count; fewer where there are no more.
            updates: of the whole arm.
            first: the update that comes next.
            extra: ``training.extra_groups``.
            state: of a checkpoint. What was in flight then is run again; what the replay store already has of it is
                skipped there when it arrives once more, and handed out in its place.
        """
        self._stream, self._scenarios = stream, scenarios
        self.max_staleness, self._updates, self._extra = max_staleness, updates, extra
        self._admitted = state.admitted if state else first
        self._requested = {int(update): count for update, count in state.requested.items()} if state else {}
        self._open = {(update, number) for update, number in state.open} if state else set()
        self._owed = state.owed if state else 0
        for update in sorted({update for update, _ in self._open}):
            numbers = sorted(number for its_update, number in self._open if its_update == update)
            update_scenarios = scenarios(update, numbers[-1] + 1)
            stream.admit(update, [(number, update_scenarios[number]) for number in numbers])

    def next(self, update: int, wanted: int, until: int | None) -> RolloutBatch:
        """Begin what may begin, ``wanted`` groups an update, and wait for those of ``update``.

        Args:
            until: the update before which the user model changes.

        Raises:
            PartLost: as ``GroupStream.take``.
        """
        last = min(update + self.max_staleness, self._updates - 1)
        if until is not None:
            last = min(last, until - 1)
        while self._admitted <= last:
            self._requested[self._admitted] = self._begin(self._admitted, 0, wanted)
            self._admitted += 1
        requested = n_requested = self._requested.pop(update)
        quota = Quota(requested, self._extra)
        n_missing, self._owed = sum(quota.offer(None) for _ in range(self._owed)), 0
        while True:
            if n_missing:
                n_begun = self._begin(update, n_requested, n_missing)
                n_requested += n_begun
                quota.without(n_missing - n_begun)
            ended = self._stream.take(quota.missing, TIMEOUT_S) if quota.missing > 0 else []
            if not ended:
                return self._in_order(quota.batch(requested, n_requested))
            self._open -= {(group.update, group.number) for group in ended}
            n_missing = sum(quota.offer(group.dialogues) for group in ended)

    def _in_order(self, batch: RolloutBatch) -> RolloutBatch:
        """Of one update alone, in the order of their numbers: which one is complete first depends on the machine."""
        if not self.max_staleness:
            batch.groups.sort(key=lambda group: int(group[0].group_id.rpartition("-")[2]))
        return batch

    def _begin(self, update: int, first: int, count: int) -> int:
        """Begin ``count`` groups of ``update`` from the number ``first`` on; how many there are scenarios for."""
        numbered = list(enumerate(self._scenarios(update, first + count)))[first:]
        if numbered:
            self._stream.admit(update, numbered)
            self._open |= {(update, number) for number, _ in numbered}
        return len(numbered)

    def busy_seconds(self) -> float:
        """How long groups were in flight since the last call."""
        return self._stream.busy_seconds()

    def close(self) -> None:
        """The arm is done: nothing begins any more."""
        self._stream.close()

    def state(self, name: str, dropped: Mapping[str, str]) -> InFlight:
        """For a checkpoint.

        Args:
            name: what the ids of the arm's groups begin with, ``ARM-SEED``.
            dropped: ids of groups that were dropped: they are not run again, but owed.
        """
        ids = {group: f"{name}-{group[0]}-{group[1]}" for group in sorted(self._open)}
        open_groups = [group for group, group_id in ids.items() if group_id not in dropped]
        return InFlight(
            admitted=self._admitted, requested={str(u): n for u, n in self._requested.items()},
            open=[list(group) for group in open_groups], owed=self._owed + len(ids) - len(open_groups),
        )  # fmt: skip
