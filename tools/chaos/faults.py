"""The faults of jobs/chaos.py: each finds processes of a running job and kills, stops or disturbs them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from calibrated_rl.weight_sync.buckets import MEMORY_NAME

ROLE = "CALIBRATED_RL_ROLE"
ACTORS = {"learner": "ray::RankActor", "store": "ray::ReplayService"}
SLOWED, SLOW_S = 20, 5.0
"""Slowdown factor, and its duration."""
PAUSE_S, HANG_S = 3.0, 45.0
"""A pause ends before the process counts as lost, a hang after that (engine.timeout_seconds is 20)."""


class NotThere(Exception):
    """The fault's victim is not running at the moment."""


class NotRefused(Exception):
    """A second job was not refused."""


@dataclass
class Target:
    """The processes that faults act on."""

    root: psutil.Process
    """All processes of cluster and job descend from it."""
    job: "subprocess.Popen[str]"
    """The watcher (--supervise) of the job's driver."""
    command: Sequence[str]
    """The job's command line."""
    lose_node: Callable[[], None]
    """Kills a worker node, which replicas or the learner run on, and adds a fresh one."""

    def actor(self, name: str) -> psutil.Process:
        """The process of the actor ``name``: learner, store, or a role of replicas."""
        for process in self._all():
            title = (process.cmdline() or [""])[0]
            if name in ACTORS and title.startswith(ACTORS[name]):
                return process
            if name not in ACTORS and title.startswith("ray::ReplicaActor") and process.environ().get(ROLE) == name:
                return process
        raise NotThere(name)

    def engine(self, role: str) -> psutil.Process:
        """vLLM's own process in a replica of ``role``."""
        for child in self.actor(role).children(recursive=True):
            if "EngineCore" in child.name():
                return child
        raise NotThere(f"engine of {role}")

    def driver(self) -> psutil.Process:
        for child in psutil.Process(self.job.pid).children():
            return child
        raise NotThere("driver")

    def _all(self) -> list[psutil.Process]:
        return self.root.children(recursive=True)


def _stopped(process: psutil.Process, seconds: float) -> None:
    process.suspend()
    threading.Timer(seconds, lambda: _resume(process)).start()


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it was killed meanwhile
        process.resume()


def _slowed(process: psutil.Process) -> None:
    """Let the process run a twentieth of the time for ``SLOW_S`` seconds."""

    def throttle() -> None:
        end = time.monotonic() + SLOW_S
        while time.monotonic() < end and process.is_running():
            process.send_signal(signal.SIGSTOP)
            time.sleep(0.1)
            process.send_signal(signal.SIGCONT)
            time.sleep(0.1 / (SLOWED - 1))

    threading.Thread(target=lambda: _quietly(throttle), daemon=True).start()


def _quietly(action: Callable[[], Any]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # killed by another fault
        action()


SYNC_WAIT_S = 20.0


def break_weight_sync(target: Target) -> None:
    """Truncate the memory through which a replica sends weights to its engine, sometimes during a transfer.

    Raises:
        NotThere: no replica used such memory for ``SYNC_WAIT_S`` seconds.
    """
    deadline = time.monotonic() + SYNC_WAIT_S
    while time.monotonic() < deadline:
        for role in ("policy", "simulator"):
            with contextlib.suppress(NotThere, FileNotFoundError):  # it has ended meanwhile
                for file in Path(f"/proc/{target.actor(role).pid}/fd").iterdir():
                    if f"memfd:{MEMORY_NAME}" in os.readlink(file) and (size := file.stat().st_size) > 1:
                        os.truncate(file, size // 2)
                        return
        time.sleep(0.1)
    raise NotThere("weights on their way")


FULL_DISK_S = 8.0
MAX_FILE_BYTES = {"store": 2048, "learner": 2**20, "driver": 2**20}
"""The largest file that each process may write while its disk is full; more for those that keep a log."""


def full_disk(target: Target) -> None:
    """Nothing can be written for a while, as on a full disk: the operating system refuses larger files."""
    processes = {"store": target.actor("store"), "learner": target.actor("learner"), "driver": target.driver()}
    limits = {name: process.rlimit(psutil.RLIMIT_FSIZE) for name, process in processes.items()}
    for name, process in processes.items():
        process.rlimit(psutil.RLIMIT_FSIZE, (MAX_FILE_BYTES[name], limits[name][1]))

    def restore_limits() -> None:
        for name, process in processes.items():
            _quietly(partial(process.rlimit, psutil.RLIMIT_FSIZE, limits[name]))

    threading.Timer(FULL_DISK_S, restore_limits).start()


def second_driver(target: Target) -> None:
    """A second job on the same run folder must be refused.

    Raises:
        NotRefused: it was not.
    """
    process = subprocess.run(
        [sys.executable, *target.command], capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2]
    )
    refused = process.returncode == 2 and "is being written by another job" in process.stderr
    if not refused:
        raise NotRefused(f"a second job was not refused: {process.returncode} {process.stderr[-500:]}")


HEAVY: dict[str, Callable[[Target], None]] = {
    "kill_policy_replica": lambda t: t.actor("policy").kill(),
    "kill_simulator_replica": lambda t: t.actor("simulator").kill(),
    "kill_policy_engine": lambda t: t.engine("policy").kill(),
    "kill_simulator_engine": lambda t: t.engine("simulator").kill(),
    "kill_learner": lambda t: t.actor("learner").kill(),
    "kill_store": lambda t: t.actor("store").kill(),
    "kill_driver": lambda t: t.driver().kill(),
    "kill_node": lambda t: t.lose_node(),
    "hang_policy_engine": lambda t: _stopped(t.engine("policy"), HANG_S),
    "hang_simulator_engine": lambda t: _stopped(t.engine("simulator"), HANG_S),
    "break_weight_sync": break_weight_sync,
}
LIGHT: dict[str, Callable[[Target], None]] = {
    "pause_policy_engine": lambda t: _stopped(t.engine("policy"), PAUSE_S),
    "pause_simulator_engine": lambda t: _stopped(t.engine("simulator"), PAUSE_S),
    "pause_policy_replica": lambda t: _stopped(t.actor("policy"), PAUSE_S),
    "pause_learner": lambda t: _stopped(t.actor("learner"), PAUSE_S),
    "pause_store": lambda t: _stopped(t.actor("store"), PAUSE_S),
    "slow_policy_engine": lambda t: _slowed(t.engine("policy")),
    "slow_simulator_engine": lambda t: _slowed(t.engine("simulator")),
    "full_disk": full_disk,
    "second_driver": second_driver,
}
