"""Parts that wait for room in the cluster: what waits is said, and where room can never come, the run ends.

- After ``FIRST_S`` seconds, and then every ``EVERY_S``, one line says what has no room or has not started yet, and what
  the cluster has.
- It is a user's error if the machines are too few or too small whatever else runs on them, and none can come: all were
  started by hand, none has been lost, and their number has not changed for ``SETTLED_S``.
- A cluster that may add machines is waited for without end: Ray knows only when it has them which ones can come.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from calibrated_rl.errors import UserError

logger = logging.getLogger(__name__)

FIRST_S = 15.0
"""Processes take less to start where there is room, except on a busy machine."""
EVERY_S = 60.0
SETTLED_S = 30.0
"""Machines that are started together join a cluster within that of each other."""
LOOK_S = 0.2
ROUNDING = 1e-6

GROUP = "ray.io/node-group"
"""Label of a machine that a cluster launcher has started, by its kind; such a cluster may add further ones."""
IN_KUBERNETES = "KUBERNETES_SERVICE_HOST"
"""Environment variable of every pod; an operator may add further ones."""

CONDITIONS = ("!", "in(")
"""A label that is asked for begins so if it is more than a value."""

Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Need:
    """What one process needs of a machine."""

    what: str
    key: str
    """Where the config says so."""
    resources: Resources
    labels: Mapping[str, str]
    has_room: Callable[[], bool] = field(compare=False)
    """Whether it has it."""

    def __str__(self) -> str:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        asked = "; ".join(part for part in (amounts(self.resources), labels) if part)
        return f"{self.what} ({asked})" if asked else self.what


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster, with all that it has, whoever uses it."""

    resources: Resources
    labels: Mapping[str, str] = field(default_factory=dict)

    def suits(self, labels: Mapping[str, str]) -> bool:
        """Whether it has the labels; of Ray's conditions (``!value``, ``in(...)``) it may be true that it does."""
        return all(value.startswith(CONDITIONS) or self.labels.get(key) == value for key, value in labels.items())


def amounts(resources: Resources) -> str:
    """``CPU 1.5, GPU 1``: what parts ask for, without what is 0."""
    return ", ".join(f"{name} {resources[name]:g}" for name in ("CPU", "GPU") if resources.get(name))


def no_room_ever(needs: Sequence[Need], machines: Sequence[Machine]) -> str:
    """Why these machines, without anything else on them, cannot hold all ``needs`` at once; empty if they may.

    What is asked for is compared with each machine, and in sum with all that have the labels; how it would have to be
    spread over them is not looked into.
    """
    for need in needs:
        suited = [machine for machine in machines if machine.suits(need.labels)]
        if not any(_holds(machine.resources, need.resources) for machine in suited):
            largest = [f"the largest of {len(suited)} has {_most(suited)}"] if suited else ["none has these labels"]
            return f"no machine can hold a {need} of {need.key}: {largest[0]}"
    for labels in [need.labels for need in needs]:
        asking = [need for need in needs if labels.items() <= need.labels.items()]
        asked = _sum(need.resources for need in asking)
        there = _sum(machine.resources for machine in machines if machine.suits(labels))
        if not _holds(there, asked):
            return (
                f"{_counted(asking)} need {amounts(asked)} at once, and the machines "
                f"{'with these labels ' if labels else ''}have {amounts(there) or 'nothing'} in all"
            )
    return ""


def _holds(has: Resources, asked: Resources) -> bool:
    return all(has.get(name, 0.0) + ROUNDING >= amount for name, amount in asked.items())


def _sum(all_resources: Any) -> dict[str, float]:
    total: Counter[str] = Counter()
    for resources in all_resources:
        total.update({name: resources.get(name, 0.0) for name in ("CPU", "GPU")})
    return dict(total)


def _most(machines: Sequence[Machine]) -> str:
    return amounts({n: max(m.resources.get(n, 0.0) for m in machines) for n in ("CPU", "GPU")}) or "nothing"


def _counted(needs: Sequence[Need]) -> str:
    return ", ".join(f"{count} x {what}" if count > 1 else what for what, count in Counter(map(str, needs)).items())


class Patience:
    """Decides when something is said, and when it is over. Times in seconds come from outside; no clock, no cluster."""

    def __init__(self, began: float) -> None:
        self._next, self._settled = began + FIRST_S, began + SETTLED_S
        self._began, self._machines = began, -1

    def line(
        self, at: float, needs: Sequence[Need], waiting: Sequence[Need], machines: Sequence[Machine],
        free: Resources, may_grow: bool,
    ) -> str:  # fmt: skip
        """What to say, if anything.

        Args:
            needs: of all parts.
            waiting: those without room.
            free: what nobody has reserved.
            may_grow: machines may be added, or come back.

        Raises:
            UserError: there will never be room.
        """
        if len(machines) != self._machines:
            self._machines, self._settled = len(machines), at + SETTLED_S
        if not may_grow and at >= self._settled and (reason := no_room_ever(needs, machines)):
            keys = ", ".join(sorted({need.key for need in needs}))
            raise UserError(f"the cluster has no room for this run: {reason}. Add machines, or ask for less in {keys}")
        if at < self._next:
            return ""
        self._next = at + EVERY_S
        has = amounts(_sum(machine.resources for machine in machines)) or "no CPU"
        count = f"{len(machines)} machine{'s' if len(machines) != 1 else ''}"
        return (
            f"waiting for {at - self._began:.0f} s for room, or to start: {_counted(waiting)}; the cluster has {has} "
            f"on {count}, of which {amounts(free) or 'nothing'} is free; "
            f"{'more machines may come' if may_grow else 'it adds no machines by itself'}"
        )


def wait_for_machines(needs: Sequence[Need]) -> None:
    """Return when every process has its room; the log has a line, now and then, of what is waited for.

    Raises:
        UserError: that can never be, on machines that do not change.
    """
    patience, waiting = Patience(time.monotonic()), list(needs)
    while waiting := [need for need in waiting if not need.has_room()]:
        machines, may_grow = machines_there()
        line = patience.line(time.monotonic(), needs, waiting, machines, ray.available_resources(), may_grow)
        if line:
            logger.info(line)
        time.sleep(LOOK_S)


def machines_there() -> tuple[list[Machine], bool]:
    """The machines of the cluster, and whether others may be added or come back."""
    nodes = ray.nodes()
    machines = [Machine(node["Resources"], node.get("Labels", {})) for node in nodes if node["Alive"]]
    launched = IN_KUBERNETES in os.environ or any(GROUP in machine.labels for machine in machines)
    return machines, launched or any(not node["Alive"] for node in nodes)


def answered(reference: Any) -> Callable[[], bool]:
    """Whether a process has answered its first call, with a result or an error."""
    return lambda: bool(ray.wait([reference], timeout=0)[0])


def reserved(group: Any) -> Callable[[], bool]:
    """Whether a placement group has what it asks for."""
    return lambda: ray.util.placement_group_table(group)["state"] == "CREATED"
