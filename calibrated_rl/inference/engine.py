"""One vLLM replica: token ids in, sampled ids with log-probs and weight versions out.

``Replica`` is the plain class; ``ReplicaActor`` wraps it for Ray. Control calls (weights, pause) have a
concurrency group of their own, because behind hundreds of waiting ``generate`` calls they would starve.
"""

import asyncio
import inspect
import os
import sys
import zlib
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.exchange import Answers, TurnServer
from calibrated_rl.inference.turns import Generated, GenerateRequest, pack_answers, unpack_requests
from calibrated_rl.runtime.capacity import Need, reserved
from calibrated_rl.storage.files import COMPILED
from calibrated_rl.weight_sync.block import WeightsInBlock, check_reach
from calibrated_rl.weight_sync.shared_bucket import SharedBucket
from calibrated_rl.weight_sync.weights import Adapted, Merged, Weights, buckets_of


class EngineFailure(RuntimeError):
    """vLLM's engine failed or its process died. The message is the class of vLLM's own error; the replica is
    of no more use."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn vLLM's errors into classes that callers know without importing vLLM: a refused request is a
    ``ValueError``, everything that is the engine's own fault an ``EngineFailure``."""
    from vllm.exceptions import VLLMClientError, VLLMServerError

    try:
        yield
    except VLLMClientError as error:
        raise ValueError(str(error)) from error
    except VLLMServerError as error:
        raise EngineFailure(type(error).__name__) from error


def cache_sizes(config: EngineConfig) -> list[int]:
    """Sizes of the KV cache in MiB that an engine is tried with, one after the other."""
    assert config.kv_cache_mib, "the size of the KV cache has not been settled"
    least = config.least_kv_cache_mib or config.kv_cache_mib
    sizes = [config.kv_cache_mib]
    while sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return sizes


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
        self._shared = SharedBucket(), SharedBucket()
        self._base: str | None = None
        """What ``Adapted`` calls the model whose weights the engine has, but for adapters; None: of another one."""

    def _engine(self, model: str, seed: int) -> Any:
        """vLLM's engine, with the largest of the possible KV caches that it starts with."""
        from vllm.v1.engine.async_llm import AsyncLLM

        *larger, last = cache_sizes(self.config)
        for self.kv_cache_mib in larger:
            try:
                return AsyncLLM.from_engine_args(self._engine_args(model, seed))
            except RuntimeError as error:  # vLLM leaves the reason in the log of the engine's process
                print(f"no start with a KV cache of {self.kv_cache_mib} MiB: {error}", file=sys.stderr, flush=True)
        self.kv_cache_mib = last
        return AsyncLLM.from_engine_args(self._engine_args(model, seed))

    def _engine_args(self, model: str, seed: int) -> Any:
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig

        from calibrated_rl.weight_sync import transfer as weight_transfer

        config = self.config
        # On a GPU vLLM refuses to start where less than this share is free, though the cache's size is given.
        share = 0.9 * config.num_gpus * self.kv_cache_mib / config.kv_cache_mib
        return AsyncEngineArgs(
            model=model,
            load_format="safetensors",
            generation_config="vllm",  # how to sample is said with each request, not by a file beside the model
            trust_remote_code=False,
            dtype=config.dtype,  # type: ignore[arg-type]
            seed=seed,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            kv_cache_memory_bytes=self.kv_cache_mib * 2**20,
            enforce_eager=config.eager,
            distributed_executor_backend="uni",
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            worker_extension_cls=f"{weight_transfer.__name__}.WorkerExtension",
            weight_transfer_config=WeightTransferConfig(backend=weight_transfer.BACKEND),
            disable_log_stats=True,
            # The CPU default of 128 tokens a block wastes most of a short dialogue's prefix cache; vLLM's attention on
            # CPU needs a multiple of 32.
            **({"gpu_memory_utilization": share} if config.num_gpus else {"block_size": 32}),
        )

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

    async def generate_wave(self, requests: Sequence[GenerateRequest]) -> list[Generated]:
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
                # the worker's one random state is set from the seeds of the whole wave.
                wave_seed = zlib.crc32(repr([request.seed for request in requests]).encode())
                await self._control(self.engine.collective_rpc("reseed", args=(wave_seed,)))
            finally:
                await self._control(self.engine.resume_generation())
        return list(await asyncio.gather(*tasks))

    async def update_weights(
        self, weights: Mapping[str, Any] | Adapted | WeightsInBlock, version: int, timeout_s: float = 600.0
    ) -> None:
        """Replace the weights while requests are in flight; tokens sampled from here on carry ``version``.

        The prefix cache is dropped: it holds keys and values of the old weights. Requests in flight keep
        the tokens they have and go on under the new weights.

        If this fails once weights have begun to change, the replica is of no more use: it stays paused, so that no
        token is sampled from weights of two versions, and ``ping`` says so.

        Args:
            weights: tensors by Hugging Face name, what a model trained by adapters is sent as, or where the learner
                has put them.
            version: of these weights.
            timeout_s: for each step.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._updating:
            base = None
            if isinstance(weights, WeightsInBlock):
                check_reach(weights, on_gpu=self.config.num_gpus > 0)
            if isinstance(weights, Adapted):
                base = weights.base_name
                adapters = await weights.adapters
                weights = Merged(await weights.base, adapters, all=base != self._base)
            self._half_updated, self._base = True, base
            await self._control(self._pause(clear_cache=True), timeout_s)
            await self._control(self.engine.start_weight_update(), timeout_s)
            async with aclosing(self._transfers(weights)) as transfers:
                async for info in transfers:
                    update = WeightTransferUpdateRequest(update_info=info)
                    await self._control(self.engine.update_weights(update), timeout_s)
            await self._control(self.engine.finish_weight_update(str(version)), timeout_s)
            self.version = version
            await self._control(self.engine.resume_generation(), timeout_s)
            self._half_updated = False

    async def _transfers(self, weights: Mapping[str, Any] | WeightsInBlock) -> AsyncGenerator[dict[str, Any]]:
        """What the engine is told, one after the other; each is only true until the next. While the engine takes over a
        bucket, the following one is filled."""
        if isinstance(weights, WeightsInBlock):
            yield {"block": weights.message()}
            return
        weights = weights if isinstance(weights, Weights) else Weights(weights)
        if not (buckets := buckets_of(weights, self.config.weight_bucket_mib * 2**20)):
            return

        def filled(number: int) -> dict[str, Any]:
            bucket, shared = buckets[number], self._shared[number % 2]
            shared.hold(bucket, weights)
            return {"path": shared.path, "size": shared.size, "places": bucket.plain()}

        filling = asyncio.create_task(asyncio.to_thread(filled, 0))
        try:
            for number in range(len(buckets)):
                info = await filling
                if number + 1 < len(buckets):
                    filling = asyncio.create_task(asyncio.to_thread(filled, number + 1))
                yield info
        finally:
            await asyncio.wait({filling})  # nothing may write into a bucket that another update fills

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
        for shared in self._shared:
            shared.close()


ROLE = "CALIBRATED_RL_ROLE"
"""Environment variable of a replica's processes: what they serve; for people who look at a machine."""


