"""The parts of a run in training that its arms share."""

import logging
import time
from dataclasses import dataclass, field
from functools import cached_property

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.health.counting import SimulatorHealth
from calibrated_rl.inference.elastic import Elastic
from calibrated_rl.learner.slots import POLICY, SIMULATOR
from calibrated_rl.rollout.parity import check_parity
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.cluster import Cluster
from calibrated_rl.run.fits import Fits
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.run.served_simulator import ServedSimulator
from calibrated_rl.run.start_policy import StartPolicy
from calibrated_rl.run.writer import RunWriter

logger = logging.getLogger(__name__)

LOGS_FOR_PARITY = 64
"""The parity check takes the longest of this many logs."""


@dataclass(kw_only=True)
class RunParts:
    """What all arms of a run share."""

    inputs: RunInputs
    models: BaseModels
    cluster: Cluster
    fits: Fits
    start: StartPolicy
    """The policy that every arm starts from."""
    simulator: ServedSimulator
    writer: RunWriter
    _parity: dict[str, float] | None = field(default=None, init=False)

    @cached_property
    def health(self) -> SimulatorHealth:
        """The detectors of simulator health, which have learned from the calibration logs."""
        inputs = self.inputs
        logs, names = inputs.logs, inputs.config.health.detectors
        return SimulatorHealth(inputs.task, names, logs[Split.CALIBRATION], logs[Split.MONITOR])

    def elastic(self) -> Elastic:
        """What scales the replicas of both sides while an arm trains."""
        config = self.cluster.config
        sides = {POLICY: config.policy} | ({SIMULATOR: config.simulator} if SIMULATOR in self.cluster.pools else {})
        return Elastic(
            {role: self.cluster.pools[role] for role in sides},
            {role: side.scaling for role, side in sides.items()},
            {role: side.replica_bounds for role, side in sides.items()},
        )

    def check_parity(self) -> dict[str, float]:
        """At the first call, compare the log-probs of learner and engine on both sides, which have the same weights by
        then; later calls return the same metrics, in nats a token.

        Raises:
            UserError: they differ by more than rounding.
        """
        if self._parity is not None:
            return self._parity
        began = time.monotonic()
        logs, config = self.inputs.logs[Split.CALIBRATION][:LOGS_FOR_PARITY], self.cluster.config
        metrics = self._parity = {}
        differences: list[str] = []
        for role, side in ((POLICY, Side.POLICY), (SIMULATOR, Side.USER)):
            if role not in self.cluster.pools:
                continue  # behind an endpoint: it has no weights that could differ
            pool, settings = self.cluster.pools[role], getattr(config, role)
            views = [sample.tokens for sample in log_samples(logs, side, pool.tokens)]
            dtypes = (config.learner.dtype, settings.engine.dtype)
            difference = check_parity(self.cluster.learner, pool, views, model=settings.model, dtypes=dtypes)
            if difference is not None:
                metrics |= {f"parity_mean_{role}": difference.mean, f"parity_max_{role}": difference.max}
                differences.append(f"{role} {difference.mean:.1e} on average and {difference.max:.1e} at most")
        if metrics:
            elapsed = f"{time.monotonic() - began:.1f} s"
            logger.info(
                f"learner and engines agree ({elapsed}): log-probs differ by {', '.join(differences)}, in nats a token"
            )
        return metrics
