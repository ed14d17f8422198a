"""Which of its requested groups an update learns from, and how many more it requests to replace the others.

- A group that was dropped (``rollout/failures.py``) is replaced by a fresh one, on another scenario; at most as many as
  the update requested at first, or ``FEWEST_REPLACEMENTS``, so that permanent failures come to an end. After that the
  update takes fewer.
- With ``training.extra_groups`` above 0, so is a group whose rewards are all equal: it teaches nothing. At most so many
  an update; groups beyond that are learned from as they are. This is the dynamic sampling of DAPO (arXiv 2503.14476,
  section 3.2), which has no bound.

Pure data: no engines, no clock. The same rules serve rollouts in turn with learning and rollouts that run ahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.learner.advantages.base import has_signal

Members = list[Dialogue]

FEWEST_REPLACEMENTS = 8
"""A lower bound: of two groups, two replacements may well fail by chance."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """What an update learns from, and how many groups it requested for that."""

    groups: list[Members]
    """Complete; of a synchronous source in the order of their numbers, else in that in which they became complete."""
    requested: int
    """Groups requested at first: numbers 0 to ``requested - 1`` of the update."""
    extra: tuple[int, ...] = ()
    """Numbers of the groups that were requested in place of others."""
    discarded: list[Members] = field(default_factory=list)
    """Complete groups that are not learned from: their rewards were all equal, and another one replaced them."""


@dataclass
class Quota:
    """The groups of one update."""

    wanted: int
    """Groups that the update learns from; falls where one cannot be replaced."""
    extra_left: int
    """Groups that may still be requested in place of those without signal."""
    kept: list[Members] = field(default_factory=list)
    discarded: list[Members] = field(default_factory=list)
    _replacements_left: int = field(init=False)

    def __post_init__(self) -> None:
        self._replacements_left = max(self.wanted, FEWEST_REPLACEMENTS)

    @property
    def missing(self) -> int:
        """Groups that are still to come."""
        return self.wanted - len(self.kept)

    def offer(self, group: Members | None) -> int:
        """Take in a group that has ended; None: it was dropped. Returns how many to request in its place: 0 or 1."""
        if group is None:
            if not self._replacements_left:
                self.wanted -= 1
                return 0
            self._replacements_left -= 1
            return 1
        if self.extra_left and not has_signal([d.outcome.episode_return for d in group if d.outcome is not None]):
            self.extra_left -= 1
            self.discarded.append(group)
            return 1
        self.kept.append(group)
        return 0

    def without(self, count: int) -> None:
        """Lower the number of groups by ``count``: no scenario is left to replace them."""
        self.wanted -= count

    def batch(self, requested: int, requested_in_all: int) -> RolloutBatch:
        """The update's groups, once none is missing.

        Args:
            requested: groups requested at first.
            requested_in_all: with those in place of others.
        """
        # Where a replacement never came, the group that it was to replace is better than nothing.
        while len(self.kept) < requested and self.discarded:
            self.kept.append(self.discarded.pop())
        return RolloutBatch(
            groups=self.kept,
            requested=requested,
            extra=tuple(range(requested, requested_in_all)),
            discarded=self.discarded,
        )


def filled(wanted: int, extra: int, ask: Callable[[int, int], Sequence[Members | None]]) -> RolloutBatch:
    """The groups of an update whose rollouts and learning take turns.

    Args:
        wanted: groups to learn from.
        extra: ``training.extra_groups``.
        ask: runs the groups from a number on, so many, and returns them in order, None for those that were dropped;
            fewer where no scenario is left.
    """
    groups = ask(0, wanted)
    quota, requested, n_requested = Quota(len(groups), extra), len(groups), len(groups)
    while n_missing := sum(quota.offer(group) for group in groups):
        groups = ask(n_requested, n_missing)
        n_requested += len(groups)
        quota.without(n_missing - len(groups))
    return quota.batch(requested, n_requested)
