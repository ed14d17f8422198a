"""Decides how many replicas each side should have. Owns no actor and no clock: observations in, targets out.

What is minimised is what an update costs, in hours of everything that is paid for while the learner exists:

    cost = seconds of an update * (1 + replicas of the policy * their cost + replicas of the simulator * their cost)

- Predict: one replica more or less changes the time that turns take on its side. A turn among ``B`` others in a
  replica's batch takes ``1 + B / half_batch`` times as long as alone, and ``B`` goes as one over the replicas.
  The share of the rollout that dialogues spend waiting for the side changes in proportion. Where rollouts and learning
  overlap, only what holds up the learner counts.
- Remember: what was measured with numbers of replicas that were tried replaces the prediction. It must speak twice for
  going there: the whole update was cheaper then, and with rollouts as long as then it would be cheaper now. The first
  keeps moves from going in circles under a constant load; the second keeps a learner that is slow for its own reasons
  from being held against the replicas. Where rollouts get longer or shorter with the same replicas, what is known of
  other numbers goes with them; once that is much (``DRIFT``), it is forgotten.
- One move at a time, and none until ``patience`` updates were measured with the same replicas in service. While one
  starts, its side waits and the other may only become smaller: where all machines are taken, that gives it a place.
  What is known goes before what is predicted, adding before removing.
- What is lost is being started again by its pool: it still counts, is neither replaced nor removed, and nothing is
  decided until it is back. What was asked for and did not come counts no more, and is asked for again after
  ``retry_seconds``.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

from calibrated_rl.settings.fields import NotNegative, Positive, Range, check_settings

DRIFT = 1.5
"""Another load: with the same replicas, rollouts take so many times more or less. On a busy machine the median of a few
differs by less, and dialogues that become half as long again are another load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """Between which numbers the replicas of one side may go, and when it is worth it."""

    minimum: NotNegative = 0
    """Fewest replicas; 0: `replicas`."""
    maximum: NotNegative = 0
    """Most replicas; 0: `replicas`. With both 0 the number is fixed."""
    cost: Annotated[float, Range(above=0)] = 0.2
    """What an hour of a replica costs, in hours of all else that is paid for meanwhile: learner, head, people who wait.
    0.2: a GPU at half price beside two learner ranks and their head."""
    half_batch: Annotated[float, Range(above=0)] = 16.0
    """Turns in a replica's batch at which each takes twice as long as alone. Measured: 11 to 17 for models of at
    most 135M parameters on two cores, about 54 for 1.5B on an H100."""
    margin: Annotated[float, Range(above=0, below=1)] = 0.5
    """By what share of a replica's own cost updates must become cheaper. 0.5: it is added where it saves half again as
    much as it costs, and removed where it saves half of that or less; in between nothing changes."""
    patience: Positive = 5
    """Updates that are measured before a decision; their median counts."""
    retry_seconds: Annotated[float, Range(at_least=0)] = 600.0
    """Pause before a replica that did not come, since there was no machine for it, is asked for again."""

    def __post_init__(self) -> None:
        check_settings(self, "scaling")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideSeen:
    """What was seen of one side during an update."""

    ready: int
    """Replicas in service."""
    starting: int = 0
    lost: int = 0
    """Replicas that failed and are being started again."""
    in_flight: float = 0.0
    """Mean number of turns in flight on all its replicas while rollouts ran. Its share in both sides' sum is the share
    of their time that dialogues waited for this side."""

    @property
    def count(self) -> int:
        """Replicas that are there or on their way."""
        return self.ready + self.starting + self.lost



