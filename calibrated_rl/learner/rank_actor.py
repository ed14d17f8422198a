"""A process of the learner: the Ray actor of one rank, a thin shell around ``LearnerRank``."""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack

import ray

from calibrated_rl.errors import UserError
from calibrated_rl.learner.checkpoint import Snapshot
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.rank import LearnerRank
from calibrated_rl.learner.world import free_port
from calibrated_rl.runtime.node_folder import NodeFolder

FILES = "files"
"""The concurrency group of calls to a rank that run beside the others."""
P = ParamSpec("P")
T = TypeVar("T")


class LoadOptions(TypedDict, total=False):
    """How a model is loaded; the defaults are those of ``LearnerRank.load``."""

    trainable: bool
    optimizer: OptimizerConfig | None
    seed: int
    full_finetuning: bool
    """Train all weights, though ``LearnerConfig.lora`` may name the model."""
    value_head: bool
    """The model predicts values, see ``value_head.py``; its head is in the folder, or new."""


class RankActor:
    """A process for one rank; the rank numbers are assigned when all processes run."""

    def __init__(self, config: LearnerConfig) -> None:
        self._config = config
        self._rank: LearnerRank | None = None
        self._snapshot: Snapshot | None = None

    def address(self) -> tuple[str, int]:
        return ray.util.get_node_ip_address(), free_port()

    def join(self, rank: int, address: str, port: int) -> None:
        self._rank = LearnerRank(self._config, rank, address, port)

    def call(
        self, method: Callable[Concatenate[LearnerRank, P], T], *arguments: P.args, **options: P.kwargs
    ) -> UserError | T | None:
        """Call a method of ``LearnerRank``. Ranks other than 0 return nothing: all results are alike.

        A ``UserError`` is returned, not raised: it is an answer, which Ray would print as a crash.
        """
        rank = self._joined()
        try:
            result = method(rank, *arguments, **options)
        except UserError as error:
            return error
        return result if rank.world.rank == 0 else None

    def load(self, name: str, folder: NodeFolder, **options: Unpack[LoadOptions]) -> UserError | None:
        rank = self._joined()
        try:
            rank.load(name, folder.fetch(), base=folder.path, **options)
        except UserError as error:
            return error
        return None

    def restore(self, folder: NodeFolder) -> UserError | None:
        rank = self._joined()
        try:
            rank.restore(folder.fetch())
        except UserError as error:
            return error
        return None

    def save(self, name: str, folder: NodeFolder) -> UserError | None:
        """All ranks take part; the first one writes."""
        rank = self._joined()
        try:
            if rank.world.rank == 0:
                folder.write(lambda path: rank.save(name, path))
            else:
                rank.save(name, folder.path)
        except UserError as error:
            return error
        return None

    def _joined(self) -> LearnerRank:
        assert self._rank is not None, "the rank has not joined the others"
        return self._rank

    def take_snapshot(self, names: list[str]) -> UserError | None:
        """Copy the models; rank 0 keeps the copy."""
        try:
            self._snapshot = self._joined().snapshot(names)
        except UserError as error:
            return error
        return None

    @ray.method(concurrency_group=FILES)
    def write_snapshot(self, folder: NodeFolder) -> OSError | None:
        """Write the snapshot, beside the rank's other calls; returns the error if it could not be written there."""
        snapshot, self._snapshot = self._snapshot, None
        assert snapshot is not None, "no snapshot was taken, or this is not rank 0"
        try:
            folder.write(snapshot.write)
        except (OSError, UserError) as error:
            return OSError(str(error))  # some subclasses contain what cannot be pickled
        return None


def rank_options(config: LearnerConfig, cluster_gpus: float) -> dict[str, Any]:
    """The Ray options of a rank, in a cluster that has ``cluster_gpus`` at the moment.

    Raises:
        UserError: several ranks would share a GPU.
    """
    gpus = config.gpus if cluster_gpus > 0 or config.labels else 0
    if gpus and config.ranks > 1 and gpus <= 0.5:
        raise UserError(f"learner.gpus is {gpus}: {config.ranks} ranks need a GPU each, so set it to 1")
    environment = {"OMP_NUM_THREADS": str(config.threads), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if not gpus:
        # torch allocates large tensors in pages of 2 MiB: fresh memory in pages of 4 KiB costs several times what is
        # written to it, and every step allocates it again.
        environment |= {"DS_ACCELERATOR": "cpu", "THP_MEM_ALLOC_ENABLE": "1"}
        # Threads that wait for each other spin before they sleep. Where another process uses a core, such as an
        # engine that starts, long spinning keeps the threads from running (small steps took up to 13 times as long);
        # where none does, sleeping at once costs a third. 1000 iterations are a few microseconds. This is a variable
        # of GNU's OpenMP, which torch uses.
        environment["GOMP_SPINCOUNT"] = "1000"
    options = {"num_cpus": config.cpus, "num_gpus": gpus, "runtime_env": {"env_vars": environment}}
    return options | ({"label_selector": dict(config.labels)} if config.labels else {})
