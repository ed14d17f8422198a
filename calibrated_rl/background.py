"""Work beside training that must not slow it down: Ray tasks with one thread, on what the cores have left over; and a
thread of the driver that writes files."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

from calibrated_rl.errors import UserError, first_line, printable


def beside_training(function: Callable[..., Any]) -> Any:
    """``function`` as a Ray task (``.remote(...)``) that yields to everything else on its machine.

    A worker process of its own kind runs it, since the settings of the process stay changed.
    """

    def yielding(*arguments: Any, **named: Any) -> Any:
        if hasattr(os, "SCHED_IDLE"):  # Linux; elsewhere Ray's own lower priority of workers has to do
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return function(*arguments, **named)

    return ray.remote(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "BESIDE_TRAINING": "1"}})(yielding)


class Scribe:
    """Writes files in a thread while training goes on, one thing at a time.

    What cannot be written (a full disk, a store out of reach, data that went with its machine) is said and given up:
    a run must not end by what was to keep it safe. Every other error is a mistake of this program and comes up with
    the next call.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scribe")
        self._last: Future[None] | None = None

    def write(self, *jobs: tuple[str, Callable[[], None]]) -> None:
        """Start ``jobs``, each with its name in the log, once those of the last call are done. One that fails does not
        keep the next from its turn."""
        self.wait()
        self._last = self._thread.submit(self._each, jobs)

    def wait(self) -> None:
        """Until nothing is being written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _each(self, jobs: Sequence[tuple[str, Callable[[], None]]]) -> None:
        for what, job in jobs:
            try:
                job()
            except (OSError, RayError, UserError) as error:
                self._say(f"{what} could not be written, and the run goes on: {printable(first_line(error))}")