@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSeen:
    """One update of the policy. Seconds of the update itself: what was measured or evaluated beside it is left out."""

    at: float
    """When it ended, in seconds of any clock that does not go back."""
    seconds: float
    seconds_rollout: float
    seconds_learning: float
    """With the sync of the weights. Rollouts and learning overlap by as much as both together exceed ``seconds``."""
    sides: Mapping[str, SideSeen]

    def with_rollout_of(self, rollout: float) -> float:
        """Seconds that the update would take if its rollouts took ``rollout`` seconds."""
        shorter = min(self.seconds_rollout, self.seconds_learning)
        overlap = self.seconds_rollout + self.seconds_learning - self.seconds
        share = min(1.0, max(0.0, overlap / shorter)) if shorter > 0 else 0.0
        beside = max(rollout, self.seconds_learning) - max(self.seconds_rollout, self.seconds_learning)
        return self.seconds + share * beside + (1 - share) * (rollout - self.seconds_rollout)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas each side should have, with what starts or is lost."""

    targets: Mapping[str, int]
    reason: str
    """A sentence for the log where something changes, else empty."""


Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class _Move:
    """One replica more or less, in the order of preference: back from what did not pay goes before everything else."""

    known: bool
    step: int
    saved: float
    """Share of an update's cost."""
    side: str


@dataclass(frozen=True, slots=True)
class _Measured:
    cost: float
    """Of an update."""
    rollout: float
    """Seconds."""


@dataclass
class _Side:
    config: ScalingConfig
    fewest: int
    most: int
    asked: int | None = None
    """Number that the last decision left."""
    not_before: float = float("-inf")
    """When it may be added to again after a replica did not come."""


