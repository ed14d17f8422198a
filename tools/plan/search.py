"""Plans for a cluster: the time and cost of each, and the cheapest and the fastest."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.run.saved_run import changed_settings
from tools.plan.cluster import ROLES, Cluster, Placement
from tools.plan.measured import SIDES, Measured, occasions_in
from tools.plan.model import CostModel, Parts, Prediction, Setting, model_of

MAX_COMBINATIONS = 200_000
"""Combinations of replicas and ranks, each of which takes some tens of microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to run an arm."""

    counts: Mapping[str, int]
    """Replicas and ranks by role."""
    placement: Placement
    parts: Parts
    """Of an update, in seconds."""
    seconds: float
    """Of all updates with all occasional work. Starting the engines, warm start and evaluation are not included."""

    @property
    def dollars(self) -> float:
        return self.seconds / 3600 * self.placement.dollars_per_hour

    @property
    def on_demand_dollars(self) -> float:
        return self.seconds / 3600 * self.placement.on_demand_dollars_per_hour


_DEVICE = ("num_gpus", "tensor_parallel", "dtype", "eager", "threads")
DECIDING = (
    "task", "human", "training.max_staleness",
    *(f"{side}.{key}" for side in SIDES for key in ("model", *(f"engine.{setting}" for setting in _DEVICE))),
    *(f"learner.{key}" for key in ("gpus", "dtype", "threads", "compile", "gradient_checkpointing")),
)  # fmt: skip
"""Settings that change all times: other dialogues, models or devices, another overlap."""
MODELLED = (
    "name", "label", "date", "arms", "seeds", "control_", "variants", "restarts", "evaluation.", "shift.",
    "calibration.every", "training.updates", "training.tokens_per_update", "training.checkpoint", "learner.ranks",
    "learner.labels", "learner.cpus", "learner.timeout", "replay.", "proxy.",
    *(f"{side}.{key}" for side in SIDES for key in (
        "replicas", "scaling", "engine.labels", "engine.num_cpus", "engine.timeout", "engine.start_timeout"
    )),
)  # fmt: skip
"""Prefixes of settings that the model includes, or that do not affect the time of an update."""


def unlike(measured: Measured, config: RunConfig) -> list[str]:
    """Settings of ``config`` that differ from those of the measured run, and are neither ``DECIDING`` nor ``MODELLED``.

    Raises:
        UserError: a deciding one differs.
    """
    changed = changed_settings(measured.config, config)
    if deciding := [key for key in changed if key in DECIDING]:
        raise UserError(
            f"{measured.source} was measured with other settings ({', '.join(deciding)}), so its times do not "
            "apply: measure with these settings (without --run), or choose a run that has them"
        )
    return [key for key in changed if not key.startswith(MODELLED)]


class Planner:
    """Measured updates, a config to plan for, and the cluster it may use."""

    def __init__(self, measured: Measured, config: RunConfig, cluster: Cluster) -> None:
        """
        Raises:
            UserError: the measurements do not apply to this config.
        """
        self.beside = unlike(measured, config)
        """Settings that differ from those of the measured run, and that the model does not include."""
        self.measured, self.config, self.cluster, self.arm = measured, config, cluster, measured.arm
        self.occasions = {
            name: (seconds, count)
            for name, seconds in measured.occasions.items()
            if (count := occasions_in(config, measured.arm)[name])
        }
        """Seconds and number of each."""
        self.unmeasured = [
            name for name, count in occasions_in(config, measured.arm).items() if count and name not in self.occasions
        ]
        """Occasional work that the measured updates did not include; its time is not known."""
        counts = counts_of(measured.config)
        self.measured_setting = self._setting(counts, measured.config, cluster.place(counts))
        self.model: CostModel = model_of(measured, self.measured_setting, cluster.bytes_per_second)

    def setting(self, counts: Mapping[str, int], config: RunConfig | None = None) -> Setting:
        """The model's setting for ``counts``, with the budget of ``config`` (None: the one planned for). Where the
        cluster has no capacity for ``counts``, everything is on one machine."""
        return self._setting(counts, config or self.config, self.cluster.place(counts))

    def plan(self, counts: Mapping[str, int]) -> Plan | None:
        """The plan with these replicas and ranks; None where the cluster has no capacity for them."""
        placement = self.cluster.place(counts)
        if placement is None:
            return None
        setting = self._setting(counts, self.config, placement)
        parts = self.model.mean(setting)
        return Plan(counts=counts, placement=placement, parts=parts, seconds=self.run_seconds(parts.step, setting))

    def run_seconds(self, step: float, setting: Setting) -> float:
        """All updates that take ``step`` seconds each, and all occasions."""
        occasional_seconds = sum(
            count * self.model.occasion(name, s, setting) for name, (s, count) in self.occasions.items()
        )
        return step * self.config.training.updates + occasional_seconds

    def predict(self, counts: Mapping[str, int]) -> Prediction:
        """An update with bounds."""
        return self.model.predict(self.setting(counts))

    def plans(self) -> Iterator[Plan]:
        """All plans that the cluster has capacity for.

        Raises:
            UserError: there are too many to try.
        """
        max_counts = {role: self.cluster.most(role) for role in ROLES}
        if max_counts["policy"] * max_counts["simulator"] * max_counts["learner"] > MAX_COMBINATIONS:
            raise UserError(
                f"the cluster has capacity for {', '.join(f'{n} {role}' for role, n in max_counts.items())}: more than "
                f"{MAX_COMBINATIONS} combinations; lower at_most"
            )
        for policy in range(1, max_counts["policy"] + 1):
            for simulator in range(1, max_counts["simulator"] + 1):
                for learner in range(1, max_counts["learner"] + 1):
                    plan = self.plan({"policy": policy, "simulator": simulator, "learner": learner})
                    if plan is None:
                        break  # more ranks do not fit either
                    yield plan

    @staticmethod
    def _setting(counts: Mapping[str, int], config: RunConfig, placement: Placement | None) -> Setting:
        return Setting(
            replicas={side: counts[side] for side in ("policy", "simulator")}, ranks=counts["learner"],
            tokens=config.training.tokens_per_update,
            learner_machines=1 if placement is None else placement.learner_machines,
            machines=1 if placement is None else placement.working_machines,
        )  # fmt: skip


def counts_of(config: RunConfig) -> dict[str, int]:
    """Replicas and ranks that a config starts with, by role."""
    return {
        "policy": config.policy.replicas, "simulator": config.simulator.replicas, "learner": config.learner.ranks
    }  # fmt: skip


def cheapest(plans: list[Plan]) -> Plan:
    """Fewest dollars; of equals the fastest, then that with fewest parts."""
    return min(plans, key=lambda plan: (plan.dollars, plan.seconds, sum(plan.counts.values())))


def fastest(plans: list[Plan]) -> Plan:
    """Shortest run; of equals the cheapest, then that with fewest parts."""
    return min(plans, key=lambda plan: (plan.seconds, plan.dollars, sum(plan.counts.values())))
