"""Tokens a second of conversations with a served policy, against the same turns through a bare engine.

Clients talk over HTTP, each a conversation of its own, and ask for the next reply when they have the last. The same
prompts are then given to one vLLM engine with the same settings, each after the reply before it, without HTTP,
Serve or text. Both sample at temperature 0, so that the engine's prefix cache is of as much use. The two alternate, and
medians are compared.
"""

import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from calibrated_rl.config.load import to_yaml
from calibrated_rl.config.run_config import RunConfig
from calibrated_rl.config.sections import ModelConfig
from calibrated_rl.inference.config import SamplingConfig
from calibrated_rl.inference.engine import Replica
from calibrated_rl.inference.engine_arguments import engine_environment
from calibrated_rl.serving import deployment
from calibrated_rl.settings.fields import Positive
from calibrated_rl.storage.checksums import write_checksums
from tools.bench.base import Row, at_least
from tools.bench.talk import TalkConfig, model_of, start_ray

SAID = ("I need something for my sister.", "What would that cost?", "Is there a smaller one?", "And in another colour?")
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One reply: its prompt, how many tokens were sampled, and how long it took."""

    prompt_ids: list[int]
    tokens: int
    seconds: float


class Serving:
    """Talks with a served policy."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(TalkConfig):
        conversations: Positive = 32
        """At a time."""
        repeats: Positive = 3
        """How often each of the two is measured."""
        port: Positive = 8765

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        os.environ.update(engine_environment(config.engine(), "benchmark"))
        served, bare, seconds, errors, count = [], [], [], 0, 0
        with model_of(config) as (folder, _), _server(config, folder), asyncio.Runner() as runner:
            engine = Replica(str(folder), config.engine())
            runner.run(_started(engine))
            for repeat in range(config.repeats + 1):
                began = time.perf_counter()
                conversations, failed = runner.run(_talk(config, repeat))
                took = time.perf_counter() - began
                began = time.perf_counter()
                runner.run(_replay(engine, conversations))
                replayed = time.perf_counter() - began
                errors += failed
                if repeat:  # the first warms up
                    tokens = sum(each.tokens for replies in conversations for each in replies)
                    served.append(tokens / took)
                    bare.append(tokens / replayed)
                    seconds += [each.seconds for replies in conversations for each in replies]
                    count += tokens
            engine.shutdown()
        p50, p95 = np.percentile(seconds, (50, 95))
        return at_least(
            statistics.median(served), statistics.median(bare), 0.9,
            f"sampled tokens a second of {config.conversations} conversations at once with the served policy "
            f"({config.model}, {config.dtype}), {config.policy_turns} replies each, medians of {config.repeats} runs "
            f"({count} tokens); a reply took {p50:.2f} s (p50), {p95:.2f} s (p95); {errors} errors; limit: the same "
            "prompts and token counts through a bare vLLM engine",
            also=errors == 0,
        )  # fmt: skip


@contextmanager
def _server(config: Serving.Config, model: Path) -> Any:
    """The application, in a Ray of its own, with the model as the policy of a run."""
    import ray
    from ray import serve

    with tempfile.TemporaryDirectory(prefix="calibrated_rl_benchmark_") as made:
        run = Path(made) / "run"
        policy = run / "policies" / "start-0"
        shutil.copytree(model, policy)
        write_checksums(policy)
        sampling = SamplingConfig(temperature=0, max_turn_tokens=config.max_turn_tokens)
        side = ModelConfig(model=str(model), engine=config.engine(), sampling=sampling)
        settings = RunConfig(name="run", arms=["start"], policy=side, date="2026-01-01")
        (run / "config.yaml").write_text(to_yaml(settings), encoding="utf-8")
        start_ray(num_cpus=4)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": config.port})
            arguments = {"run": str(run), "require_api_key": False, "target_ongoing_requests": config.conversations}
            deployment.deploy(deployment.description(arguments, {"policy": "start-0"}))
            deployment.wait_until(deployment.is_running, TIMEOUT_S)
            yield
        finally:
            serve.delete(deployment.APPLICATION)
            ray.shutdown()


async def _talk(config: Serving.Config, repeat: int) -> tuple[list[list[Asked]], int]:
    """All conversations at once, and how many requests failed."""
    url = f"http://127.0.0.1:{config.port}/v1/chat/completions"
    timeout, connector = aiohttp.ClientTimeout(total=TIMEOUT_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def conversation(number: int) -> tuple[list[Asked], int]:
            messages: list[dict[str, str]] = []
            replies: list[Asked] = []
            for turn in range(config.policy_turns):
                messages.append({"role": "user", "content": f"{SAID[turn % len(SAID)]} ({repeat}-{number})"})
                body = {"model": "policy", "messages": messages, "return_token_ids": True}
                began = time.perf_counter()
                async with session.post(url, data=json.dumps(body)) as response:
                    if response.status != 200:
                        return replies, 1
                    choice = (await response.json())["choices"][0]
                took = time.perf_counter() - began
                replies.append(Asked(choice["prompt_token_ids"], len(choice["token_ids"]), took))
                messages.append({"role": "assistant", "content": choice["message"]["content"]})
            return replies, 0

        found = await asyncio.gather(*map(conversation, range(config.conversations)))
    return [replies for replies, _ in found], sum(failed for _, failed in found)


async def _started(engine: Replica) -> None:
    await engine.start()


async def _replay(engine: Replica, conversations: Sequence[Sequence[Asked]]) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    counter = iter(range(10**9))

    async def again(replies: Sequence[Asked]) -> None:
        for reply in replies:
            parameters = SamplingParams(
                max_tokens=reply.tokens, temperature=0.0, detokenize=False, ignore_eos=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )  # fmt: skip
            prompt = {"type": "token", "prompt_token_ids": reply.prompt_ids}
            await engine.engine.finish(prompt, parameters, f"{id(replies)}-{next(counter)}")

    await asyncio.gather(*map(again, conversations))
