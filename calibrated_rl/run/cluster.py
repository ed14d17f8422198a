"""The running system of a job: starts engines, learner and replay store, or those of them that the job needs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
from safetensors.torch import load_file

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.inference.lockstep import LockstepScheduler
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.slots import POLICY, PROXY, SIMULATOR
from calibrated_rl.replay.actor import start_store
from calibrated_rl.replay.client import StoreClient
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.users import User, UserModel
from calibrated_rl.run.base_models import BaseModels
from calibrated_rl.run.endpoint_users import endpoint_simulator
from calibrated_rl.run.inputs import RunInputs
from calibrated_rl.run.memory import check_memory
from calibrated_rl.run.memory_plan import engines_to_plan, measure_peak_memory, with_caches
from calibrated_rl.run.proxies import Proxies
from calibrated_rl.runtime.background import BackgroundWorker
from calibrated_rl.runtime.capacity import Need, wait_for_machines
from calibrated_rl.weight_sync.object_store import FullUpdate

logger = logging.getLogger(__name__)


class Cluster:
    """The running parts of a job; made by ``start_cluster``."""

    def __init__(self, inputs: RunInputs, models: BaseModels) -> None:
        self.inputs, self.models = inputs, models
        self.config: RunConfig = inputs.config
        """The run's config, with the planned sizes of KV caches filled in where it has 0."""
        self.pools: dict[str, ReplicaPool] = {}
        """By role."""
        self.proxies = Proxies(inputs) if inputs.config.proxies else None
        self._scheduler = LockstepScheduler() if inputs.config.deterministic else None
        self._learner: LearnerGroup | None = None
        self._store: StoreClient | None = None
        self._background: BackgroundWorker | None = None
        self._collector: Collector | None = None
        self._started = ExitStack()

    @property
    def policy(self) -> ReplicaPool:
        return self.pools[POLICY]

    @property
    def simulator(self) -> ReplicaPool:
        return self.pools[SIMULATOR]

    @property
    def simulator_user(self) -> UserModel:
        """The simulator, wherever it runs."""
        return endpoint_simulator(self.inputs) or self.simulator

    @property
    def proxy(self) -> ReplicaPool | None:
        """The model that replaces the human, where there is one."""
        return self.pools.get(PROXY)

    def eval_users(self) -> Mapping[str, User]:
        """The users that policies meet in evaluation: the proxies by name, or a single one without a name. Waits until
        proxies are fitted; raises as ``Proxies.users``."""
        if self.proxies is not None:
            return self.proxies.users()
        user = self.proxy or self.inputs.human
        return {} if user is None else {"": user}

    @property
    def learner(self) -> LearnerGroup:
        assert self._learner is not None, "this job has started no learner"
        return self._learner

    @property
    def store(self) -> StoreClient:
        assert self._store is not None, "this job has started no replay store"
        return self._store

    @property
    def background(self) -> BackgroundWorker:
        assert self._background is not None, "this job has started no background worker"
        return self._background

    @property
    def collector(self) -> Collector:
        assert self._collector is not None, "the policy's engine has not been started"
        return self._collector

    def on_close(self, end: Callable[[], None]) -> None:
        """Call ``end`` before the parts that have been started up to now are ended."""
        self._started.callback(end)

    def close(self) -> None:
        """End all parts that have been started, also after a failed start: they would block the next start."""
        self._started.close()

    def start_training_parts(self) -> Need:
        """Start the replay store and the background worker; returns the store's needs of the cluster."""
        handle, need = start_store(self.config.replay)
        self._started.callback(ray.kill, handle)
        self._store = StoreClient(handle, self.inputs.folder)
        self._background = BackgroundWorker()
        self._started.callback(self._background.close)
        return need

    def start_learner(self, *other_needs: Need) -> None:
        """Start the learner's ranks, once they and ``other_needs`` have what they need of the cluster."""
        self._learner = LearnerGroup(
            self.config.learner, lambda ranks: self.wait_for_capacity(*other_needs, *ranks),
            skipped_data_folder=self.inputs.folder / "not_finite",
        )  # fmt: skip
        self._started.callback(self._learner.close)

    def plan_caches(self, served: Mapping[str, Path]) -> None:
        """Plan the sizes of KV caches that are 0 in the config; with a learner, from the memory that it leaves."""
        if self._learner is None:
            self.config = with_caches(self.config, served)
            return
        device, other_bytes = measure_peak_memory(self.config, self._learner, dict(served))
        self.config = with_caches(self.config, served, device, other_bytes)

    def start_engines(self, served: Mapping[str, Path]) -> None:
        """A pool of replicas for each role; returns at once."""
        config, models = self.config, self.models
        for role, folder in served.items():
            model = {POLICY: models.policy, SIMULATOR: models.local_simulator, PROXY: models.proxy}[role]
            assert model is not None
            side = getattr(config, role)
            replicas = 1 if role == PROXY else side.replicas
            pool = ReplicaPool(
                role, str(folder), model.chat, side.engine, replicas=replicas, lockstep=self._scheduler,
            )  # fmt: skip
            self.pools[role] = pool
            self._started.callback(pool.close)
        if POLICY in self.pools:
            self._collector = Collector(
                self.inputs.task, self.policy, config.policy.sampling, config.simulator.sampling,
                judge=self.inputs.judge,
            )  # fmt: skip

    def wait_for_capacity(self, *other_needs: Need) -> None:
        """Wait until all replicas and ``other_needs`` have what they need of the cluster."""
        needs = [need for pool in self.pools.values() for need in pool.needs()]
        wait_for_machines([*other_needs, *needs])

    def wait_until_ready(self) -> None:
        """Wait until all replicas serve."""
        for pool in self.pools.values():
            pool.wait_until_ready()

    def serve(self, role: str, folder: Path) -> None:
        """Serve the saved model in ``folder`` in the place of another of its shape, without the learner; the role's
        version counts up."""
        files, pool = sorted(folder.glob("*.safetensors")), self.pools[role]
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        pool.publish(FullUpdate.of_tensors(weights, pool.version + 1))


def start_cluster(
    inputs: RunInputs, models: BaseModels, served: Mapping[str, Path] | None = None, *, training: bool = False
) -> Cluster:
    """Start engines, and for training the other parts. Ray must be running.

    Args:
        served: the model that each role's engines begin with, of the requested roles; None: all base models.
        training: with learner, replay store and background worker. Engines may still be starting when this returns
            (``wait_until_ready``): the learner's first work runs at the same time.

    Raises:
        UserError: memory or the cluster do not allow it.
    """
    served = {role: folder.resolve() for role, folder in served.items()} if served else models.folders()
    cluster = Cluster(inputs, models)
    try:
        _start(cluster, served, training)
    except BaseException:
        cluster.close()
        raise
    return cluster


def _start(cluster: Cluster, served: Mapping[str, Path], training: bool) -> None:
    config = cluster.config
    if not training:
        cluster.plan_caches(served)
        cluster.start_engines(served)
        cluster.wait_for_capacity()
        cluster.wait_until_ready()
        return
    folders = cluster.models.folders()
    check_memory(config, folders[POLICY], folders.get(SIMULATOR), folders.get(PROXY))
    engines = "two vLLM engines" if SIMULATOR in folders else "one vLLM engine"
    logger.info(f"starting {engines}, the learner and the replay store")
    need = cluster.start_training_parts()
    planned: Sequence[str] = engines_to_plan(config)
    if planned:
        cluster.start_learner(need)
        cluster.plan_caches(served)
    cluster.start_engines(served)
    if planned:
        cluster.wait_for_capacity()
    else:
        cluster.start_learner(need)
