"""Machines with their prices, and how many of them a number of replicas and ranks needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from calibrated_rl.components.component import strict_config
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.settings.fields import Name, NotNegative, OneOf, Positive, Range
from calibrated_rl.settings.yaml_files import read_yaml

ROLES = ("policy", "simulator", "learner")
_NEARLY = 1e-9
"""Shares such as 0.1 do not add up exactly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinesConfig:
    """Machines of one type."""

    runs: list[Annotated[str, OneOf(ROLES)]] = field(default_factory=list)
    """Which of `policy`, `simulator` and `learner` they run; none: the head, or other machines that are paid for."""
    cpus: Annotated[float, Range(at_least=0)] = 0.0
    """Of one machine, as the next four."""
    gpus: Annotated[float, Range(at_least=0)] = 0.0
    dollars_per_hour: Annotated[float, Range(at_least=0)] = 0.0
    """On demand."""
    spot_dollars_per_hour: Annotated[float, Range(at_least=0)] = 0.0
    """0: not offered."""
    spot: bool = False
    """Taken at the spot price."""
    at_least: NotNegative = 0
    """Number that is paid for in any case."""
    at_most: Positive = 1

    @property
    def paid_dollars_per_hour(self) -> float:
        return self.spot_dollars_per_hour if self.spot else self.dollars_per_hour


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The machines that a plan may use."""

    network_gigabytes_per_second: Annotated[float, Range(above=0)] = 1.0
    """Between two machines."""
    machines: dict[Name, MachinesConfig] = field(default_factory=dict)
    """By any name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What Ray reserves for one replica or rank."""

    cpus: float
    gpus: float

    def fits(self, machine: MachinesConfig) -> int:
        """How many of them fit on a machine."""
        counts = [
            math.floor(available / needed + _NEARLY)
            for available, needed in ((machine.cpus, self.cpus), (machine.gpus, self.gpus))
            if needed > 0
        ]
        return min(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The machines that a plan uses."""

    machines: Mapping[str, int]
    """By name, with those that are paid for in any case."""
    learner_machines: int
    working_machines: int
    """On which replicas or ranks are."""
    dollars_per_hour: float
    on_demand_dollars_per_hour: float
    """If no machine were a spot machine."""


class Cluster:
    """The machines of a ``ClusterConfig`` as the parts of a run fill them."""

    def __init__(self, config: ClusterConfig, needs: Mapping[str, Need], source: str) -> None:
        """
        Args:
            needs: by role.
            source: of the config, for messages.

        Raises:
            UserError: a number does not make sense, or a role has no machine type, several, or one that is too small.
        """
        self.config, self.needs = config, needs
        for name, machine in config.machines.items():
            _check(f"{source}: machines.{name}", machine)
        self._home: dict[str, str] = {}
        for role in ROLES:
            homes = [name for name, machine in config.machines.items() if role in machine.runs]
            if len(homes) != 1:
                raise UserError(
                    f"{source}: '{role}' must stand in `runs` of exactly one machine type, not {len(homes)}"
                )
            self._home[role] = homes[0]
            if not needs[role].fits(config.machines[homes[0]]):
                raise UserError(
                    f"{source}: machines.{homes[0]} has no capacity for one {role}, which needs "
                    f"{needs[role].cpus:g} CPUs and {needs[role].gpus:g} GPUs"
                )

    @classmethod
    def of_one_machine(cls, needs: Mapping[str, Need], counts: Mapping[str, int]) -> "Cluster":
        """One machine without a price that is just large enough for ``counts``."""
        machine = MachinesConfig(
            runs=list(ROLES), cpus=sum(needs[role].cpus * counts[role] for role in ROLES),
            gpus=sum(needs[role].gpus * counts[role] for role in ROLES),
        )  # fmt: skip
        return cls(ClusterConfig(machines={"one machine": machine}), needs, "one machine")

    @property
    def bytes_per_second(self) -> float:
        return self.config.network_gigabytes_per_second * 1e9

    def most(self, role: str) -> int:
        """How many of a role fit on machines without anything else."""
        machine = self.config.machines[self._home[role]]
        return machine.at_most * self.needs[role].fits(machine)

    def place(self, counts: Mapping[str, int]) -> Placement | None:
        """The machines that these numbers of each role need; None where there are not enough.

        Machines of a type that several roles share are filled first fit, the largest role first.
        """
        machine_counts, learner_machines, working = {}, 0, 0
        for name, machine in self.config.machines.items():
            roles = [role for role in ROLES if self._home[role] == name]
            filled = self._fill(machine, {role: counts[role] for role in roles})
            if len(filled) > machine.at_most:
                return None
            machine_counts[name] = max(len(filled), machine.at_least)
            learner_machines += sum("learner" in roles_on_machine for roles_on_machine in filled)
            working += len(filled)
        machines = self.config.machines
        return Placement(
            machines=machine_counts, learner_machines=learner_machines, working_machines=working,
            dollars_per_hour=sum(count * machines[n].paid_dollars_per_hour for n, count in machine_counts.items()),
            on_demand_dollars_per_hour=sum(count * machines[n].dollars_per_hour for n, count in machine_counts.items()),
        )  # fmt: skip

    def _fill(self, machine: MachinesConfig, counts: Mapping[str, int]) -> list[set[str]]:
        """The roles on each machine that is used."""
        if len(counts) == 1:
            ((role, count),) = counts.items()
            return [{role}] * -(-count // self.needs[role].fits(machine))
        filled: list[set[str]] = []
        free: list[list[float]] = []
        order = sorted(counts, key=lambda role: (self.needs[role].gpus, self.needs[role].cpus), reverse=True)
        for role in order:
            need = self.needs[role]
            for _ in range(counts[role]):
                fitting = (i for i, (c, g) in enumerate(free) if c + _NEARLY >= need.cpus and g + _NEARLY >= need.gpus)
                index = next(fitting, len(free))
                if index == len(free):
                    free.append([machine.cpus, machine.gpus])
                    filled.append(set())
                free[index][0] -= need.cpus
                free[index][1] -= need.gpus
                filled[index].add(role)
        return filled


def needs_of(config: RunConfig) -> dict[str, Need]:
    """The Ray resources that a run's config requests, by role.

    Raises:
        UserError: a part requests nothing, so that any number of it would fit.
    """
    policy, simulator, learner = config.policy.engine, config.simulator.engine, config.learner
    needs = {
        "policy": Need(cpus=policy.cpus, gpus=policy.gpus),
        "simulator": Need(cpus=simulator.cpus, gpus=simulator.gpus),
        "learner": Need(cpus=learner.cpus, gpus=learner.gpus),
    }
    for role, need in needs.items():
        if max(need.cpus, need.gpus) <= 0:
            raise UserError(f"{role} requests no CPUs and no GPUs: the number that fits on a machine is unknown")
    return needs


def read_cluster(file: Path) -> ClusterConfig:
    """The cluster that a YAML file describes.

    Raises:
        UserError: it is missing or malformed; names the key.
    """
    cluster: ClusterConfig = strict_config(ClusterConfig, read_yaml(file, "cluster").values, str(file))
    return cluster


def _check(location: str, machine: MachinesConfig) -> None:
    """
    Raises:
        UserError: names the key.
    """
    if machine.at_most < machine.at_least:
        raise UserError(f"{location}.at_most is {machine.at_most}: it must be at least at_least")
    if machine.spot and not machine.spot_dollars_per_hour:
        raise UserError(f"{location}.spot is true, and spot_dollars_per_hour is missing")
