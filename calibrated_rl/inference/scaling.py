"""Decides how many replicas each side should have. Owns no actor and no clock: observations in, targets out.

Minimises the cost of an update, in hours of everything that is paid for while the learner runs:

    cost = seconds of an update * (1 + replicas of the policy * their cost + replicas of the simulator * their cost)

- Predict: one replica more or less changes the time that turns take on its side. A turn among ``B`` others in a
  replica's batch takes ``1 + B / half_batch`` times as long as alone, and ``B`` is inversely proportional to the number
  of replicas.
  The share of the rollout that dialogues spend waiting for the side changes in proportion. Where rollouts and learning
  overlap, only what holds up the learner counts.
- Remember: for numbers of replicas that were tried, the measurement replaces the prediction. Both of two conditions
  must then favour the move: the whole update was cheaper then, and with rollouts as long as then it would be cheaper
  now. The first prevents cycles under a constant load; the second keeps the replicas from being blamed for a learner
  that is slow for its own reasons. Where rollouts get longer or shorter with the same replicas, measurements of other
  numbers are scaled with them; once that exceeds ``DRIFT``, they are forgotten.
- One move at a time, and none until ``patience`` updates were measured with the same replicas in service. While one
  starts, its side waits and the other may only become smaller: where all machines are in use, that frees one for it.
  Measured moves take precedence over predicted ones, adding over removing.
- Lost replicas are being restarted by their pool: they still count, are neither replaced nor removed, and nothing is
  decided until they are back. Replicas that were requested and did not start no longer count, and are requested again
  after ``retry_seconds``.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

from calibrated_rl.settings.fields import NotNegative, Positive, Range, check_settings

DRIFT = 1.5
"""The load has changed where rollouts with the same replicas take this factor longer or shorter. On a busy machine the
median of a few differs by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingConfig:
    """The bounds of one side's number of replicas, and when a change is worth its cost."""

    minimum: NotNegative = 0
    """Fewest replicas; 0: `replicas`."""
    maximum: NotNegative = 0
    """Most replicas; 0: `replicas`. With both 0 the number is fixed."""
    cost: Annotated[float, Range(above=0)] = 0.2
    """What an hour of a replica costs, in hours of all else that is paid for meanwhile: learner, head, staff who wait.
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
    """Pause before a replica that did not start, since there was no machine for it, is requested again."""

    def __post_init__(self) -> None:
        check_settings(self, "scaling")


@dataclass(frozen=True, slots=True, kw_only=True)
class SideObservation:
    """Measurements of one side during an update."""

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
        """All replicas: ready, starting or lost."""
        return self.ready + self.starting + self.lost


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateObservation:
    """One update of the policy. Seconds of the update itself, without measurements and evaluations beside it."""

    at: float
    """When it ended, in seconds of any clock that does not go back."""
    seconds: float
    seconds_rollout: float
    seconds_learning: float
    """With the sync of the weights. Rollouts and learning overlap by as much as both together exceed ``seconds``."""
    sides: Mapping[str, SideObservation]

    def with_rollout_of(self, rollout: float) -> float:
        """Seconds that the update would take if its rollouts took ``rollout`` seconds."""
        shorter = min(self.seconds_rollout, self.seconds_learning)
        overlap = self.seconds_rollout + self.seconds_learning - self.seconds
        share = min(1.0, max(0.0, overlap / shorter)) if shorter > 0 else 0.0
        longer_by = max(rollout, self.seconds_learning) - max(self.seconds_rollout, self.seconds_learning)
        return self.seconds + share * longer_by + (1 - share) * (rollout - self.seconds_rollout)


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas each side should have, with what starts or is lost."""

    targets: Mapping[str, int]
    reason: str
    """A sentence for the log where something changes, else empty."""


Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True, order=True)
class _Move:
    """One replica more or less, in the order of preference: measured moves first."""

    measured: bool
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
    target: int | None = None
    """Number of replicas after the last decision."""
    not_before: float = float("-inf")
    """When a replica may be added again after one did not start."""


