"""Scales the replicas of both sides during training: measures the load, asks ``Scaler``, resizes the pools."""

import logging
import time
from collections.abc import Mapping

from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.scaling import Scaler, ScalingConfig, SideObservation, UpdateObservation

logger = logging.getLogger(__name__)


class Elastic:
    """The replicas of one arm in training. Nothing measured in another arm is used: its dialogues differ."""

    def __init__(
        self,
        pools: Mapping[str, ReplicaPool],
        configs: Mapping[str, ScalingConfig],
        bounds: Mapping[str, tuple[int, int]],
    ) -> None:
        """
        Args:
            bounds: fewest and most replicas of each side; where the two are equal for both sides, nothing is scaled.
        """
        self._pools = pools
        varies = any(minimum < maximum for minimum, maximum in bounds.values())
        self._scaler = Scaler(configs, bounds) if varies else None
        self._turn_seconds = dict.fromkeys(pools, 0.0)
        self.rollouts_begin()

    def rollouts_begin(self) -> None:
        """Count what is in flight towards the next update from here on."""
        for pool in self._pools.values():
            pool.load.take()

    def rollouts_end(self) -> None:
        """Stop counting: what is in flight from here on, such as for measuring shift, belongs to no update."""
        self._turn_seconds = {name: pool.load.take() for name, pool in self._pools.items()}

    def after_update(self, seconds_rollout: float, seconds_learning: float, seconds: float) -> dict[str, float]:
        """Decide how many replicas there should be, and let the pools begin to change; nothing waits for that.

        Args:
            seconds_rollout: for which dialogues were in flight, of the update that is done.
            seconds_learning: with the sync of the weights.
            seconds: of the whole update; less than both together where they overlap.

        Returns:
            metrics: by side, replicas in service during the update, and how long turns were in flight on them while
            rollouts ran, in turn-seconds: what dialogues waited for.
        """
        counts = {name: pool.counts() for name, pool in self._pools.items()}
        if self._scaler is not None:
            sides = {
                name: SideObservation(
                    ready=ready, starting=starting, lost=lost,
                    in_flight=self._turn_seconds[name] / max(seconds_rollout, 1e-9),
                )
                for name, (ready, starting, lost) in counts.items()
            }  # fmt: skip
            decision = self._scaler.decide(
                UpdateObservation(
                    at=time.monotonic(), seconds=seconds, seconds_rollout=seconds_rollout,
                    seconds_learning=seconds_learning, sides=sides,
                )
            )  # fmt: skip
            if decision.reason:
                logger.info(decision.reason)
            for name, target in decision.targets.items():
                change = target - sides[name].count
                self._pools[name].grow(max(0, change))
                self._pools[name].shrink(max(0, -change))
        seconds_in_turns = {f"seconds_in_turns_{name}": seconds for name, seconds in self._turn_seconds.items()}
        return {f"replicas_{name}": float(ready) for name, (ready, _, _) in counts.items()} | seconds_in_turns
