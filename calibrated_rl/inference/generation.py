"""Sampling and scoring with a vLLM engine: requests as vLLM takes them, its outputs as turns."""

import asyncio
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrated_rl.inference.engine_health import EngineControl, plain_errors
from calibrated_rl.inference.engines.base import Engine
from calibrated_rl.inference.turns import Generated, GenerateRequest


class TurnSampler:
    """Samples turns from an engine."""

    def __init__(self, engine: Engine, control: EngineControl, version: Callable[[], int]) -> None:
        """``version``: of the weights that the engine has, for tokens for which the engine does not report one."""
        self._engine, self._control, self._version = engine, control, version
        self._requests = 0

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
            top_p=request.reshaping.top_p,
            top_k=request.reshaping.top_k,
            min_p=request.reshaping.min_p,
            repetition_penalty=request.reshaping.repetition_penalty,
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
        versions = np.full(len(ids), self._version(), np.int32)
        for span in completion.weight_versions or ():
            versions[span.start : span.end] = int(span.version)
        return Generated(ids, logprobs, versions, final.num_cached_tokens or 0)

    async def begin_lockstep(self, requests: Sequence[GenerateRequest]) -> list[asyncio.Task[Generated]]:
        """Let turns enter the paused engine together and in order, and reseed it for them; they are sampled once it
        resumes."""
        tasks = [asyncio.ensure_future(self.generate(request)) for request in requests]
        # Adding a request sends it to the engine before its first suspension that waits for output.
        while self._engine.unfinished < len(tasks):
            await asyncio.sleep(0)
            if any(task.done() for task in tasks):
                break  # a request was refused; its error is raised where its task is awaited
        # vLLM's CPU sampler refuses a generator of its own for each request in large batches, so the worker's one
        # random state is set from the seeds of the whole batch.
        batch_seed = zlib.crc32(repr([request.seed for request in requests]).encode())
        await self._control.call(self._engine.call_workers("reseed", batch_seed))
        return tasks

    async def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Log-probs of ``ids[1:]`` given the ids before them, shape [T - 1]: for parity checks. Nothing is drawn,
        and no other request finds these prompts in the prefix cache."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        final = await self._final_output(list(ids), parameters, cache_salt="score")
        assert final.prompt_logprobs is not None
        entries = final.prompt_logprobs[1:]
        return np.array([e[t].logprob for t, e in zip(ids[1:], entries, strict=True)], np.float32)

    async def _final_output(self, prompt_ids: list[int], parameters: Any, **options: Any) -> Any:
        self._requests += 1
        # A prompt of type "token" enters the engine as it is; a plain one would be parsed in a thread first.
        prompt = {"type": "token", "prompt_token_ids": prompt_ids, **options}
        with plain_errors():
            return await self._engine.finish(prompt, parameters, str(self._requests))
