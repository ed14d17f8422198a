"""Dialogues for benchmarks: a task that never ends early, and two pools of replicas that run it in Ray."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import Outcome, Scenario, Split, Turn
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.models.resolve import resolve_model
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.rollout.collector import Collector
from calibrated_rl.rollout.conversation import SamplingConfig
from calibrated_rl.runtime import third_party
from calibrated_rl.settings.fields import Name, Positive, Precision, Range

Pool = TypeVar("Pool", bound=ReplicaPool)

SHOPS = ("bicycle", "book", "camera", "flower", "garden", "guitar", "kitchen", "lamp", "shoe", "toy")


class Talk:
    """A shop and a customer who talk until they have had ``max_policy_turns``; worth nothing."""

    name = "talk"

    def __init__(self, max_policy_turns: int) -> None:
        self.max_policy_turns = max_policy_turns

    def scenarios(self, split: Split, count: int, population: str = "same") -> list[Scenario]:
        """Instructions of about 90 words, of which the number and the shop differ between scenarios."""
        return [
            Scenario(
                id=str(number),
                split=split,
                policy_instructions=_instructions("clerk", "customer", SHOPS[number % len(SHOPS)], number),
                user_instructions=_instructions("customer", "clerk", SHOPS[number % len(SHOPS)], number),
                greeting="Good morning, welcome to our shop. How can I help you today?",
            )
            for number in range(count)
        ]

    def texts(self, count: int) -> list[str]:
        """Training texts for a tokenizer of ``count`` scenarios."""
        return [
            text
            for scenario in self.scenarios(Split.CALIBRATION, count)
            for text in (scenario.policy_instructions, scenario.greeting)
        ]

    def ending(self, scenario: Scenario, turns: Sequence[Turn]) -> str | None:
        return None

    def outcome(self, scenario: Scenario, turns: Sequence[Turn], ending: str) -> Outcome:
        return Outcome(reward=0.0, success=False)

    def acts(self, scenario: Scenario, turns: Sequence[Turn], index: int) -> tuple[str, ...]:
        return ("say",)

    def profile(self, scenario: Scenario, turns: Sequence[Turn]) -> Mapping[str, float]:
        return {}


def _instructions(role: str, partner: str, shop: str, number: int) -> str:
    return (
        f"Visit {number}. You are the {role} in a {shop} shop, and you are talking with a {partner}. Stay in your part "
        f"all the time, and never speak for the {partner}. Say one or two short sentences in a turn, and take up what "
        f"the {partner} has just said. Be polite and to the point. If you want to know something, ask for one thing at "
        "a time. Name prices in whole coins, and keep to the price that you have named before. When you have agreed "
        "on everything, go on talking about the weather, the town or the news until the other says goodbye."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TalkConfig:
    """Models, sizes and engines of the dialogues."""

    model: Name = "smollm2-135m"
    """Of both sides; ``tiny``: one made on the spot."""
    dtype: Precision = "bfloat16"
    groups: Positive = 8
    group_size: Positive = 4
    policy_turns: Positive = 4
    max_turn_tokens: Positive = 24
    replicas: Positive = 1
    """Engines a side."""
    max_model_len: Positive = 1024
    kv_cache_mib: Positive = 1024
    num_gpus: Annotated[float, Range(at_least=0)] = 0.0
    """Share of the GPU that each engine gets."""
    eager: bool = True

    def engine(self) -> EngineConfig:
        return EngineConfig(
            dtype=self.dtype, max_model_len=self.max_model_len, kv_cache_mib=self.kv_cache_mib, num_gpus=self.num_gpus,
            eager=self.eager,
        )  # fmt: skip


@contextmanager
def model_of(config: TalkConfig) -> Iterator[tuple[Path, ChatTokens]]:
    """The folder of the model, and its chat."""
    with tempfile.TemporaryDirectory(prefix="calibrated_rl_benchmark_") as temporary_folder:
        folder = Path(temporary_folder)
        if config.model == "tiny":
            make_tiny(folder, Talk(config.policy_turns).texts(20), 0, context=config.max_model_len)
        else:
            folder = resolve_model(config.model, Path.home() / ".cache" / "calibrated_rl")
        yield folder, ChatTokens(read_tokenizer(folder, config.model))


@contextmanager
def two_pools(
    config: TalkConfig, folder: Path, tokens: ChatTokens, pool_class: type[Pool]
) -> Iterator[tuple[Pool, Pool]]:
    """A policy's and a simulator's pool, in a Ray of their own."""
    import ray

    start_ray(num_cpus=4)
    pools = tuple(
        pool_class(role, str(folder), tokens, config.engine(), replicas=config.replicas, seed=seed)
        for seed, role in enumerate(("policy", "simulator"))
    )
    try:
        for pool in pools:
            pool.wait_until_ready()
        yield pools[0], pools[1]
    finally:
        for pool in pools:
            pool.close()
        ray.shutdown()


def start_ray(num_cpus: int, object_store_mib: int = 512) -> None:
    """A local Ray whose workers import the package from where this process has it, whatever else runs here."""
    import ray

    # By default Ray's workers have a lower priority than other processes; the baseline does not.
    os.environ.update(RAY_worker_niceness="0")
    path = os.pathsep.join(entry for entry in (str(Path(__file__).resolve().parents[2]), *sys.path) if entry)
    ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=object_store_mib * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": path} | third_party.worker_environment()},
        **third_party.ray_options(local=True),
    )  # fmt: skip


def collector_of(config: TalkConfig, policy: ReplicaPool) -> Collector:
    sampling = SamplingConfig(max_turn_tokens=config.max_turn_tokens)
    return Collector(Talk(config.policy_turns), policy, sampling, sampling, keep_broken=True)
