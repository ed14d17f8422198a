"""Which of the groups that an update asked for it learns from, and how many more it asks for in their place.

- A group that was dropped (``rollout/failures.py``) is replaced by a fresh one, on another scenario; at most as many as
  the update asked for at first, or ``FEWEST_REPLACEMENTS``, so that what fails for ever comes to an end. After that the
  update takes fewer.
- With ``training.extra_groups`` above 0, so is a group whose rewards are all equal: it teaches nothing. At most so many
  an update; groups beyond that are learned from as they are. This is the dynamic sampling of DAPO (arXiv 2503.14476,
  section 3.2), which goes on without a bound.

Pure data: no engines, no clock. The same rules serve rollouts in turn with learning and rollouts that run ahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from calibrated_rl.data.dialogue import Dialogue
from calibrated_rl.learner.advantages.base import has_signal

Members = list[Dialogue]

FEWEST_REPLACEMENTS = 8
"""Of two groups, two replacements may well fail by chance."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """What an update learns from, and what it asked for to get it."""

    groups: list[Members]
    """Complete; of a synchronous source in the order of their numbers, else in that in which they became complete."""
    requested: int
    """Groups asked for at first: numbers 0 to ``requested - 1`` of the update."""
    extra: tuple[int, ...] = ()
    """Numbers of the groups that were asked for in place of others."""
    discarded: list[Members] = field(default_factory=list)
    """Complete groups that are not learned from: their rewards were all equal, and another one took their place."""


@dataclass
class Quota:
    """The groups of one update."""

    wanted: int
    """Groups that the update learns from; falls where one cannot be replaced."""
    extra_left: int
    """Groups that may still be asked for in place of such without signal."""
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
        """Take in a group that has ended; None: it was dropped. How many to ask for in its place: 0 or 1."""
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
        """There is nothing to ask for in place of ``count`` groups: no scenario is left."""
        self.wanted -= count

    def batch(self, requested: int, asked: int) -> RolloutBatch:
        """The update's groups, once none is missing.

        Args:
            requested: groups asked for at first.
            asked: groups asked for in all.
        """
        # Where a place stayed empty after all, what was put aside for its sake is better than nothing.
        while len(self.kept) < requested and self.discarded:
            self.kept.append(self.discarded.pop())
        return RolloutBatch(
            groups=self.kept, requested=requested, extra=tuple(range(requested, asked)), discarded=self.discarded
        )


def filled(wanted: int, extra: int, ask: Callable[[int, int], Sequence[Members | None]]) -> RolloutBatch:
    """The groups of an update whose rollouts take turns with learning.

    Args:
        wanted: groups to learn from.
        extra: ``training.extra_groups``.
        ask: runs the groups from a number on, so many, and returns them in order, None for those that were dropped;
            fewer where no scenario is left.
    """
    found = ask(0, wanted)
    quota, requested, asked = Quota(len(found), extra), len(found), len(found)
    while more := sum(quota.offer(group) for group in found):
        found = ask(asked, more)
        asked += len(found)
        quota.without(more - len(found))
    return quota.batch(requested, asked)
