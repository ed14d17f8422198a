"""What a training cost on nodes that came and went, beside what ``jobs/plan.py`` predicts from its first updates."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tools.plan.cluster import Cluster, ClusterConfig, needs_of, read_cluster
from tools.plan.measured import read_measured
from tools.plan.search import Planner, counts_of


def node_seconds(
    samples: Sequence[Mapping[str, Any]], begin: float = 0.0, end: float = float("inf")
) -> dict[str, float]:
    """Seconds that nodes of each type were alive between two moments, added up.

    Args:
        samples: ``seconds`` and ``nodes`` (number by type), in order.
    """
    totals: dict[str, float] = {}
    for one, following in pairwise(samples):
        seconds = max(0.0, min(end, following["seconds"]) - max(begin, one["seconds"]))
        for kind, count in one["nodes"].items():
            totals[kind] = totals.get(kind, 0.0) + count * seconds
    return {kind: round(seconds, 1) for kind, seconds in sorted(totals.items())}


def prices_of(file: Path, cpus: float) -> ClusterConfig:
    """The machines of ``file`` at its prices, with the size of the nodes here: ``cpus`` CPUs and no GPU."""
    config = read_cluster(file)
    machines = {
        name: replace(machine, cpus=cpus, gpus=0.0) if machine.runs else machine
        for name, machine in config.machines.items()
    }
    return replace(config, machines=machines)


def cost(run: Path, arm: str, prices: ClusterConfig, first: int, seconds: float, nodes: Mapping[str, float]) -> Any:
    """Predicted and paid.

    Args:
        first: the prediction is made from so many first updates, with the config's numbers of replicas.
        seconds: that all updates took.
        nodes: seconds of nodes by type meanwhile.

    Raises:
        UserError: the run has too few updates.
    """
    measured = read_measured(run, arm, first)
    planner = Planner(measured, measured.config, Cluster(prices, needs_of(measured.config), str(run)))
    plan = planner.plan(counts_of(measured.config))
    assert plan is not None, "the machines have capacity for the numbers of the config"
    always = sum(m.at_least * m.paid_dollars_per_hour for m in prices.machines.values() if not m.runs)
    paid = sum(nodes.get(name, 0.0) * m.paid_dollars_per_hour for name, m in prices.machines.items() if m.runs)
    return {
        "from_updates": first,
        "predicted": {"seconds": round(plan.seconds, 1), "dollars": round(plan.dollars, 4),
                      "machines": dict(plan.placement.machines)},
        "happened": {"seconds": round(seconds, 1), "dollars": round((paid + always * seconds) / 3600, 4),
                     "node_seconds": dict(nodes)},
    }  # fmt: skip