@dataclass
class Scaler:
    """See the module's docstring. ``bounds``: fewest and most replicas of each side."""

    configs: Mapping[str, ScalingConfig]
    bounds: Mapping[str, tuple[int, int]]
    _sides: dict[str, _Side] = field(init=False)
    _window: deque[UpdateSeen] = field(init=False)
    """Updates with the present replicas, the latest last."""
    _known: dict[Counts, _Measured] = field(init=False, default_factory=dict)
    """By the numbers of replicas that were tried."""
    _drift: float = field(init=False, default=1.0)
    """How much longer rollouts with the same replicas have become since ``_known`` was empty, as a factor."""
    _before: Counts | None = field(init=False, default=None)
    """Replicas in service at the end of the last update, if none was lost."""

    def __post_init__(self) -> None:
        self._sides = {name: _Side(config, *self.bounds[name]) for name, config in self.configs.items()}
        self._window = deque(maxlen=max(config.patience for config in self.configs.values()))

    def decide(self, seen: UpdateSeen) -> Decision:
        """Targets after an update, given those before."""
        targets = {name: seen.sides[name].count for name in self._sides}
        reason = self._did_not_come(seen) or self._into_bounds(seen, targets)
        ready = tuple(seen.sides[name].ready for name in self._sides)
        whole = all(side.ready and not side.lost for side in seen.sides.values())
        # An update in whose midst a replica came or went belongs to neither number.
        if not whole or ready != self._before:
            self._window.clear()
            self._before = ready if whole else None
        elif not reason:
            self._window.append(seen)
            reason = self._move(seen, ready, targets)
        for name, side in self._sides.items():
            side.asked = targets[name]
        return Decision(targets, reason)

    def _did_not_come(self, seen: UpdateSeen) -> str:
        reasons = []
        for name, side in self._sides.items():
            if side.asked is not None and seen.sides[name].count < side.asked:
                side.not_before = seen.at + side.config.retry_seconds
                reasons.append(
                    f"{side.asked} {name} replicas were asked for and {seen.sides[name].count} are there: "
                    f"more are asked for after {side.config.retry_seconds:g} s at the earliest"
                )
        return "; ".join(reasons)

    def _into_bounds(self, seen: UpdateSeen, targets: dict[str, int]) -> str:
        for name, side in self._sides.items():
            here = targets[name]
            to = min(max(here, side.fewest), side.most)
            if to < here or (to > here and seen.at >= side.not_before):
                targets[name] = to
                return f"{name} replicas {here} -> {to}: {side.fewest} to {side.most} are allowed"
        return ""

    def _move(self, seen: UpdateSeen, counts: Counts, targets: dict[str, int]) -> str:
        """Change one target if that makes updates cheaper; the reason, or nothing."""
        if len(self._window) < min(side.config.patience for side in self._sides.values()):
            return ""
        now = median(self._rate(counts) * update.seconds for update in self._window)
        self._learn(counts, _Measured(now, median(update.seconds_rollout for update in self._window)))
        moves = list(self._worth(seen, counts, now))
        if not moves:
            return ""
        move = max(moves)
        why = self._why(move.side)
        here, targets[move.side] = targets[move.side], targets[move.side] + move.step
        self._before = None
        return (
            f"{move.side} replicas {here} -> {here + move.step}: {why}; "
            f"updates {'were' if move.known else 'should be'} {move.saved:.0%} cheaper"
        )

    def _learn(self, counts: Counts, now: _Measured) -> None:
        before = self._known.get(counts, now)
        dearer, longer = now.cost / before.cost, now.rollout / before.rollout
        self._drift *= longer
        if not 1 / DRIFT < self._drift < DRIFT:
            self._known, self._drift = {}, 1.0
        others = {key: _Measured(each.cost * dearer, each.rollout * longer) for key, each in self._known.items()}
        self._known = others | {counts: now}

    def _worth(self, seen: UpdateSeen, here: Counts, now: float) -> Iterator[_Move]:
        """Moves from the replicas ``here``, with which an update costs ``now``, that save the side's margin."""
        replica = now / self._rate(here)
        starting = tuple(seen.sides[name].starting for name in self._sides)
        for index, (name, side) in enumerate(self._sides.items()):
            for step in (1, -1):
                to, config = here[index] + step, side.config
                waits = step > 0 and (any(starting) or seen.at < side.not_before)
                if waits or starting[index] or not side.fewest <= to <= side.most:
                    continue
                if len(self._window) < config.patience:
                    continue
                counts = (*here[:index], to, *here[index + 1 :])
                known = self._known.get(counts)
                rollouts = [self._predicted(u, name, to) if known is None else known.rollout for u in self._window]
                pairs = zip(self._window, rollouts, strict=True)
                cost = median(self._rate(counts) * u.with_rollout_of(rollout) for u, rollout in pairs)
                # What starts will join: where that leads must not be known to be dearer either.
                joined = self._known.get(tuple(map(sum, zip(counts, starting, strict=True))))
                cost = max([cost, *(each.cost for each in (known, joined) if each is not None)])
                if cost < now - config.margin * config.cost * replica:
                    yield _Move(known is not None, step, 1 - cost / now, name)

    def _predicted(self, update: UpdateSeen, name: str, to: int) -> float:
        """Seconds that rollouts should take with ``to`` replicas of a side."""
        side, half_batch = update.sides[name], self._sides[name].config.half_batch
        factor = crowding(side.in_flight / to, half_batch) / crowding(side.in_flight / side.ready, half_batch)
        return update.seconds_rollout * (1 - waited_for(update, name) * (1 - factor))

    def _rate(self, counts: Counts) -> float:
        return 1 + sum(n * side.config.cost for n, side in zip(counts, self._sides.values(), strict=True))

    def _why(self, name: str) -> str:
        count = len(self._window)
        rollout = sum(u.seconds_rollout for u in self._window) / sum(u.seconds for u in self._window)
        waited = sum(waited_for(u, name) for u in self._window) / count
        busy = sum(u.sides[name].in_flight / u.sides[name].ready for u in self._window) / count
        return (
            f"rollouts take {rollout:.0%} of an update, dialogues wait for {name} {waited:.0%} of that, "
            f"with {busy:.1f} turns in flight a replica"
        )


def crowding(batch: float, half_batch: float) -> float:
    """How many times as long a turn takes among ``batch`` turns in flight on a replica as it takes alone."""
    return 1 + batch / half_batch


def waited_for(update: UpdateSeen, name: str) -> float:
    """Share of their time that dialogues waited for a side, 0 to 1."""
    total = sum(side.in_flight for side in update.sides.values())
    return update.sides[name].in_flight / total if total > 0 else 0.0
