"""The health of the simulator that an arm trains with, update by update: counted, logged, and what pauses the arm.

What is counted: the user's turns in all dialogues of the update, those of discarded groups too, and in tries that the
simulator broke since the update before (``rollout/failures.py``), without which the worst turns would be missing. The
state is in the metrics alone, which the arm's checkpoints keep.
"""

from collections.abc import Mapping, Sequence

from calibrated_rl.data.dialogue import Source
from calibrated_rl.health.config import HealthConfig
from calibrated_rl.health.counting import SimulatorHealth, Spoken, of_groups
from calibrated_rl.health.limits import Unhealthy, excesses, metrics_of, paused
from calibrated_rl.rollout.statistics import BrokenTry
from calibrated_rl.training.quota import Members


class HealthWatch:
    """Watches one arm."""

    def __init__(self, health: SimulatorHealth, config: HealthConfig, arm: str) -> None:
        """``arm``: with its seed, for the message."""
        self._health, self._config, self._arm = health, config, arm
        self._examples: dict[str, str] = {}

    def count(self, groups: Sequence[Members], broken: Sequence[BrokenTry]) -> dict[str, float]:
        """The metrics of an update; empty where no user spoke in it, as where it learned from logged histories.

        Args:
            groups: of the update, discarded ones too.
            broken: tries that the simulator broke.
        """
        rates = self._health.rates(of_groups(groups) + of_tries(broken))
        self._examples = {name: rate.example for name, rate in rates.items()}
        spoke = any(turn.source is Source.SIMULATOR for group in groups for d in group for turn in d.turns)
        # Humans as programs are counted, for comparison; nothing pauses an arm for them.
        thresholds = self._config.thresholds if spoke or broken else {}
        return metrics_of(rates, thresholds)

    def pause(self, metrics: Mapping[str, float], updates: int, checkpoint: str) -> Unhealthy | None:
        """The error that pauses the arm for the rates of its last update; None: they are within the thresholds.

        Args:
            metrics: of the last update.
            updates: that are done.
            checkpoint: where the arm resumes from.
        """
        exceeded = excesses(metrics, self._config)
        if not exceeded:
            return None
        return paused(self._arm, updates, exceeded, self._health.reference, self._examples, checkpoint)


def of_tries(broken: Sequence[BrokenTry]) -> list[Spoken]:
    """Broken tries as turns to judge, each by itself."""
    return [
        Spoken(name=f"{each.group_id}-broken-{number}", scenario=each.scenario, turns=each.turns, first=each.first)
        for number, each in enumerate(broken)
    ]
