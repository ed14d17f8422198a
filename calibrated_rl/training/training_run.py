"""A run in training: its inputs and models, the running cluster, and what the arms share."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from calibrated_rl.calibration.sft import log_samples
from calibrated_rl.config.run_config import RunConfig, to_yaml
from calibrated_rl.data.dialogue import Side, Split
from calibrated_rl.inference.elastic import Elastic
from calibrated_rl.learner.losses.check import resolve_loss
from calibrated_rl.learner.slots import POLICY, PROXY, SIMULATOR
from calibrated_rl.rollout.collector import freeze_loaded_objects
from calibrated_rl.rollout.parity import check_parity
from calibrated_rl.run.base_models import BaseModels, prepare_models
from calibrated_rl.run.cluster import Cluster, start_cluster
from calibrated_rl.run.fits import Fits
from calibrated_rl.run.inputs import RunInputs, read_inputs
from calibrated_rl.run.machine import start_ray
from calibrated_rl.run.served_simulator import ServedSimulator
from calibrated_rl.run.start_policy import StartPolicy
from calibrated_rl.run.writer import RunWriter
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.training.arm_run import ArmRun

logger = logging.getLogger(__name__)

LOGS_FOR_PARITY = 64
"""The parity check takes the longest of this many logs."""


@dataclass(kw_only=True)
class TrainingRun:
    """What an arm trains on; made by ``training_run``."""

    inputs: RunInputs
    models: BaseModels
    cluster: Cluster
    fits: Fits
    start: StartPolicy
    """The policy that every arm starts from."""
    simulator: ServedSimulator
    writer: RunWriter
    _parity: dict[str, float] | None = field(default=None, init=False)

    def begin(self, arm: str, seed: int, *, single_turns: bool = False) -> ArmRun:
        """One arm with one seed, at its start or at its last checkpoint. ``single_turns``: it learns from single turns,
        not from whole dialogues."""
        return ArmRun(self, arm, seed, single_turns=single_turns)

    def elastic(self) -> Elastic:
        """What scales the replicas of both sides while an arm trains."""
        config = self.cluster.config
        sides = {POLICY: config.policy, SIMULATOR: config.simulator}
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


@contextmanager
def started(config: RunConfig, folder: Path, progress: Progress) -> Iterator[TrainingRun]:
    """Start the whole system of a run, with Ray; its settings lie in ``folder``. In the end all but Ray is stopped.

    Raises:
        UserError: as ``read_inputs``, ``prepare_models`` and ``training_run``.
        PartLost: as ``training_run``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = read_inputs(config, folder, progress)
    models = prepare_models(inputs)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    start_ray()
    try:
        with training_run(inputs, models) as run:
            yield run
    finally:
        progress.close()


@contextmanager
def training_run(inputs: RunInputs, models: BaseModels) -> Iterator[TrainingRun]:
    """Start all that training needs, bring the models to their starting point, and stop it all. Ray must be running.

    Raises:
        UserError: memory, the cluster or a model do not allow it.
        PartLost: a process that the run cannot continue without died.
    """
    config = inputs.config
    with ExitStack() as stack:
        cluster = start_cluster(inputs, models, training=True)
        stack.callback(cluster.close)
        writer = RunWriter(config, inputs.folder)
        stack.callback(writer.close)  # first: a checkpoint of a run that is going down is worth waiting for
        if not cluster.store.folder("logs").is_dir():
            cluster.store.open("logs")
            cluster.store.append([log for split in Split for log in inputs.logs[split]])
        if cluster.proxies is not None:
            cluster.proxies.start_fitting()
        fits = Fits(inputs, models, cluster.learner)
        loss = resolve_loss((config.training.loss, dict(config.training.loss_config)))
        stays_loaded = loss.needs_reference or config.shift.every > 0
        start = StartPolicy(inputs, models, cluster.learner, fits, stays_loaded=stays_loaded)
        uncalibrated = fits.uncalibrated_simulator()
        start.load()
        cluster.wait_until_ready()
        if cluster.proxy is not None:
            _serve_proxy(cluster, fits)
        freeze_loaded_objects()
        simulator = ServedSimulator(inputs.folder, uncalibrated, cluster.learner, cluster.simulator)
        yield TrainingRun(
            inputs=inputs, models=models, cluster=cluster, fits=fits, start=start, simulator=simulator, writer=writer
        )


def _serve_proxy(cluster: Cluster, fits: Fits) -> None:
    assert cluster.proxy is not None
    cluster.learner.load(PROXY, fits.proxy(), trainable=False)
    cluster.proxy.publish(cluster.learner.weight_update(PROXY, 1))
    cluster.learner.unload(PROXY)
