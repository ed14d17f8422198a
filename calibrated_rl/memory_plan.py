"""How learner and engines share the memory of one device: what the learner takes is seen, not estimated.

Where ``engine.kv_cache_mib`` is 0, the learner is started first and takes a step of every kind that training will take,
on micro-batches that are full, with all models in place that it will hold. What is then left on the device goes to the
engines: their weights, what their processes need, and the rest as KV caches, to each as it can use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from calibrated_rl.config import RunConfig
from calibrated_rl.errors import UserError
from calibrated_rl.learner.device_memory import DeviceMemory
from calibrated_rl.memory import ENGINE_PROCESSES, GIB, RAY_AND_DRIVER, dialogue_bytes
from calibrated_rl.models import ModelShape
from calibrated_rl.rollout.engine import EngineConfig

GPU_ENGINE = 2 * GIB
"""Of a replica on a GPU beside weights and KV cache: context, activations, graphs. An assumption, measured on none."""
KEPT_FREE = 0.08
"""Share of the device that nobody is given: allocators waste some, and weights are there twice while new ones come."""
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The replicas of one side."""

    engine: EngineConfig
    model: ModelShape
    replicas: int = 1

    @property
    def fixed(self) -> int:
        """Bytes of one replica without its KV cache."""
        element = 2 if self.engine.dtype == "bfloat16" else 4
        processes = GPU_ENGINE if self.engine.num_gpus else ENGINE_PROCESSES
        return self.model.parameters * element + processes

    @property
    def dialogue(self) -> int:
        """Bytes of keys and values of the longest dialogue."""
        return dialogue_bytes(self.engine, self.model)


def engines_to_plan(config: RunConfig) -> list[str]:
    """The sides of a run whose KV caches are left to the program."""
    roles = ("policy", "simulator", *(("proxy",) if config.proxy.model else ()))
    return [role for role in roles if not getattr(config, role).engine.kv_cache_mib]


def plan_caches(device: DeviceMemory, demands: Mapping[str, Demand]) -> dict[str, int]:
    """MiB of the KV cache of a replica of each side: as set, or what is left, in proportion to what each can use (its
    largest batch of its longest dialogues), and no more than that.

    Raises:
        UserError: there is not enough left to hold a dialogue.
    """
    on_cpu = not any(demand.engine.num_gpus for demand in demands.values())
    left = device.free - int(KEPT_FREE * device.total) - (RAY_AND_DRIVER if on_cpu else 0)
    for demand in demands.values():
        left -= demand.replicas * (demand.fixed + demand.engine.kv_cache_mib * MIB)
    open_sides = {role: demand for role, demand in demands.items() if not demand.engine.kv_cache_mib}
    wanted = {role: demand.engine.max_num_seqs * demand.dialogue for role, demand in open_sides.items()}
    share = min(1.0, left / sum(demand.replicas * wanted[role] for role, demand in open_sides.items()))
    planned = {role: int(share * wanted[role]) // MIB for role in open_sides}
    for role, demand in open_sides.items():
        if planned[role] * MIB < demand.dialogue:
            raise UserError(
                f"{device.name} has {device.total / GIB:.1f} GiB, {device.free / GIB:.1f} of them free beside the "
                f"learner, which took {device.learner / GIB:.1f}: nothing is left for the KV cache of {role}. What can "
                "be made smaller: learner.micro_batch_tokens, the models, the number of replicas"
            )
    return {role: planned.get(role, demand.engine.kv_cache_mib) for role, demand in demands.items()}


def describe(device: DeviceMemory, demands: Mapping[str, Demand], caches: Mapping[str, int]) -> str:
    """The plan, in a line."""
    sides = "; ".join(
        f"{demand.replicas} x {role} engine {demand.fixed / GIB:.2f} + KV cache {caches[role] / 1024:.2f}"
        f"{'' if demand.engine.kv_cache_mib else f' ({caches[role] * MIB // demand.dialogue} longest dialogues)'}"
        for role, demand in demands.items()
    )
    taken = sum(demand.replicas * (demand.fixed + caches[role] * MIB) for role, demand in demands.items())
    return (
        f"memory plan of {device.name} ({device.total / GIB:.1f} GiB, in GiB): learner {device.learner / GIB:.2f}, "
        f"measured; {sides}; left {(device.free - taken) / GIB:.2f}"
    )
