"""Work beside training that must not slow it down: one process with one thread, on what the cores have left over."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError

from calibrated_rl.errors import PartLost, first_line


class _Yielding:
    """A process that yields to everything else on its machine, also while it imports what its work needs."""

    def __init__(self) -> None:
        if hasattr(os, "SCHED_IDLE"):  # Linux; elsewhere Ray's own lower priority of workers has to do
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class BesideTraining:
    """Runs functions one after the other. It is started once: a Ray task would begin with seconds of imports, each
    time, at the priority of everything else."""

    def __init__(self) -> None:
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
        environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        self._actor = ray.remote(_Yielding).options(**options, runtime_env=environment).remote()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A reference to what ``function(*arguments)`` will return; both must be fit to be sent."""
        return self._actor.run.remote(function, *arguments)

    def fetch(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """What was started with ``run``.

        Raises:
            PartLost: the process or what it was given is gone, or it took longer than ``timeout_s``.
        """
        try:
            return list(ray.get(list(references), timeout=timeout_s))
        except (RayActorError, ObjectLostError, GetTimeoutError) as error:
            raise PartLost(f"work beside training is lost: {first_line(error)}") from error

    def close(self) -> None:
        """End the process; what it has not finished is lost."""
        ray.kill(self._actor)
