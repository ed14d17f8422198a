"""When the simulator is aligned again while the policy trains: by the clock, and when what was measured says so.

A pure state machine: it is told what was measured, and says whether an alignment is due before an update. Its state is
plain data, kept in the arm's checkpoints: what it decides depends on that and on what it is told, on nothing else, so
that a resumed run decides the same.

It does not fire again and again on the same cause. An alignment starts a cool-down (``at_least`` updates), and what was
seen first after it is what later measurements are compared with: the effective share of the logs does not come back by
aligning, and a small simulator may never come into the null band. A shift that is seen within the cool-down stays until
a later measurement of shift takes it back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any, Literal

from calibrated_rl.settings.fields import NotNegative, Positive, Range


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerConfig:
    """Alignments beside those of ``calibration.every``, when what was measured says that the simulator needs one."""

    shift: Literal["never", "null_band", "risen"] = "never"
    """Align when the simulator-induced shift on the current policy's histories, as the classifier on words measures it
    every `shift.every` updates, leaves its null band: `null_band` when its whole 95 % interval lies above the band,
    `risen` when it also lies above the interval of the first measurement after the last alignment. Needs a scripted
    human, whose replies it counts as human turns: logged histories do not move with the policy."""
    effective_share: Annotated[float, Range(at_least=0, below=1)] = 0.0
    """Align when the effective share of the logs (effective sample size of the method's weights on the monitor split,
    over the number of its turns) falls below this part of what it was at the last alignment, about 1 before training;
    0: never. It is measured before each update that an alignment may precede."""
    at_least: Positive = 5
    """Updates between an alignment of either kind and the next one by the trigger."""
    at_most: NotNegative = 0
    """Alignments by the trigger in an arm's training; 0: any number."""

    @property
    def on(self) -> bool:
        """Whether it can align at all."""
        return self.shift != "never" or self.effective_share > 0


class Reason(StrEnum):
    """Why the simulator was aligned again."""

    EVERY = "every"
    """``calibration.every``."""
    SHIFT = "shift"
    EFFECTIVE_SHARE = "effective_share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """One alignment during training."""

    update: int
    """The update before which it took place."""
    reason: Reason
    value: float | None = None
    """What was measured: the shift's lower confidence limit, or the effective share; None: by the clock."""
    limit: float | None = None
    """The limit that it has crossed."""
    measured: int | None = None
    """Policy updates before the measurement."""

    def __str__(self) -> str:
        if self.reason is Reason.EVERY:
            return "calibration.every"
        if self.reason is Reason.SHIFT:
            return (
                f"after update {self.measured} the simulator's shift was at least {self.value:.3f} (lower limit of the "
                f"95 % interval), above {self.limit:.3f}"
            )
        return f"the effective share of the logs is {self.value:.3f}, below {self.limit:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """All that later decisions depend on."""

    alignments: tuple[Alignment, ...] = ()
    """During training, in order."""
    seen: int = -1
    """Update of the last measurement of shift that was told."""
    null_high: float | None = None
    """Upper limit of the null band, once it was measured."""
    reached: float | None = None
    """Upper confidence limit of the first measurement of shift after the last alignment."""
    share: float | None = None
    """The first effective share that was measured at or after the last alignment."""
    shift_cause: Alignment | None = None
    """What the last measurement of shift gives cause for."""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "ScheduleState":
        """From what ``dataclasses.asdict`` gives, read back from JSON."""

        def alignment(raw: Mapping[str, Any]) -> Alignment:
            return Alignment(**{**raw, "reason": Reason(raw["reason"])})

        cause = values["shift_cause"]
        return cls(**{
            **values, "alignments": tuple(map(alignment, values["alignments"])),
            "shift_cause": None if cause is None else alignment(cause),
        })  # fmt: skip


@dataclass(slots=True)
class AlignmentSchedule:
    """The state machine of one arm."""

    every: int
    """``calibration.every``."""
    trigger: TriggerConfig
    state: ScheduleState = field(default_factory=ScheduleState)

    @property
    def last(self) -> int:
        """The update before which the simulator was aligned last; 0: before training."""
        return self.state.alignments[-1].update if self.state.alignments else 0

    @property
    def exhausted(self) -> bool:
        """Whether the trigger has aligned as often as it may, or is off."""
        by_trigger = sum(alignment.reason is not Reason.EVERY for alignment in self.state.alignments)
        return not self.trigger.on or 0 < self.trigger.at_most <= by_trigger

    def saw_shift(self, update: int, low: float | None, high: float | None, null_high: float | None) -> None:
        """Tell a measurement of shift before ``update``; those that were told before, or that are of an earlier
        simulator, change nothing.

        Args:
            low, high: its 95 % interval; None: it could not be measured.
            null_high: upper limit of its null band, if this measurement has one.
        """
        if update <= self.state.seen:
            return
        state = replace(self.state, seen=update)
        if null_high is not None and state.null_high is None:
            state = replace(state, null_high=null_high)
        if low is not None and high is not None and update >= self.last:
            limit, first = state.null_high, state.reached is None
            if self.trigger.shift == "risen" and limit is not None and state.reached is not None:
                limit = max(limit, state.reached)
            left = limit is not None and low > limit and not (first and self.trigger.shift == "risen")
            cause = Alignment(update=update, reason=Reason.SHIFT, value=low, limit=limit, measured=update)
            state = replace(
                state, reached=high if first else state.reached,
                shift_cause=cause if left and self.trigger.shift != "never" else None,
            )  # fmt: skip
        self.state = state

    def wants_share(self, update: int) -> bool:
        """Whether the effective share of the logs before ``update`` bears on a decision. That before training does:
        later ones are compared with it."""
        if not self.trigger.effective_share or self.exhausted:
            return False
        return update == 0 or self._by_clock(update) or update >= self.last + self.trigger.at_least

    def due(self, update: int, share: float | None = None) -> Alignment | None:
        """Whether the simulator is to be aligned before ``update``, and why. It then counts as done.

        Args:
            share: the effective share of the logs, where ``wants_share``.
        """
        cause = self.state.shift_cause
        if share is not None and self.state.share is None:
            self.state = replace(self.state, share=share)
        elif share is not None and self.state.share is not None:
            limit = self.trigger.effective_share * self.state.share
            if cause is None and share < limit:
                cause = Alignment(
                    update=update, reason=Reason.EFFECTIVE_SHARE, value=share, limit=limit, measured=update
                )
        alignment = None
        if self._by_clock(update):
            alignment = Alignment(update=update, reason=Reason.EVERY)
        elif cause is not None and not self.exhausted and update >= self.last + self.trigger.at_least:
            alignment = replace(cause, update=update)
        if alignment is not None:
            done = (*self.state.alignments, alignment)
            self.state = replace(self.state, alignments=done, reached=None, shift_cause=None, share=share)
        return alignment

    def next_change(self, update: int, measured_every: int) -> int | None:
        """The first update after ``update`` before which the simulator may be aligned; None: it will not be.

        Args:
            measured_every: ``shift.every``. A measurement that runs beside an update is known before the next one.
        """
        possible = [(update // self.every + 1) * self.every] if self.every else []
        if not self.exhausted:
            ready = max(update + 1, self.last + self.trigger.at_least)
            if self.trigger.effective_share or self.state.shift_cause is not None:
                possible.append(ready)
            elif measured_every:
                measured = -(-update // measured_every) * measured_every
                possible.append(max(measured + 1, ready))
        return min(possible, default=None)

    def _by_clock(self, update: int) -> bool:
        return self.every > 0 and update > 0 and update % self.every == 0
