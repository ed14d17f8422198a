"""A run in training: its inputs and models, the running cluster, and what the arms share."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibrated_rl.config.load import to_yaml
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.data.dialogue import Split
from calibrated_rl.learner.losses.check import resolve_loss
from calibrated_rl.learner.slots import PROXY
from calibrated_rl.run.base_models import BaseModels, prepare_models
from calibrated_rl.run.cluster import Cluster, start_cluster
from calibrated_rl.run.fits import Fits
from calibrated_rl.run.inputs import RunInputs, read_inputs
from calibrated_rl.run.machine import start_ray
from calibrated_rl.run.served_simulator import EndpointSimulator, ServedSimulator
from calibrated_rl.run.start_policy import StartPolicy
from calibrated_rl.run.writer import RunWriter
from calibrated_rl.runtime.garbage import freeze_loaded_objects
from calibrated_rl.runtime.progress import Progress
from calibrated_rl.training.arm_run import ArmRun
from calibrated_rl.training.run_parts import RunParts

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingRun(RunParts):
    """What an arm trains on; made by ``training_run``."""

    def begin(self, arm: str, seed: int, *, single_turns: bool = False) -> ArmRun:
        """One arm with one seed, at its start or at its last checkpoint. ``single_turns``: it learns from single turns,
        not from whole dialogues."""
        return ArmRun(self, arm, seed, single_turns=single_turns)


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
        inputs.endpoints.close()
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
        losses = [resolve_loss(config.training.loss_of(arm)) for arm in ("", *config.training.loss_configs)]
        stays_loaded = config.shift.every > 0 or any(loss.needs_reference for loss in losses)
        start = StartPolicy(inputs, models, cluster.learner, fits, stays_loaded=stays_loaded)
        uncalibrated = None if models.local_simulator is None else fits.uncalibrated_simulator()
        start.load()
        cluster.wait_until_ready()
        if cluster.proxy is not None:
            _serve_proxy(cluster, fits)
        freeze_loaded_objects()
        simulator = (
            EndpointSimulator(cluster.simulator_user)
            if uncalibrated is None
            else ServedSimulator(inputs.folder, uncalibrated, cluster.learner, cluster.simulator)
        )
        yield TrainingRun(
            inputs=inputs, models=models, cluster=cluster, fits=fits, start=start, simulator=simulator, writer=writer
        )


def _serve_proxy(cluster: Cluster, fits: Fits) -> None:
    assert cluster.proxy is not None
    cluster.learner.load(PROXY, fits.proxy(), trainable=False)
    cluster.proxy.publish(cluster.learner.weight_update(PROXY, 1))
    cluster.learner.unload(PROXY)
