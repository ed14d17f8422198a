"""Settings of simulator health."""

from dataclasses import dataclass, field
from typing import Annotated

from calibrated_rl.components.short_names import short_names
from calibrated_rl.health import detectors
from calibrated_rl.settings.fields import IMPORT_PATH, Name, OneOf, Positive, Range

BUILTIN = short_names(detectors.__name__)
DetectorName = Annotated[str, OneOf(BUILTIN, otherwise=IMPORT_PATH)]
"""A module of ``health/detectors/``, or the import path of another detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """Mistakes that only a simulator makes, counted in its turns, and rates of them that pause an arm."""

    detectors: list[DetectorName] = field(default_factory=lambda: list(BUILTIN))
    """Modules of `health/detectors/`, or import paths of others: each finds one mistake in the user's turns, of every
    update's dialogues, of the simulator before and after calibration, and of the monitor logs for comparison."""
    thresholds: dict[Name, Annotated[float, Range(at_least=0, below=1)]] = field(default_factory=dict)
    """Highest rate by detector, such as `{role_inversion: 0.2}`. An arm whose simulator's rate over an update is above
    it, with the whole 95 % interval, stops at a checkpoint; with a higher threshold it resumes from there. The others
    are only counted."""
    least_turns: Positive = 30
    """Judged turns of an update without which its rate pauses nothing."""
