"""One vLLM replica: token ids in, sampled ids with log-probs and weight versions out, weights replaced meanwhile.

``Replica`` is the plain class; ``replica_actor.py`` wraps it for Ray. vLLM's arguments are in
``engine_arguments.py``, sampling in ``generation.py``, and ``engine_health.py`` notices when the engine dies.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.errors import UserError, printable
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine_arguments import cache_sizes, engine_arguments
from calibrated_rl.inference.engine_health import EngineControl, EngineFailure
from calibrated_rl.inference.engines.base import Engine
from calibrated_rl.inference.generation import TurnSampler
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.runtime.third_party import garbage_kept
from calibrated_rl.weight_sync.base import Receiver, WeightUpdate
from calibrated_rl.weight_sync.buckets import BucketSender

logger = logging.getLogger(__name__)


def start_engine(model: str, config: EngineConfig, seed: int) -> tuple[Engine, int]:
    """vLLM's engine, with the largest of the possible KV caches that it starts with, and the size of that in MiB.

    Raises:
        UserError: vLLM does not take what ``engine.args`` says.
    """
    engine = _engine_class(config)

    def start(cache_mib: int) -> Engine:
        try:
            return engine(engine_arguments(model, config, seed, cache_mib))
        except (ValueError, TypeError, NotImplementedError) as error:
            if not config.args:
                raise
            reason = printable(" ".join(str(error).split()))
            raise UserError(f"vLLM does not start with engine.args {dict(config.args)}: {reason}") from error

    *larger, smallest = cache_sizes(config)
    for cache_mib in larger:
        try:
            return start(cache_mib), cache_mib
        except RuntimeError as error:  # vLLM leaves the reason in the log of the engine's process
            logger.warning(f"vLLM did not start with a KV cache of {cache_mib} MiB: {error}")
    return start(smallest), smallest


def _engine_class(config: EngineConfig) -> Callable[[Any], Engine]:
    with garbage_kept():  # six thousand modules
        if config.in_thread:
            from calibrated_rl.inference.engines.thread import ThreadEngine

            return ThreadEngine
        from calibrated_rl.inference.engines.process import ProcessEngine

        return ProcessEngine


class Replica:
    """A running vLLM engine whose weights can be replaced while requests are in flight."""

    def __init__(self, model: str, config: EngineConfig, seed: int = 0) -> None:
        self.config = config
        self.engine, self.kv_cache_mib = start_engine(model, config, seed)
        self.version = 0
        self._control = EngineControl(self.engine)
        self._sampler = TurnSampler(self.engine, self._control, lambda: self.version)
        self._half_updated = False
        """Some weights are of one version and some of another: nothing may be sampled from them."""
        self._pausing = asyncio.Lock()
        """Locked by whoever has paused the engine."""
        buckets = BucketSender(config.weight_bucket_mib * 2**20)
        self._receiver = Receiver(on_gpu=config.num_gpus > 0, buckets=buckets)

    async def start(self) -> int:
        """Give the weights the replica was started with their version, so that every token carries one. Returns the MiB
        of the KV cache."""
        await self._control.call(self.engine.set_weight_version("0"))
        return self.kv_cache_mib

    async def generate(self, request: GenerateRequest) -> Generated:
        """Sample one turn.

        Raises:
            ValueError: the prompt does not fit into the context.
            EngineFailure: the engine failed.
        """
        return await self._sampler.generate(request)

    async def generate_lockstep(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        """Sample many turns that enter the engine together and in order: the same batches every time."""
        async with self._pausing:
            await self._control.pause(clear_cache=False)
            try:
                tasks = await self._sampler.begin_lockstep(requests)
            finally:
                await self._control.resume()
        return list(await asyncio.gather(*tasks))

    async def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Log-probs of ``ids[1:]`` given the ids before them, shape [T - 1]: for parity checks."""
        return await self._sampler.score(ids)

    async def update_weights(self, update: WeightUpdate, timeout_s: float = 600.0) -> None:
        """Replace the weights while requests are in flight; tokens sampled from here on carry the update's version.

        The prefix cache is dropped: it contains keys and values of the old weights. Requests in flight keep
        the tokens they have and continue under the new weights.

        If this fails once weights have begun to change, the replica is unusable: it stays paused, so that no
        token is sampled from weights of two versions, and ``ping`` raises.

        Args:
            timeout_s: for each step.
        """
        async with self._pausing:
            received = await update.receive(self._receiver)
            self._half_updated = True
            await self._control.pause(clear_cache=True, timeout_s=timeout_s)
            await self._control.call(self.engine.call_workers("start_weight_update"), timeout_s)
            async with aclosing(received) as messages:
                async for message in messages:
                    receive = self.engine.call_workers("update_weights", update_info=dict(message))
                    await self._control.call(receive, timeout_s)
            await self._control.call(self.engine.call_workers("finish_weight_update"), timeout_s)
            await self._control.call(self.engine.set_weight_version(str(update.version)), timeout_s)
            self.version = update.version
            await self._control.resume(timeout_s)
            self._half_updated = False

    async def ping(self) -> str:
        """Answer, if the engine is alive and its weights are of one version.

        Raises:
            EngineFailure: it is not, or they are not.
        """
        self._control.check()
        if self._half_updated and not self._pausing.locked():
            raise EngineFailure("HalfUpdatedWeights")
        return "pong"

    def shutdown(self) -> None:
        """End the engine and free its memory."""
        self.engine.shutdown()
        self._receiver.buckets.close()
