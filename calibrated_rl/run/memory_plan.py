"""Plans how learner and engines share the memory of one device: the learner's part is measured, not estimated.

Where ``engine.kv_cache_mib`` is 0, the learner is started first and takes a step with every model that it will train,
on micro-batches that are full, with all of them in place. The rest of the device's memory goes to the engines: their
weights, their processes, and the remainder as KV caches, in proportion to what each can use.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.endpoints.config import endpoint_name
from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.learner.config import OptimizerConfig
from calibrated_rl.learner.device_memory import DeviceMemory, measure_device
from calibrated_rl.learner.group import LearnerGroup
from calibrated_rl.learner.slots import CRITIC, POLICY, PROXY, SIMULATOR, START, critic_slot
from calibrated_rl.models.shape import ModelShape, shape_of
from calibrated_rl.run.memory import GIB, RAY_AND_DRIVER, adapters_only, dialogue_bytes, engine_needs, memory_needs
from calibrated_rl.run.turn_value import frozen_value_models, uses_critic

logger = logging.getLogger(__name__)

GPU_ENGINE = 2 * GIB
"""Of a replica on a GPU beside weights and KV cache: context, activations, graphs. An assumption, not measured."""
RESERVED_SHARE = 0.08
"""Share of the device that is not assigned: allocators waste some, and weights exist twice while new ones arrive."""
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The replicas of one side."""

    engine: EngineConfig
    model: ModelShape
    replicas: int = 1
    """Maximum number."""

    @property
    def fixed(self) -> int:
        """Bytes of one replica without its KV cache."""
        needs = engine_needs(self.engine, self.model)
        processes = (
            self.engine.tensor_parallel * GPU_ENGINE
            if self.engine.num_gpus
            else needs["processes"] + needs["new weights"]
        )
        return needs["weights"] + processes

    @property
    def dialogue(self) -> int:
        """Bytes of keys and values of the longest dialogue, on each rank."""
        return dialogue_bytes(self.engine, self.model)

    @property
    def caches(self) -> int:
        """KV caches: one a rank of each replica."""
        return self.replicas * self.engine.tensor_parallel


def engines_to_plan(config: RunConfig) -> list[str]:
    """The sides of a run whose KV caches are to be planned."""
    local = endpoint_name(config.simulator.model) is None
    roles = ("policy", *(("simulator",) if local else ()), *(("proxy",) if config.proxy.model else ()))
    return [role for role in roles if not getattr(config, role).engine.kv_cache_mib]


