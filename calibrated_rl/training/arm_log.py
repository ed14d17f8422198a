"""The metrics of one arm: kept for its result, and written for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter


class ArmLog:
    """Metrics by update, in the order in which they came."""

    def __init__(self, run: Path, arm: str, seed: int, earlier_metrics: list[dict[str, Any]], updates: int) -> None:
        """
        Args:
            run: the run's folder.
            earlier_metrics: from before the arm was stopped.
            updates: how many are done.
        """
        self._arm, self._seed = arm, seed
        self.metrics: list[dict[str, Any]] = earlier_metrics
        self._tensorboard = SummaryWriter(str(run / "tensorboard" / f"{arm}-{seed}"), purge_step=updates or None)

    def add(self, values: Mapping[str, float], update: int) -> None:
        """Keep metrics of an update."""
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, update)
            self.metrics.append(
                {"arm": self._arm, "seed": self._seed, "update": update, "name": name, "value": float(value)}
            )

    def of_update(self, update: int) -> dict[str, float]:
        """The last value of each metric of an update."""
        return {m["name"]: m["value"] for m in self.metrics if m["update"] == update}

    def series(self, name: str, since: int = 0) -> list[float]:
        """Values of one metric, from an update on."""
        return [m["value"] for m in self.metrics if m["name"] == name and m["update"] >= since]

    def close(self) -> None:
        """Write out what TensorBoard reads."""
        self._tensorboard.close()
