"""Train under faults: they are injected into a running job on a local Ray cluster of three nodes, and counted.

    python jobs/chaos.py --minutes 30 --out chaos.json

About a quarter of the faults kill an engine, an actor, a node or the driver, or hang an engine until it counts as lost;
the others pause or slow a process, or start a second job on the same run folder. In the end every group of dialogues
of the finished arms must have been learned from exactly once (as jobs/audit.py counts). Writes FILE as JSON and prints
a summary. Exit code 1: something was lost, repeated, or never recovered; 2: a wrong argument.
"""

import argparse
import logging
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil

from calibrated_rl.cli import command
from calibrated_rl.runtime import console
from calibrated_rl.settings.fields import Range, Seed

logger = logging.getLogger(__name__)

UPDATE, ARM = re.compile(r"update \d+/\d+: reward"), re.compile(r"arm \w+, seed \d+")
LIGHT_PAUSE_S = 4.0
"""Between a light fault and the next one."""
FULL = 1.5
"""Throughput has recovered with the first update that takes at most this multiple of the usual time."""
RECOVERY_TIMEOUT_S = 240.0
"""A job without an update for this long has not recovered."""
ENOUGH = 5
"""Updates before the first fault, which define the usual time."""


class JobEnded(Exception):
    """The job ended for good, although it is supervised."""


class Watch:
    """Reads the output of a job, line by line, with the times of its updates."""

    def __init__(self, job: "subprocess.Popen[str]", log: Path) -> None:
        self.updates: list[tuple[float, float]] = []
        """When each update was done, and how long after the one before (or after its arm began)."""
        self._job, self._log = job, log
        self._last = time.monotonic()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._job.stdout is not None
        with self._log.open("w", encoding="utf-8") as log:
            for line in self._job.stdout:
                read_at = time.monotonic()
                log.write(f"{read_at:.1f} {line}")
                log.flush()
                if UPDATE.search(line):
                    self.updates.append((read_at, read_at - self._last))
                if UPDATE.search(line) or ARM.search(line):
                    self._last = read_at

    def usual(self) -> float:
        """Seconds of an update before anything happened."""
        return statistics.median(seconds for _, seconds in self.updates[:ENOUGH])

    def recovered_at(self, fault_time: float, usual: float) -> float | None:
        """When throughput had recovered after ``fault_time``; None: not yet."""
        return next(
            (
                done_at
                for done_at, update_seconds in self.updates
                if done_at - update_seconds >= fault_time and update_seconds <= FULL * usual
            ),
            None,
        )


def plan(seed: int, only: Sequence[str]) -> Iterator[str]:
    """Names of faults, without end: a heavy one after every three light ones, each kind as often as the others.

    Args:
        only: kinds to choose from; none: all.
    """
    from tools.chaos import faults

    rng = random.Random(seed)
    choices = [
        ([fault_kind for fault_kind in sorted(kinds) if fault_kind in only or not only], count)
        for kinds, count in ((faults.LIGHT, 3), (faults.HEAVY, 1))
    ]
    remaining: list[list[str]] = [[], []]
    while True:
        for (kinds, count), remaining_kinds in zip(choices, remaining, strict=True):
            for _ in range(count if kinds else 0):
                if not remaining_kinds:
                    remaining_kinds.extend(rng.sample(kinds, len(kinds)))
                yield remaining_kinds.pop()