KEPT_BYTES = 2**28
"""An engine's process on a CPU keeps freed memory in pieces of up to this size, and so much at the end of its heap."""


def engine_environment(config: EngineConfig, role: str) -> dict[str, str]:
    """Environment of a replica's process; vLLM reads it at import."""
    environment = {ROLE: role, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    environment["VLLM_CACHE_ROOT"] = os.environ.get("VLLM_CACHE_ROOT", f"{COMPILED}/vllm")
    if config.num_gpus == 0:
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.threads),
            # Otherwise vLLM adds a worker process, whose waiting eats the few cores of a small machine.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "THP_MEM_ALLOC_ENABLE": "1",  # see learner/group.py
            # Packing a layer's new weights frees as much as it takes. By default that goes to the operating system and
            # comes back in pages of 4 KiB, each of them cleared first, which takes longer than the packing.
            "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES),
            "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
            "TORCHDYNAMO_DISABLE": "1",  # the first request with log-probs would compile for seconds
            "CUDA_VISIBLE_DEVICES": "",
        }
    return environment


class ReplicaActor(Replica):
    """What Ray runs. RLlib's ``FaultTolerantActorManager`` calls ``ping`` and ``apply``.

    Ray gives each concurrency group an event loop of its own, and vLLM's engine lives in one loop: control
    calls arrive in theirs and are carried out in the engine's.
    """

    async def start(self) -> int:
        self._loop = asyncio.get_running_loop()
        self._turns = TurnServer(self.generate)
        return await super().start()

    async def exchange(self, client: str, batch: bytes) -> Answers:
        """Turns in batches; see ``exchange.py``."""
        return await self._turns.exchange(client, batch)

    async def _in_engine_loop(self, call: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))

    async def sample_wave(self, batch: bytes) -> bytes:
        """``generate_wave`` of packed requests, with packed answers; see ``turns.py``."""
        answers = await self.generate_wave([request for _, request in unpack_requests(batch)])
        return pack_answers(enumerate(answers))

    async def update_weights(
        self, weights: Mapping[str, Any] | Adapted | WeightsInBlock, version: int, timeout_s: float = 600.0
    ) -> None:
        await self._in_engine_loop(super().update_weights(weights, version, timeout_s))

    async def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """What ``FaultTolerantActorManager`` calls, with ``func`` by name; its probe calls ``ping``."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result


CONTROL = ("update_weights", "ping", "apply")
"""Calls that must not wait behind ``generate``."""


def resources_of(config: EngineConfig) -> dict[str, float]:
    """What one replica asks Ray for."""
    return {"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {})


def placement_of(config: EngineConfig) -> Any:
    """Reserve what one replica needs: a placement group of its own, so that replicas can join and leave."""
    import ray

    labels = [dict(config.labels)] if config.labels else None
    return ray.util.placement_group([resources_of(config)], bundle_label_selector=labels)


def start_replica(model: str, config: EngineConfig, group: Any, seed: int, role: str) -> Any:
    """Start a replica actor for ``role`` in the placement group ``group`` and return its handle at once."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    for method in CONTROL:
        setattr(ReplicaActor, method, ray.method(concurrency_group="control")(getattr(ReplicaActor, method)))
    actor_class = ray.remote(concurrency_groups={"control": 4})(ReplicaActor)
    return actor_class.options(
        num_cpus=config.num_cpus,
        num_gpus=config.num_gpus,
        max_concurrency=4096,
        max_restarts=-1,
        max_task_retries=0,
        runtime_env={"env_vars": engine_environment(config, role)},
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    ).remote(model, config, seed)


class PlacedReplica:
    """A replica actor in a placement group of its own; both may still wait for a machine."""

    def __init__(self, model: str, config: EngineConfig, role: str, seed: int) -> None:
        self.group = placement_of(config)
        self.need = Need(
            f"{role} replica", f"{role}.engine", resources_of(config), config.labels, reserved(self.group)
        )
        self.actor = start_replica(model, config, self.group, seed, role)

    def end(self) -> None:
        """End its processes and free what was reserved for it."""
        import ray

        ray.kill(self.actor)
        ray.util.remove_placement_group(self.group)
