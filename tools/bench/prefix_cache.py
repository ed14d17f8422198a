"""Prompt tokens that the engines had in their prefix caches, against those that an earlier request had computed."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from calibrated_rl.data.dialogue import Split
from calibrated_rl.inference.engine import Replica
from calibrated_rl.inference.engine_arguments import engine_environment
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import Generated, GenerateRequest
from tools.bench.base import Row, at_least
from tools.bench.talk import TalkConfig, collector_of, model_of, two_pools


@dataclass(slots=True)
class RecordedTurn:
    """One turn, in the order of the requests."""

    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    """Sampled ids."""
    cached: int = 0
    """Tokens of the prompt that the engine had cached."""


class RecordingPool(ReplicaPool):
    """Records every turn."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.turns: list[RecordedTurn] = []

    async def generate(self, key: str, request: GenerateRequest) -> Generated:
        turn = RecordedTurn(request.prompt_ids)
        self.turns.append(turn)
        generated = await super().generate(key, request)
        turn.ids, turn.cached = generated.ids, generated.cached
        return generated

    def block_tokens(self) -> int:
        """Tokens in a block of its engines' caches; only full blocks are cached."""
        return self.fleet.handle(0).apply(_block_tokens).result(60)


def _block_tokens(replica: Replica) -> int:
    return int(replica.engine.settings.cache_config.block_size)


def servable(turns: Iterable[RecordedTurn]) -> list[int]:
    """For each turn the length of its prompt's longest prefix shared with an earlier turn, on whichever replica.

    The last token of a prompt is always computed, because the first new one is sampled from it; the last sampled one
    has no keys and values.
    """
    counts = []
    root: dict[int, Any] = {}
    for turn in turns:
        node, n_shared = root, 0
        for id_ in turn.prompt_ids:
            if id_ not in node:
                break
            node, n_shared = node[id_], n_shared + 1
        counts.append(min(n_shared, len(turn.prompt_ids) - 1))
        node = root
        for id_ in [*turn.prompt_ids, *turn.ids[:-1]]:
            node = node.setdefault(id_, {})
    return counts


class PrefixCache:
    """Runs groups of dialogues and records the cache hits of each turn."""

    Config = TalkConfig

    def __init__(self, config: TalkConfig) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        os.environ.update(engine_environment(config.engine(), "benchmark"))
        with (
            model_of(config) as (folder, tokens),
            two_pools(config, folder, tokens, RecordingPool) as (policy, simulator),
        ):
            collector = collector_of(config, policy)
            collector.collect(
                collector.task.scenarios(Split.CALIBRATION, config.groups), simulator, group_size=config.group_size,
                arm="benchmark", update=0, seed=0,
            )  # fmt: skip
            block = policy.block_tokens()
            turns = [turn for pool in (policy, simulator) for turn in pool.turns]
            exact = [count for pool in (policy, simulator) for count in servable(pool.turns)]
        in_full_blocks = sum(count // block * block for count in exact)
        cached, prompts = sum(turn.cached for turn in turns), sum(len(turn.prompt_ids) for turn in turns)
        return at_least(
            cached, in_full_blocks, 0.95,
            f"prompt tokens that vLLM reports as served from its prefix cache, in {config.groups} groups of "
            f"{config.group_size} dialogues with {config.policy_turns} policy turns ({config.model}, {config.replicas} "
            f"replicas a side, {prompts} prompt tokens in {len(turns)} turns); limit: tokens of a prefix that an "
            "earlier turn of this side had, its own dialogue's or another's, in whole blocks of "
            f"{block}. Of them without regard to blocks ({sum(exact)}): {cached / sum(exact):.3f}; of all prompt "
            f"tokens: {cached / prompts:.3f}",
        )  # fmt: skip
