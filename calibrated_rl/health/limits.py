"""Which rates of an update pause an arm, and what it then says.

Decided from the update's metrics alone (``health_NAME``, the rate; ``health_NAME_turns``, its judged turns;
``health_NAME_low``, the lower limit of its 95 % interval). These are in the arm's checkpoint, so that a resumed arm
decides the same, or with a higher threshold otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calibrated_rl.errors import UserError, printable
from calibrated_rl.health.config import HealthConfig
from calibrated_rl.health.counting import Rates

PREFIX = "health_"


class Unhealthy(UserError):
    """The simulator of an arm makes a mistake more often than ``health.thresholds`` allows: the arm is paused."""

    reasons = ""
    """The rates alone, without what follows from them."""


def metrics_of(rates: Rates, thresholds: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an update; none of a detector that judged no turn. Lower limits of those with a threshold; a
    single dialogue has none."""
    metrics: dict[str, float] = {}
    for name, rate in rates.items():
        if (interval := rate.interval) is None:
            continue
        metrics |= {f"{PREFIX}{name}": interval.mean, f"{PREFIX}{name}_turns": float(rate.turns)}
        if name in thresholds and interval.low == interval.low:
            metrics[f"{PREFIX}{name}_low"] = interval.low
    return metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """A rate above its threshold."""

    name: str
    rate: float
    low: float
    turns: int
    threshold: float


def excesses(metrics: Mapping[str, float], config: HealthConfig) -> list[Excess]:
    """Rates of an update that lie above their thresholds with their whole 95 % interval, over ``least_turns`` turns or
    more.

    Args:
        metrics: of that update.
    """
    found = []
    for name, threshold in config.thresholds.items():
        rate, turns, low = (metrics.get(f"{PREFIX}{name}{end}") for end in ("", "_turns", "_low"))
        if rate is None or turns is None or low is None or turns < config.least_turns or low <= threshold:
            continue
        found.append(Excess(name=name, rate=rate, low=low, turns=int(turns), threshold=threshold))
    return found


def paused(
    arm: str, updates: int, found: Sequence[Excess], reference: Rates, examples: Mapping[str, str], checkpoint: str
) -> Unhealthy:
    """The error that pauses an arm; one message.

    Args:
        arm: with its seed.
        updates: that are done.
        found: at least one.
        reference: of human users.
        examples: a turn by detector, as far as there is one.
        checkpoint: where the arm resumes from.
    """
    reasons = "; ".join(_reason(excess, reference, examples.get(excess.name, "")) for excess in found)
    settings = " ".join(f"health.thresholds.{excess.name}=..." for excess in found)
    error = Unhealthy(
        f"{arm} is paused after update {updates}: {reasons}. What a policy learns against this simulator may work with "
        "no one else. Align it better (calibration.every, calibration.sft, more logs), give it more context, or take "
        "another simulator.model, in a run of another name. To continue anyway, give the same command a threshold "
        f"above the rate ({settings}): it resumes from {checkpoint}"
    )
    error.reasons = reasons
    return error


def _reason(excess: Excess, reference: Rates, example: str) -> str:
    human = reference[excess.name].interval if excess.name in reference else None
    beside = (
        "no turn of the human logs could be judged" if human is None
        else f"in human logs {human.mean:.3f} of {reference[excess.name].turns}"
    )  # fmt: skip
    such = f' such as "{printable(example, 120)}"' if example else ""
    return (
        f"{excess.name} in {excess.rate:.3f} of the simulator's {excess.turns} turns{such} (lower limit of the 95 % "
        f"interval {excess.low:.3f}), above health.thresholds.{excess.name}, {excess.threshold:g}; {beside}"
    )