@dataclass
class Scaler:
    """See the module's docstring. ``bounds``: fewest and most replicas of each side."""

    configs: Mapping[str, ScalingConfig]
    bounds: Mapping[str, tuple[int, int]]
    _sides: dict[str, _Side] = field(init=False)
    _window: deque[UpdateObservation] = field(init=False)
    """Updates with the present replicas, the latest last."""
    _measured: dict[Counts, _Measured] = field(init=False, default_factory=dict)
    """By the numbers of replicas that were tried."""
    _drift: float = field(init=False, default=1.0)
    """How much longer rollouts with the same replicas have become since ``_measured`` was empty, as a factor."""
    _ready_before: Counts | None = field(init=False, default=None)
    """Replicas in service at the end of the last update, if none was lost."""

    def __post_init__(self) -> None:
        self._sides = {name: _Side(config, *self.bounds[name]) for name, config in self.configs.items()}
        self._window = deque(maxlen=max(config.patience for config in self.configs.values()))

    def decide(self, update: UpdateObservation) -> Decision:
        """Targets after an update, given those before."""
        targets = {name: update.sides[name].count for name in self._sides}
        reason = self._not_started(update) or self._into_bounds(update, targets)
        ready = tuple(update.sides[name].ready for name in self._sides)
        complete = all(side.ready and not side.lost for side in update.sides.values())
        # An update during which a replica joined or left belongs to neither number.
        if not complete or ready != self._ready_before:
            self._window.clear()
            self._ready_before = ready if complete else None
        elif not reason:
            self._window.append(update)
            reason = self._move(update, ready, targets)
        for name, side in self._sides.items():
            side.target = targets[name]
        return Decision(targets, reason)

    def _not_started(self, update: UpdateObservation) -> str:
        reasons = []
        for name, side in self._sides.items():
            if side.target is not None and update.sides[name].count < side.target:
                side.not_before = update.at + side.config.retry_seconds
                reasons.append(
                    f"{side.target} {name} replicas were requested and {update.sides[name].count} exist: "
                    f"retrying after {side.config.retry_seconds:g} s at the earliest"
                )
        return "; ".join(reasons)

    def _into_bounds(self, update: UpdateObservation, targets: dict[str, int]) -> str:
        for name, side in self._sides.items():
            current = targets[name]
            bounded = min(max(current, side.fewest), side.most)
            if bounded < current or (bounded > current and update.at >= side.not_before):
                targets[name] = bounded
                return f"{name} replicas {current} -> {bounded}: {side.fewest} to {side.most} are allowed"
        return ""

    def _move(self, update: UpdateObservation, counts: Counts, targets: dict[str, int]) -> str:
        """Change one target if that makes updates cheaper; the reason, or nothing."""
        if len(self._window) < min(side.config.patience for side in self._sides.values()):
            return ""
        cost_now = median(self._rate(counts) * observed.seconds for observed in self._window)
        self._learn(counts, _Measured(cost_now, median(observed.seconds_rollout for observed in self._window)))
        moves = list(self._worthwhile(update, counts, cost_now))
        if not moves:
            return ""
        move = max(moves)
        reason = self._why(move.side)
        count, targets[move.side] = targets[move.side], targets[move.side] + move.step
        self._ready_before = None
        return (
            f"{move.side} replicas {count} -> {count + move.step}: {reason}; "
            f"updates {'were' if move.measured else 'should be'} {move.saved:.0%} cheaper"
        )

    def _learn(self, counts: Counts, measurement: _Measured) -> None:
        earlier = self._measured.get(counts, measurement)
        dearer, longer = measurement.cost / earlier.cost, measurement.rollout / earlier.rollout
        self._drift *= longer
        if not 1 / DRIFT < self._drift < DRIFT:
            self._measured, self._drift = {}, 1.0
        scaled = {key: _Measured(old.cost * dearer, old.rollout * longer) for key, old in self._measured.items()}
        self._measured = scaled | {counts: measurement}

    def _worthwhile(self, update: UpdateObservation, current: Counts, cost_now: float) -> Iterator[_Move]:
        """Moves from the replicas ``here``, with which an update costs ``now``, that save the side's margin."""
        replica = cost_now / self._rate(current)
        starting = tuple(update.sides[name].starting for name in self._sides)
        for index, (name, side) in enumerate(self._sides.items()):
            for step in (1, -1):
                target, config = current[index] + step, side.config
                blocked = step > 0 and (any(starting) or update.at < side.not_before)
                if blocked or starting[index] or not side.fewest <= target <= side.most:
                    continue
                if len(self._window) < config.patience:
                    continue
                counts = (*current[:index], target, *current[index + 1 :])
                measurement = self._measured.get(counts)
                rollouts = [
                    self._predicted(u, name, target) if measurement is None else measurement.rollout
                    for u in self._window
                ]
                pairs = zip(self._window, rollouts, strict=True)
                cost = median(self._rate(counts) * u.with_rollout_of(rollout) for u, rollout in pairs)
                # Starting replicas will join: the numbers after that must not be measured as dearer either.
                joined = self._measured.get(tuple(map(sum, zip(counts, starting, strict=True))))
                cost = max([cost, *(past.cost for past in (measurement, joined) if past is not None)])
                if cost < cost_now - config.margin * config.cost * replica:
                    yield _Move(measurement is not None, step, 1 - cost / cost_now, name)

    def _predicted(self, update: UpdateObservation, name: str, target: int) -> float:
        """Seconds that rollouts should take with ``target`` replicas of a side."""
        side, half_batch = update.sides[name], self._sides[name].config.half_batch
        factor = crowding(side.in_flight / target, half_batch) / crowding(side.in_flight / side.ready, half_batch)
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


def waited_for(update: UpdateObservation, name: str) -> float:
    """Share of their time that dialogues waited for a side, 0 to 1."""
    total = sum(side.in_flight for side in update.sides.values())
    return update.sides[name].in_flight / total if total > 0 else 0.0
