"""Work beside training that must not slow it down: one process with one thread at the lowest priority; and a thread of
the driver that writes files."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError

from calibrated_rl.errors import PartLost, UserError, first_line, printable

logger = logging.getLogger(__name__)


class _Yielding:
    """A process with the lowest priority on its machine, also while it imports libraries for its work."""

    def __init__(self) -> None:
        if hasattr(os, "SCHED_IDLE"):  # Linux; elsewhere Ray's own lower priority of workers must suffice
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class BackgroundWorker:
    """Runs functions one after the other. It is started once: a Ray task would begin with seconds of imports, each
    time, at the priority of everything else."""

    def __init__(self) -> None:
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 3}
        environment = {"env_vars": {"OMP_NUM_THREADS": "1"}}
        self._actor = ray.remote(_Yielding).options(**options, runtime_env=environment).remote()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A reference to what ``function(*arguments)`` will return; function and result must pickle."""
        return self._actor.run.remote(function, *arguments)

    def fetch(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """The results of calls that were started with ``run``.

        Raises:
            PartLost: the process or its input is lost, or it took longer than ``timeout_s``.
        """
        try:
            return list(ray.get(list(references), timeout=timeout_s))
        except (RayActorError, ObjectLostError, GetTimeoutError) as error:
            raise PartLost(f"work beside training is lost: {first_line(error)}") from error

    def close(self) -> None:
        """End the process; unfinished work is lost."""
        ray.kill(self._actor)


class BackgroundWriter:
    """Writes files in a thread while training continues, one job at a time.

    A job that cannot be written (a full disk, an unreachable store, data lost with its machine) is abandoned with a
    warning: the files that protect a run must not end it. Every other error is a bug of this program and is raised by
    the next call.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background-writer")
        self._last: Future[None] | None = None

    def write(self, *jobs: tuple[str, Callable[[], None]]) -> None:
        """Start ``jobs``, each with its name in the log, once those of the last call are done. The next one
        runs although one has failed."""
        self.wait()
        self._last = self._thread.submit(self._run_all, jobs)

    def wait(self) -> None:
        """Wait until nothing is being written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _run_all(self, jobs: Sequence[tuple[str, Callable[[], None]]]) -> None:
        for name, job in jobs:
            began = time.monotonic()
            try:
                job()
            except (OSError, RayError, UserError) as error:
                logger.warning(f"{name} could not be written, and the run continues: {printable(first_line(error))}")
            else:
                logger.debug(f"wrote {name} in the background ({time.monotonic() - began:.1f} s)")