def plan_caches(device: DeviceMemory, demands: Mapping[str, Demand], other_bytes: int = 0) -> dict[str, int]:
    """MiB of the KV cache of a replica of each side: as set, or a share of the rest, in proportion to what each can use
    (its largest batch of its longest dialogues), and no more than that.

    Args:
        other_bytes: bytes of all else besides the learner and the engines.

    Raises:
        UserError: the rest is too small for one dialogue.
    """
    remaining = device.free - int(RESERVED_SHARE * device.total) - other_bytes
    for demand in demands.values():
        remaining -= demand.replicas * demand.fixed + demand.caches * demand.engine.kv_cache_mib * MIB
    open_sides = {role: demand for role, demand in demands.items() if not demand.engine.kv_cache_mib}
    usable = {role: demand.engine.max_num_seqs * demand.dialogue for role, demand in open_sides.items()}
    share = min(1.0, remaining / sum(demand.caches * usable[role] for role, demand in open_sides.items()))
    planned = {role: int(share * usable[role]) // MIB for role in open_sides}
    for role, demand in open_sides.items():
        if planned[role] * MIB < demand.dialogue:
            raise UserError(
                f"{device.name} has {device.total / GIB:.1f} GiB, {device.free / GIB:.1f} of them free beside the "
                f"learner, which took {device.learner / GIB:.1f}: nothing is left for the KV cache of {role}. What can "
                "be made smaller: learner.micro_batch_tokens, the models, the number of replicas"
            )
    return {role: planned.get(role, demand.engine.kv_cache_mib) for role, demand in demands.items()}


def describe(device: DeviceMemory, demands: Mapping[str, Demand], caches: Mapping[str, int]) -> str:
    """The plan in one line."""
    sides = "; ".join(
        f"{demand.replicas} x {role} engine {demand.fixed / GIB:.2f} + KV cache "
        f"{f'{demand.engine.tensor_parallel} x ' if demand.engine.tensor_parallel > 1 else ''}{caches[role] / 1024:.2f}"
        f"{'' if demand.engine.kv_cache_mib else f' ({caches[role] * MIB // demand.dialogue} longest dialogues)'}"
        for role, demand in demands.items()
    )
    assigned = sum(
        demand.replicas * demand.fixed + demand.caches * caches[role] * MIB for role, demand in demands.items()
    )
    return (
        f"memory plan of {device.name} ({device.total / GIB:.1f} GiB, in GiB): learner {device.learner / GIB:.2f}, "
        f"measured; {sides}; left {(device.free - assigned) / GIB:.2f}"
    )


def measure_peak_memory(
    config: RunConfig, learner: LearnerGroup, models: Mapping[str, Path]
) -> tuple[DeviceMemory, int]:
    """The device beside a learner that has taken a step with each of ``models``, the base models by role, with all of
    them, the policy's frozen start and the models that value turns loaded; and the bytes of all else besides it and the
    engines."""
    lora_models = adapters_only(config)
    for name, folder in models.items():
        learner.load(name, folder, optimizer=OptimizerConfig(), full_finetuning=name not in lora_models)
    if uses_critic(config):
        learner.load(CRITIC, models[POLICY], optimizer=OptimizerConfig())
    frozen = [START, *(critic_slot(number) for number in range(frozen_value_models(config)))]
    for name in frozen:
        learner.load(name, models[POLICY], trainable=False)
    lengths = {name: getattr(config, name).engine.max_model_len for name in models}
    if uses_critic(config):
        lengths[CRITIC] = config.policy.engine.max_model_len
    device = learner.measure_peak_memory(lengths)
    for name in (*models, *frozen, *([CRITIC] if uses_critic(config) else [])):
        learner.unload(name)
    if config.policy.engine.num_gpus:
        element = 2 if config.learner.dtype == "bfloat16" else 4
        shared = [shape_of(folder).parameters for name, folder in models.items() if name not in (PROXY, *lora_models)]
        return device, 2 * element * sum(shared) if config.learner.share_weights else 0
    shapes = {role: shape_of(folder) for role, folder in models.items()}
    needs = memory_needs(config, shapes[POLICY], shapes.get(SIMULATOR), shapes.get(PROXY))
    other_parts = ("published weights", "checkpoint", "Ray and driver")
    return device, sum(sum(needs.get(part, {}).values()) for part in other_parts)


def with_caches(
    config: RunConfig,
    models: Mapping[str, Path],
    device: DeviceMemory | None = None,
    other_bytes: int = RAY_AND_DRIVER,
) -> RunConfig:
    """``config`` with sizes for the KV caches of the engines that serve ``models``, where they are 0.

    Args:
        device: measured by the learner; None: there is no learner.
        other_bytes: bytes of all else besides the learner and the engines.
    """
    sides = {role: getattr(config, role) for role in models}
    if all(side.engine.kv_cache_mib for side in sides.values()):
        return config
    demands = {
        role: Demand(
            engine=side.engine, model=shape_of(models[role]),
            replicas=1 if role == PROXY else side.replica_bounds[1],
        )
        for role, side in sides.items()
    }  # fmt: skip
    device = device or measure_device(any(side.engine.num_gpus for side in sides.values()))
    caches = plan_caches(device, demands, other_bytes)
    logger.info(describe(device, demands, caches))
    planned = {role: replace(side, engine=_with_cache(demands[role], caches[role])) for role, side in sides.items()}
    return replace(config, **planned)


def _with_cache(demand: Demand, mib: int) -> EngineConfig:
    """Also set a smallest size to try: the plan may be too large, since an engine's other memory was assumed."""
    if demand.engine.kv_cache_mib:
        return demand.engine
    smallest = min(mib, demand.engine.least_kv_cache_mib) or max(-(-demand.dialogue // MIB), mib // 4)
    return replace(demand.engine, kv_cache_mib=mib, least_kv_cache_mib=smallest)
