"""Work beside training that must not slow it down: a Ray task with one thread, on what the cores have left over."""

import os
from collections.abc import Callable
from typing import Any

import ray


def beside_training(function: Callable[..., Any]) -> Any:
    """``function`` as a Ray task (``.remote(...)``) that yields to everything else on its machine.

    A worker process of its own kind runs it, since the settings of the process stay changed.
    """

    def yielding(*arguments: Any, **named: Any) -> Any:
        if hasattr(os, "SCHED_IDLE"):  # Linux; elsewhere Ray's own lower priority of workers has to do
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return function(*arguments, **named)

    return ray.remote(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "BESIDE_TRAINING": "1"}})(yielding)
