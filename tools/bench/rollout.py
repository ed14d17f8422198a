"""Tokens a second in whole dialogues of two models, against the same turns through bare engines.

Both do the same work. ``Collector`` and two pools in Ray run the dialogues; two vLLM engines with the same
settings, in one process without Ray, text or tasks, get the same turns. The order within a dialogue stays: a turn is
requested when the one before it, by the other side, is sampled, and the dialogues of a group begin when their shared
opening is. Each turn has as many prompt and sampled tokens as in its dialogue; the sampled ids are the
engine's own, so that its prefix cache is as effective. The two alternate, and medians are compared.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibrated_rl.data.dialogue import Dialogue, Side, Split, TokenSequence
from calibrated_rl.inference.engine import Replica
from calibrated_rl.inference.engine_arguments import engine_environment
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.settings.fields import NotNegative, Positive
from tools.bench.base import Row, at_least
from tools.bench.talk import TalkConfig, collector_of, model_of, two_pools


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One turn to sample again."""

    side: Side
    new_prompt_ids: list[int]
    """Ids added to the side's prompt since its last turn's sampled ids."""
    tokens: int
    """Sampled tokens."""


def script_of(dialogue: Dialogue) -> list[Line]:
    """The turns that models sampled, in order."""
    turns = []
    for side in Side:
        sequence = dialogue.tokens(side)
        assert sequence is not None
        turns += [(index, Line(side=side, new_prompt_ids=ids, tokens=count)) for index, ids, count in _turns(sequence)]
    return [line for _, line in sorted(turns, key=lambda turn: turn[0])]


def _turns(sequence: TokenSequence) -> list[tuple[int, list[int], int]]:
    """For each sampled turn: its index, the ids before it since the last one, how many ids it has."""
    turns: list[tuple[int, list[int], int]] = []
    new_prompt_ids: list[int] = []
    for id_, is_sampled, turn in zip(
        sequence.ids.tolist(), sequence.mask.tolist(), sequence.turns.tolist(), strict=True
    ):
        if not is_sampled:
            new_prompt_ids.append(id_)
        elif new_prompt_ids:
            turns.append((turn, new_prompt_ids, 1))
            new_prompt_ids = []
        else:
            turns[-1] = (turn, turns[-1][1], turns[-1][2] + 1)
    return turns


class Rollout:
    """Runs groups of dialogues, then samples their turns again without Ray, text and tasks."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(TalkConfig):
        repeats: Positive = 3
        """How often each of the two is measured."""
        tiny_groups: NotNegative = 0
        """Groups of dialogues of tiny models, on which ``how`` reports as well: the engines do least there, so the
        overhead around them weighs most. 0: none."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config, tiny_note = self.config, ""
        if config.tiny_groups:
            tiny = _measure(replace(config, model="tiny", dtype="float32", groups=config.tiny_groups))
            tiny_note = (
                f"; {config.tiny_groups} groups with the tiny model: {tiny.dialogues:.0f} of {tiny.bare:.0f} "
                f"({tiny.dialogues / tiny.bare:.2f})"
            )
        speeds = _measure(config)
        return at_least(
            speeds.dialogues, speeds.bare, 0.95,
            f"sampled tokens a second, policy and simulator together ({config.model}, {config.dtype}): "
            f"{config.groups} groups of {config.group_size} dialogues with {config.policy_turns} policy turns at once, "
            f"medians of {config.repeats} runs ({speeds.tokens} tokens); limit: the same turns, prompt and token "
            "counts, each after the turn that it answers, through two bare vLLM engines in one process, without "
            f"Ray, text or tasks{tiny_note}",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Speeds:
    dialogues: float
    """Sampled tokens a second, as the next field."""
    bare: float
    tokens: int


def _measure(config: Rollout.Config) -> _Speeds:
    os.environ.update(engine_environment(config.engine(), "benchmark"))
    with (
        model_of(config) as (folder, tokens),
        two_pools(config, folder, tokens, ReplicaPool) as (policy, simulator),
        asyncio.Runner() as runner,
    ):
        bare = runner.run(_bare_engines(str(folder), config))
        collector = collector_of(config, policy)
        scenarios = collector.task.scenarios(Split.CALIBRATION, config.groups * (config.repeats + 1))
        dialogues, limits, sampled = [], [], 0
        for repeat in range(config.repeats + 1):
            began = time.perf_counter()
            groups = collector.collect(
                scenarios[repeat * config.groups :][: config.groups], simulator,
                group_size=config.group_size, arm="benchmark", update=repeat, seed=0,
            )  # fmt: skip
            dialogue_seconds = time.perf_counter() - began
            scripts = [[script_of(dialogue) for dialogue in group] for group in groups]
            # The opening was sampled once a group.
            count = sum(line.tokens for g in scripts for m, s in enumerate(g) for line in s[1 if m else 0 :])
            began = time.perf_counter()
            runner.run(_replay(bare, scripts))
            replayed = time.perf_counter() - began
            if repeat:  # the first warms up
                dialogues.append(count / dialogue_seconds)
                limits.append(count / replayed)
                sampled += count
        for replica in bare.values():
            replica.shutdown()
    return _Speeds(statistics.median(dialogues), statistics.median(limits), sampled)


async def _bare_engines(model: str, config: TalkConfig) -> dict[Side, Replica]:
    """An engine a side; ``Replica`` is used for its engine's settings alone."""
    engines = [asyncio.to_thread(Replica, model, config.engine(), seed) for seed in range(len(Side))]
    bare = dict(zip(Side, await asyncio.gather(*engines), strict=True))
    for replica in bare.values():
        await replica.start()
    return bare


async def _replay(bare: dict[Side, Replica], scripts: Sequence[Sequence[list[Line]]]) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    counter = iter(range(10**9))

    async def say(line: Line, prompt: list[int]) -> None:
        parameters = SamplingParams(
            max_tokens=line.tokens, temperature=1.0, logprobs=0, flat_logprobs=True, detokenize=False, ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        prompt.extend(line.new_prompt_ids)
        request = {"type": "token", "prompt_token_ids": prompt}
        final = await bare[line.side].engine.finish(request, parameters, str(next(counter)))
        prompt.extend(final.outputs[0].token_ids)

    async def dialogue(lines: list[Line], prompts: dict[Side, list[int]]) -> None:
        for line in lines:
            await say(line, prompts[line.side])

    async def group(members: Sequence[list[Line]]) -> None:
        opening, *_ = members[0]
        opening_ids: list[int] = []
        await say(opening, opening_ids)
        await asyncio.gather(
            *(dialogue(lines[1:], {opening.side: list(opening_ids), opening.side.other: []}) for lines in members)
        )

    await asyncio.gather(*(group(members) for members in scripts))