def main() -> int:
    assert __doc__ is not None
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "--minutes",
        type=command.allowed(Annotated[float, Range(above=0)]),
        default=30.0,
        help="how long (default: 30)",
    )
    parser.add_argument("--out", type=command.result_file(), required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--config", default="configs/chaos.yaml", help="the run to train (default: %(default)s)")
    parser.add_argument(
        "--runs", type=command.result_folder, default=Path("runs"), help="folder of all runs (default: runs)"
    )
    parser.add_argument("--seed", type=command.allowed(Seed), default=0, help="of the order of the faults (default: 0)")
    parser.add_argument("--only", action="append", default=[], metavar="KIND", help="this kind alone; may be repeated")
    arguments = parser.parse_args()

    from calibrated_rl.config.load import load_config
    from calibrated_rl.errors import UserError
    from calibrated_rl.storage.files import write_json
    from tools.chaos import faults

    if unknown := set(arguments.only) - {*faults.HEAVY, *faults.LIGHT}:
        kinds = ", ".join(sorted({*faults.HEAVY, *faults.LIGHT}))
        raise UserError(f"there is no fault '{min(unknown)}'; kinds: {kinds}")
    run = arguments.runs / load_config(arguments.config).name
    if run.exists():
        raise UserError(f"{run} exists already: remove it, so that only this job is counted")
    result = chaos(arguments, run)
    write_json(arguments.out, result)
    console.result(summary(result))
    console.result(f"results: {arguments.out.resolve()}; output of the job: {(run / 'chaos.log').resolve()}")
    return 1 if result["lost"] or result["repeated"] or result["never_recovered"] else 0


def chaos(arguments: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Start cluster and job, inject faults until the time is up, stop both, count."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # No CPUs on the head: every part that reserves some runs on the workers, which are killed.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 300 * 2**20})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    seeds = ",".join(map(str, range(1000)))
    # Faults hit the engine and the replica that serves it, each for itself.
    command = [
        "-u", "jobs/compare.py", arguments.config, f"seeds=[{seeds}]", "policy.engine.own_process=true",
        "simulator.engine.own_process=true", "--runs", str(arguments.runs), "--hardware", "cpu", "--supervise", "1000",
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    job = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )  # fmt: skip
    run.mkdir(parents=True)
    try:
        return inject(arguments, Watch(job, run / "chaos.log"), job, command, cluster, run)
    finally:
        for child in psutil.Process(job.pid).children(recursive=True):
            child.kill()
        job.kill()
        cluster.shutdown()


def inject(
    arguments: argparse.Namespace, watch: Watch, job: "subprocess.Popen[str]", command: list[str], cluster: "Any",
    run: Path,
) -> dict[str, Any]:  # fmt: skip
    """Inject faults one after the other; wait for recovery after a heavy one."""
    from calibrated_rl.run.audit import audit_run
    from tools.chaos import faults

    rng = random.Random(arguments.seed)

    def lose_node() -> None:
        nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
        cluster.remove_node(rng.choice(nodes), allow_graceful=False)
        cluster.add_node(num_cpus=1)

    target = faults.Target(psutil.Process(), job, command, lose_node)
    wait_for(lambda: len(watch.updates) >= ENOUGH, 600, job)
    usual, began = watch.usual(), time.monotonic()
    logger.info(f"an update takes {usual:.1f} s; faults for {arguments.minutes:g} minutes")
    injected: Counter[str] = Counter()
    absent: Counter[str] = Counter()
    recoveries: list[float] = []
    never = 0

    def fault(kind: str) -> None:
        """Inject one fault; after a heavy one wait for recovery."""
        nonlocal never
        injected_at = time.monotonic()
        try:
            (faults.HEAVY | faults.LIGHT)[kind](target)
        except (faults.NotThere, psutil.NoSuchProcess):
            absent[kind] += 1
            time.sleep(1)
            return
        injected[kind] += 1
        if kind in faults.LIGHT:
            time.sleep(LIGHT_PAUSE_S)
            return
        wait_for(lambda: watch.recovered_at(injected_at, usual) is not None, RECOVERY_TIMEOUT_S, job)
        if (recovered_time := watch.recovered_at(injected_at, usual)) is not None:
            recoveries.append(recovered_time - injected_at)
            logger.info(
                f"{kind}: throughput recovered after {recovered_time - injected_at:.0f} s "
                f"({sum(injected.values())} faults)"
            )
        else:
            never += 1
            logger.warning(f"{kind}: throughput did not recover within {RECOVERY_TIMEOUT_S:.0f} s")

    for kind in plan(arguments.seed, arguments.only):
        if time.monotonic() - began > 60 * arguments.minutes:
            break
        try:
            wait_for(lambda: True, 0, job)
            fault(kind)
        except (JobEnded, faults.NotRefused) as problem:  # what was counted so far is not to be lost
            never += 1
            logger.error(f"{kind}: {problem}")
            break
    accounts = audit_run(run)
    problems = [f"{account.name}: {problem}" for account in accounts for problem in account.problems]
    return {
        "faults": dict(sorted(injected.items())),
        "not_there": dict(absent),
        "recovered": sum(injected.values()) - never,
        "never_recovered": never,
        "lost": sum("neither handed out nor dropped" in p or "missing" in p for p in problems),
        "repeated": sum("times" in p for p in problems),
        "problems": problems,
        "arms_finished": len(accounts),
        "groups": {"requested": sum(a.requested for a in accounts), "delivered": sum(a.delivered for a in accounts),
                   "dropped": dict(sum((Counter(a.dropped) for a in accounts), Counter()))},
        "seconds_an_update": usual,
        "seconds_to_full_throughput": {
            "median": statistics.median(recoveries) if recoveries else None, "max": max(recoveries, default=None),
        },
        "minutes": (time.monotonic() - began) / 60,
    }  # fmt: skip


def wait_for(condition: "Any", seconds: float, job: "subprocess.Popen[str]") -> bool:
    """Whether ``condition`` came true in time.

    Raises:
        JobEnded: the job ended, which it should not.
    """
    deadline = time.monotonic() + seconds
    while True:
        if job.poll() is not None:
            raise JobEnded(f"the job ended with {job.returncode}")
        if condition():
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def summary(result: dict[str, Any]) -> str:
    width = shutil.get_terminal_size().columns
    kinds = ", ".join(f"{kind} {count}" for kind, count in result["faults"].items())
    speed = result["seconds_to_full_throughput"]
    lines = [
        f"{sum(result['faults'].values())} faults in {result['minutes']:.1f} minutes: {kinds}",
        f"recovered {result['recovered']}, never {result['never_recovered']}; lost {result['lost']}, "
        f"repeated {result['repeated']} of {result['groups']['requested']} groups in {result['arms_finished']} arms",
    ]
    if speed["median"] is not None:
        lines.append(f"seconds to full throughput: median {speed['median']:.0f}, at most {speed['max']:.0f}")
    lines += result["problems"][:10]
    return "\n".join(line if len(line) < 3 * width else line[: 3 * width] for line in lines)
