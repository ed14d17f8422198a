"""Where a replica runs: what it reserves of the cluster, in a placement group of its own."""

from typing import Any

from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.replica_actor import start_replica
from calibrated_rl.runtime.capacity import Need, reserved
from calibrated_rl.runtime.node_folder import NodeFolder


def resources_of(config: EngineConfig) -> dict[str, float]:
    """The Ray resources of one replica, all ranks of it together."""
    return {"CPU": config.cpus} | ({"GPU": config.gpus} if config.num_gpus else {})


def placement_of(config: EngineConfig) -> Any:
    """Reserve what one replica needs: a placement group of its own, so that replicas can join and leave. Its ranks
    share one bundle, which Ray places on one machine: between machines, what they exchange at every layer would take
    longer than the layer."""
    import ray

    labels = [dict(config.labels)] if config.labels else None
    return ray.util.placement_group([resources_of(config)], bundle_label_selector=labels)


class PlacedReplica:
    """A replica actor in a placement group of its own; both may still wait for a machine."""

    def __init__(self, model: str, config: EngineConfig, role: str, seed: int) -> None:
        """``model``: folder of this process's node."""
        self.group = placement_of(config)
        self.need = Need(f"{role} replica", f"{role}.engine", resources_of(config), config.labels, reserved(self.group))
        self.actor = start_replica(NodeFolder.here(model), config, self.group, seed, role)

    def end(self) -> None:
        """End its processes and free what was reserved for it."""
        import ray

        ray.kill(self.actor)
        ray.util.remove_placement_group(self.group)
