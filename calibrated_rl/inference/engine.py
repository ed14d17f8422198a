"""One vLLM replica: token ids in, sampled ids with log-probs and weight versions out.

``Replica`` is the plain class; ``replica_actor.py`` wraps it for Ray.
"""

import asyncio
import sys
import zlib
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.engine_arguments import cache_sizes, engine_arguments
from calibrated_rl.inference.engine_health import EngineFailure, plain_errors
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.weight_sync.base import Receiver, WeightUpdate
from calibrated_rl.weight_sync.buckets import BucketSender


class Replica:
    """A running vLLM engine whose weights can be replaced while requests are in flight."""

    def __init__(self, model: str, config: EngineConfig, seed: int = 0) -> None:
        self.config = config
        self.engine = self._engine(model, seed)
        self.version = 0
        self._half_updated = False
        """Some weights are of one version and some of another: nothing may be sampled from them."""
        self._counter = 0
        self._updating = asyncio.Lock()
        buckets = BucketSender(config.weight_bucket_mib * 2**20)
        self._receiver = Receiver(on_gpu=config.num_gpus > 0, buckets=buckets)

    def _engine(self, model: str, seed: int) -> Any:
        """vLLM's engine, with the largest of the possible KV caches that it starts with."""
        from vllm.v1.engine.async_llm import AsyncLLM

        *larger, last = cache_sizes(self.config)
        for self.kv_cache_mib in larger:
            try:
                return AsyncLLM.from_engine_args(engine_arguments(model, self.config, seed, self.kv_cache_mib))
            except RuntimeError as error:  # vLLM leaves the reason in the log of the engine's process
                print(f"no start with a KV cache of {self.kv_cache_mib} MiB: {error}", file=sys.stderr, flush=True)
        self.kv_cache_mib = last
        return AsyncLLM.from_engine_args(engine_arguments(model, self.config, seed, self.kv_cache_mib))

    async def start(self) -> int:
        """Give the weights the replica was started with their version, so that every token carries one. Returns the MiB
        of the KV cache."""
        await self._control(self.engine.update_weight_version("0"))
        return self.kv_cache_mib

    async def _control(self, call: Awaitable[Any], timeout_s: float = 600.0) -> Any:
        """Await a control call of the engine, which vLLM never answers if its process dies meanwhile.

        Raises:
            EngineFailure: the engine is dead.
            TimeoutError: it did not answer within ``timeout_s``.
        """
        task = asyncio.ensure_future(call)
        try:
            async with asyncio.timeout(timeout_s):
                while not (await asyncio.wait({task}, timeout=1.0))[0]:
                    if self.engine.errored:
                        raise EngineFailure("EngineDeadError")
        finally:
            task.cancel()  # of no effect on a call that has been answered
        with plain_errors():
            return task.result()

    async def _pause(self, *, clear_cache: bool) -> None:
        """Stop sampling and keep what is in flight.

        vLLM's own ``pause_generation`` does this and then sleeps for 20 ms, so that finished requests reach their
        callers first; nobody here waits for that.
        """
        await self.engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)

    async def generate(self, request: GenerateRequest) -> Generated:
        """Sample one turn.

        Raises:
            ValueError: the prompt does not fit into the context.
            EngineFailure: the engine failed.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            stop_token_ids=list(request.stop_ids),
            ignore_eos=True,  # end-of-turn is among the stop ids; the model's own eos may be another token
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        final = await self._final_output(request.prompt_ids, parameters)
        completion = final.outputs[0]
        ids = list(completion.token_ids)
        logprobs = np.array(completion.logprobs.logprobs, np.float32)
        assert len(logprobs) == len(ids), "the engine gave other log-probs than those of the sampled tokens"
        versions = np.full(len(ids), self.version, np.int32)
        for span in completion.weight_versions or ():
            versions[span.start : span.end] = int(span.version)
        return Generated(ids, logprobs, versions, final.num_cached_tokens or 0)

    async def _final_output(self, prompt_ids: list[int], parameters: Any, **options: Any) -> Any:
        self._counter += 1
        final = None
        # Of this type it enters the engine as it is; a mere prompt would be looked through in a thread first.
        prompt = {"type": "token", "prompt_token_ids": prompt_ids, **options}
        with plain_errors():
            async for output in self.engine.generate(prompt, parameters, request_id=str(self._counter)):
                final = output
        assert final is not None, "the engine ended a request without output"
        return final

    async def generate_lockstep(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
        """Sample many turns that enter the engine together and in order: the same batches every time."""
        async with self._updating:
            await self._control(self._pause(clear_cache=False))
            try:
                tasks = [asyncio.ensure_future(self.generate(request)) for request in requests]
                # Adding a request sends it to the engine before its first suspension that waits for output.
                while self.engine.output_processor.get_num_unfinished_requests() < len(tasks):
                    await asyncio.sleep(0)
                    if any(task.done() for task in tasks):
                        break  # a request was refused; gather raises its error below
                # vLLM's CPU sampler refuses a generator of its own for each request in large batches, so
                # the worker's one random state is set from the seeds of the whole batch.
                batch_seed = zlib.crc32(repr([request.seed for request in requests]).encode())
                await self._control(self.engine.collective_rpc("reseed", args=(batch_seed,)))
            finally:
                await self._control(self.engine.resume_generation())
        return list(await asyncio.gather(*tasks))

    async def update_weights(self, update: WeightUpdate, timeout_s: float = 600.0) -> None:
        """Replace the weights while requests are in flight; tokens sampled from here on carry the update's version.

        The prefix cache is dropped: it holds keys and values of the old weights. Requests in flight keep
        the tokens they have and go on under the new weights.

        If this fails once weights have begun to change, the replica is of no more use: it stays paused, so that no
        token is sampled from weights of two versions, and ``ping`` says so.

        Args:
            timeout_s: for each step.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._updating:
            received = await update.receive(self._receiver)
            self._half_updated = True
            await self._control(self._pause(clear_cache=True), timeout_s)
            await self._control(self.engine.start_weight_update(), timeout_s)
            async with aclosing(received) as messages:
                async for message in messages:
                    request = WeightTransferUpdateRequest(update_info=dict(message))
                    await self._control(self.engine.update_weights(request), timeout_s)
            await self._control(self.engine.finish_weight_update(str(update.version)), timeout_s)
            self.version = update.version
            await self._control(self.engine.resume_generation(), timeout_s)
            self._half_updated = False

    async def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Log-probs of ``ids[1:]`` given what stands before them, shape [T - 1]: for parity checks. Nothing is drawn,
        and no other request finds these prompts in the prefix cache."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        final = await self._final_output(list(ids), parameters, cache_salt="score")
        assert final.prompt_logprobs is not None
        entries = final.prompt_logprobs[1:]
        return np.array([e[t].logprob for t, e in zip(ids[1:], entries, strict=True)], np.float32)  # type: ignore[index]

    async def ping(self) -> str:
        """Answer, if the engine is alive and its weights are of one version.

        Raises:
            EngineFailure: it is not, or they are not.
        """
        if self.engine.errored:
            raise EngineFailure("EngineDeadError")
        if self._half_updated and not self._updating.locked():
            raise EngineFailure("HalfUpdatedWeights")
        return "pong"

    def shutdown(self) -> None:
        self.engine.shutdown()
        self._receiver.buckets.close()
