"""Waiting for capacity in the cluster: pending parts are logged, and where capacity can never suffice, the run ends.

- After ``FIRST_S`` seconds, and then every ``EVERY_S``, one line lists the parts that have no capacity or have not
  started yet, and the cluster's resources.
- It is a user error if the machines are too few or too small whatever else runs on them, and none can be added: all
  were started by hand, none has been lost, and their number has not changed for ``SETTLED_S``.
- The wait for a cluster that may add machines has no limit: Ray does not know in advance which ones it can add.
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
"""Processes take less to start where there is capacity, except on a busy machine."""
EVERY_S = 60.0
SETTLED_S = 30.0
"""Machines that are started together join a cluster within this time of each other."""
POLL_S = 0.2
ROUNDING = 1e-6

GROUP = "ray.io/node-group"
"""Label of a machine that a cluster launcher has started, by its kind; such a cluster may add further ones."""
IN_KUBERNETES = "KUBERNETES_SERVICE_HOST"
"""Environment variable of every pod; an operator may add further ones."""

CONDITIONS = ("!", "in(")
"""A requested label begins so if it is a condition and not a value."""

Resources = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Need:
    """What one process needs of a machine."""

    name: str
    key: str
    """The key of its settings in the config."""
    resources: Resources
    labels: Mapping[str, str]
    is_satisfied: Callable[[], bool] = field(compare=False)
    """Whether the process has what it needs."""

    def __str__(self) -> str:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        request = "; ".join(text for text in (amounts(self.resources), labels) if text)
        return f"{self.name} ({request})" if request else self.name


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of the cluster, with its total resources, in use or not."""

    resources: Resources
    labels: Mapping[str, str] = field(default_factory=dict)

    def suits(self, labels: Mapping[str, str]) -> bool:
        """Whether it has the labels; Ray's conditions (``!value``, ``in(...)``) count as satisfied."""
        return all(value.startswith(CONDITIONS) or self.labels.get(key) == value for key, value in labels.items())


def amounts(resources: Resources) -> str:
    """Resources as text, such as ``CPU 1.5, GPU 1``, without zeros."""
    return ", ".join(f"{name} {resources[name]:g}" for name in ("CPU", "GPU") if resources.get(name))


def capacity_problem(needs: Sequence[Need], machines: Sequence[Machine]) -> str:
    """Why these machines, with nothing else on them, cannot run all ``needs`` at once; empty if they may.

    Each need is compared with each machine, and their sum with all machines that have the labels; whether they can be
    packed onto the machines is not checked.
    """
    for need in needs:
        suitable = [machine for machine in machines if machine.suits(need.labels)]
        if not any(_suffices(machine.resources, need.resources) for machine in suitable):
            largest = (
                [f"the largest of {len(suitable)} has {_largest(suitable)}"] if suitable else ["none has these labels"]
            )
            return f"no machine has capacity for a {need} of {need.key}: {largest[0]}"
    for labels in [need.labels for need in needs]:
        matching_needs = [need for need in needs if labels.items() <= need.labels.items()]
        requested = _sum(need.resources for need in matching_needs)
        available = _sum(machine.resources for machine in machines if machine.suits(labels))
        if not _suffices(available, requested):
            return (
                f"{_counted(matching_needs)} need {amounts(requested)} at once, and the machines "
                f"{'with these labels ' if labels else ''}have {amounts(available) or 'nothing'} in all"
            )
    return ""


def _suffices(has: Resources, requested: Resources) -> bool:
    return all(has.get(name, 0.0) + ROUNDING >= amount for name, amount in requested.items())


def _sum(all_resources: Any) -> dict[str, float]:
    total: Counter[str] = Counter()
    for resources in all_resources:
        total.update({name: resources.get(name, 0.0) for name in ("CPU", "GPU")})
    return dict(total)


def _largest(machines: Sequence[Machine]) -> str:
    return amounts({n: max(m.resources.get(n, 0.0) for m in machines) for n in ("CPU", "GPU")}) or "nothing"


def _counted(needs: Sequence[Need]) -> str:
    return ", ".join(f"{count} x {need}" if count > 1 else need for need, count in Counter(map(str, needs)).items())


class Patience:
    """Decides when to log a line, and when to give up. The caller passes times in seconds; no clock, no cluster."""

    def __init__(self, began: float) -> None:
        self._next, self._settled = began + FIRST_S, began + SETTLED_S
        self._began, self._machines = began, -1

    def line(
        self, at: float, needs: Sequence[Need], pending: Sequence[Need], machines: Sequence[Machine],
        free: Resources, may_grow: bool,
    ) -> str:  # fmt: skip
        """The line to log, or an empty one.

        Args:
            needs: of all parts.
            pending: those without capacity.
            free: unreserved resources.
            may_grow: machines may be added, or return.

        Raises:
            UserError: there will never be enough capacity.
        """
        if len(machines) != self._machines:
            self._machines, self._settled = len(machines), at + SETTLED_S
        if not may_grow and at >= self._settled and (reason := capacity_problem(needs, machines)):
            keys = ", ".join(sorted({need.key for need in needs}))
            raise UserError(
                f"the cluster has no capacity for this run: {reason}. Add machines, or request less in {keys}"
            )
        if at < self._next:
            return ""
        self._next = at + EVERY_S
        has = amounts(_sum(machine.resources for machine in machines)) or "no CPU"
        count = f"{len(machines)} machine{'s' if len(machines) != 1 else ''}"
        return (
            f"waiting for {at - self._began:.0f} s for capacity, or to start: {_counted(pending)}; the cluster has "
            f"{has} on {count}, of which {amounts(free) or 'nothing'} is free; "
            f"{'more machines may come' if may_grow else 'it adds no machines by itself'}"
        )


def wait_for_machines(needs: Sequence[Need]) -> None:
    """Return when every need is satisfied; meanwhile log the pending ones now and then.

    Raises:
        UserError: that is impossible, on machines that do not change.
    """
    patience, pending = Patience(time.monotonic()), list(needs)
    while pending := [need for need in pending if not need.is_satisfied()]:
        machines, may_grow = current_machines()
        line = patience.line(time.monotonic(), needs, pending, machines, ray.available_resources(), may_grow)
        if line:
            logger.info(line)
        time.sleep(POLL_S)


def current_machines() -> tuple[list[Machine], bool]:
    """The machines of the cluster, and whether others may be added or return."""
    nodes = ray.nodes()
    machines = [Machine(node["Resources"], node.get("Labels", {})) for node in nodes if node["Alive"]]
    launched = IN_KUBERNETES in os.environ or any(GROUP in machine.labels for machine in machines)
    return machines, launched or any(not node["Alive"] for node in nodes)


def answered(reference: Any) -> Callable[[], bool]:
    """Whether a process has answered its first call, with a result or an error."""
    return lambda: bool(ray.wait([reference], timeout=0)[0])


def reserved(group: Any) -> Callable[[], bool]:
    """Whether a placement group has been created."""
    return lambda: ray.util.placement_group_table(group)["state"] == "CREATED"
