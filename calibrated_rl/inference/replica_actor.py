"""The Ray actor of a replica: a thin shell around ``Replica``.

Control calls (weights, health) have a concurrency group of their own, because behind hundreds of waiting calls for
turns they would starve.
"""

import asyncio
import inspect
from collections.abc import Coroutine
from typing import Any

from calibrated_rl.errors import UserError
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine import Replica
from calibrated_rl.inference.engine_arguments import engine_environment
from calibrated_rl.inference.request_batcher import Answers, TurnServer
from calibrated_rl.inference.turns import pack_answers, unpack_requests
from calibrated_rl.runtime.node_folder import NodeFolder
from calibrated_rl.weight_sync.base import WeightUpdate


class ReplicaActor(Replica):
    """What Ray runs. RLlib's ``FaultTolerantActorManager`` calls ``ping`` and ``apply``.

    Ray gives each concurrency group an event loop of its own, and vLLM's engine runs in one loop: control
    calls arrive in theirs and run in the engine's.
    """

    def __init__(self, model: NodeFolder, config: EngineConfig, seed: int = 0) -> None:
        self._refused: UserError | None = None
        try:
            super().__init__(str(model.fetch()), config, seed)
        except UserError as error:  # told by ``start``: Ray makes another error of what a constructor raises
            self._refused = error

    async def start(self) -> int:
        """As ``Replica.start``.

        Raises:
            UserError: vLLM does not take what ``engine.args`` says.
        """
        if self._refused is not None:
            raise self._refused
        self._loop = asyncio.get_running_loop()
        self._turns = TurnServer(self.generate)
        return await super().start()

    async def sample_turns(self, client: str, batch: bytes) -> Answers:
        """Turns in batches; see ``request_batcher.py``."""
        return await self._turns.sample_turns(client, batch)

    async def drop_client(self, client: str) -> None:
        """Stop to sample what ``client`` does not wait for any more."""
        self._turns.drop_client(client)

    async def _in_engine_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def sample_lockstep(self, batch: bytes) -> bytes:
        """``generate_lockstep`` of packed requests, with packed answers; see ``turns.py``."""
        answers = await self.generate_lockstep([request for _, request in unpack_requests(batch)])
        return pack_answers(enumerate(answers))

    async def update_weights(self, update: WeightUpdate, timeout_s: float = 600.0) -> None:
        await self._in_engine_loop(super().update_weights(update, timeout_s))

    async def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """What ``FaultTolerantActorManager`` calls, with ``func`` by name; its probe calls ``ping``."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result


CONTROL = ("update_weights", "ping", "apply")
"""Calls that must not wait behind ``generate``."""


def start_replica(model: NodeFolder, config: EngineConfig, group: Any, seed: int, role: str) -> Any:
    """Start a replica actor for ``role`` in the placement group ``group`` and return its handle at once."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    for method in CONTROL:
        setattr(ReplicaActor, method, ray.method(concurrency_group="control")(getattr(ReplicaActor, method)))
    actor_class = ray.remote(concurrency_groups={"control": 4})(ReplicaActor)
    return actor_class.options(
        num_cpus=config.cpus,
        num_gpus=config.gpus,
        max_concurrency=4096,
        max_restarts=-1,
        max_task_retries=0,
        runtime_env={"env_vars": engine_environment(config, role)},
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    ).remote(model, config, seed)
