"""Completions a second of whole GRPO steps, sampling and weight sync included, against TRL's ``GRPOTrainer``.

Both sides do the same on the same machine, one after the other: the same model, the same prompts, groups of the same
size, completions of exactly the same length, one optimizer step on all of them, the same dtype and number of threads.
Ours are single turns through an engine in its actor, a step of the learner in its actor, and the weight sync between
them, one after the other: nothing is asynchronous.

TRL is installed on first use into a folder of its own.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from calibrated_rl.chat.tokens import ChatTokens
from calibrated_rl.data.dialogue import TokenSequence
from calibrated_rl.inference.config import EngineConfig
from calibrated_rl.inference.pool import ReplicaPool
from calibrated_rl.inference.turns import Generated, GenerateRequest
from calibrated_rl.learner.advantages.checked import group_advantages
from calibrated_rl.learner.advantages.grpo import GRPO
from calibrated_rl.learner.config import LearnerConfig, OptimizerConfig
from calibrated_rl.learner.sample import Sample
from calibrated_rl.models.tiny import make_tiny
from calibrated_rl.models.tokenizer import read_tokenizer
from calibrated_rl.settings.fields import NotNegative, Positive, Precision, Range
from tools.bench.base import NotMeasured, Row, at_least
from tools.bench.talk import Talk, start_ray
from tools.bench.trl_step import Settings, reward_of

TRL = "1.16.0"
NEEDS = (f"trl=={TRL}", "datasets==5.2.0", "multiprocess==0.70.19", "xxhash", "dill==0.4.1")
"""TRL and its requirements beyond those of this package, which are reused."""
LOSS: tuple[str, dict[str, Any]] = ("calibrated_rl.learner.losses.grpo:GRPO", {})
WORDS = ("red", "blue", "green", "white", "black", "brown", "pink", "grey")


@dataclass(frozen=True, slots=True)
class ShapeResult:
    """The measurements of one shape."""

    ours: dict[int, float]
    """Completions a second by the number of threads."""
    trl: dict[int, float]
    parts: tuple[float, float, float]
    """Milliseconds of sampling, learning and weight sync, with the best number of threads."""

    @property
    def ratio(self) -> float:
        return max(self.ours.values()) / max(self.trl.values())


class WholeStep:
    """Single-turn steps on a tiny model."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        dtype: Precision = "float32"
        groups: Positive = 8
        group_size: Annotated[int, Range(at_least=2)] = 8
        prompt_tokens: Positive = 448
        completion_tokens: Positive = 32
        """By default as in negotiations (CaSiNo, SmolLM2's tokenizer): a turn of 24 tokens follows on 438, means over
        300 dialogues."""
        also: tuple[tuple[Positive, Positive], ...] = ((64, 64),)
        """Further prompt and completion lengths, which are reported but not compared with the goal."""
        hidden: Positive = 192
        layers: Positive = 2
        """Of the tiny model, with a vocabulary of 800 tokens at most."""
        threads: tuple[Positive, ...] = (1, 2)
        """Numbers of threads to try: engines of one thread each and a learner with as many threads, which take turns;
        and threads of TRL's process. The best number of each side counts: beside other work that may be one."""
        learning_rate: Annotated[float, Range(above=0, at_most=1)] = 1e-5
        warm_up: NotNegative = 2
        steps: Positive = 6
        """Their median is reported."""
        goal: Annotated[float, Range(above=0)] = 3.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def measure(self) -> Row:
        config = self.config
        library = install_trl(Path.home() / ".cache" / "calibrated_rl")
        with tempfile.TemporaryDirectory(prefix="calibrated_rl_benchmark_") as temporary_folder:
            folder = Path(temporary_folder) / "model"
            texts = [" ".join(WORDS)] * 20 + Talk(1).texts(20)
            make_tiny(folder, texts, 0, hidden=config.hidden, layers=config.layers, context=1024)
            main_shape = self._shape(library, folder, config.prompt_tokens, config.completion_tokens)
            further = {shape: self._shape(library, folder, *shape) for shape in config.also}
        other_shapes = "; ".join(
            f"with prompts of {prompt} and completions of {completion} {shape_result.ratio:.2f} "
            f"({max(shape_result.ours.values()):.1f} against {max(shape_result.trl.values()):.1f}: "
            f"{_milliseconds(shape_result)})"
            for (prompt, completion), shape_result in further.items()
        )
        return at_least(
            max(main_shape.ours.values()), max(main_shape.trl.values()), config.goal,
            f"completions a second of whole steps, medians of {config.steps} ({config.groups} prompts of "
            f"{config.prompt_tokens} tokens, {config.group_size} completions of {config.completion_tokens} each, one "
            f"optimizer step; a Llama of {config.layers} layers of {config.hidden}, {config.dtype}): sampling, "
            f"learning and weight sync in turn ({_milliseconds(main_shape)}; with {_by_threads(main_shape.ours)}); "
            f"limit: GRPOTrainer of TRL {TRL}, sampling with transformers (with {_by_threads(main_shape.trl)}). Not "
            f"counted: {other_shapes or 'nothing'}. Sampling with vLLM, which TRL can do, too, is left out: its source "
            "writes new weights in a way that vLLM's packed layers on a CPU do not take",
        )  # fmt: skip

    def _shape(self, library: Path, model: Path, prompt_tokens: int, completion_tokens: int) -> ShapeResult:
        config = self.config
        trl_rates, our_rates, medians = {}, {}, {}
        for threads in config.threads:
            settings = Settings(
                model=str(model), dtype=config.dtype, prompts=self.prompts(prompt_tokens), groups=config.groups,
                group_size=config.group_size, completion_tokens=completion_tokens,
                steps=config.warm_up + config.steps, threads=threads, learning_rate=config.learning_rate,
                folder=str(model.with_name("trl")),
            )  # fmt: skip
            trl_rates[threads] = self._per_second(_steps_of_trl(library, settings))
            step_parts = asyncio.run(_our_steps(settings, prompt_tokens))
            our_rates[threads] = self._per_second([sum(step) for step in step_parts])
            measured = np.asarray(step_parts[config.warm_up :])
            medians[threads] = 1000 * np.median(measured, axis=0)
        sampling, learning, sync = medians[max(our_rates, key=lambda threads: our_rates[threads])]
        return ShapeResult(our_rates, trl_rates, (float(sampling), float(learning), float(sync)))

    def _per_second(self, seconds: list[float]) -> float:
        """Completions a second in the median step after those that warm up."""
        return self.config.groups * self.config.group_size / statistics.median(seconds[self.config.warm_up :])

    def prompts(self, tokens: int) -> list[str]:
        """Enough for all steps, no two alike; each word is one token."""
        random = np.random.default_rng(0)
        count = self.config.groups * (self.config.warm_up + self.config.steps)
        return [" ".join(random.choice(WORDS, tokens)) for _ in range(count)]


def _by_threads(rates: Mapping[int, float]) -> str:
    return ", ".join(f"{threads} thread{'s' * (threads > 1)}: {value:.1f}" for threads, value in rates.items())


def _milliseconds(result: ShapeResult) -> str:
    sampling, learning, sync = result.parts
    return f"{sampling:.0f}, {learning:.0f} and {sync:.0f} ms"


def install_trl(cache: Path) -> Path:
    """The folder that has TRL, installed there unless it is.

    Raises:
        NotMeasured: pip cannot install it.
    """
    folder = cache / f"trl-{TRL}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{folder.name}-") as work:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        process = subprocess.run([*command, "--target", work, *NEEDS], capture_output=True, text=True)
        if process.returncode:
            raise NotMeasured(
                f"pip cannot install TRL: {(process.stderr.strip() or 'no reason given').splitlines()[-1]}"
            )
        shutil.copytree(work, folder, dirs_exist_ok=True)
    return folder


def _steps_of_trl(library: Path, settings: Settings) -> list[float]:
    """Seconds of each step."""
    script = Path(__file__).with_name("trl_step.py")
    environment = os.environ | {
        "PYTHONPATH": str(library), "OMP_NUM_THREADS": str(settings.threads), "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    process = subprocess.run(
        [sys.executable, str(script)], input=json.dumps(asdict(settings)), env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    if process.returncode:
        raise NotMeasured(f"TRL fails: {(process.stderr.strip() or 'no reason given').splitlines()[-1]}")
    output = json.loads(process.stdout.strip().splitlines()[-1])
    assert set(output["lengths"]) == {settings.completion_tokens}, "TRL sampled completions of other lengths"
    return [float(value) for value in output["seconds"]]


async def _our_steps(settings: Settings, prompt_tokens: int) -> list[tuple[float, float, float]]:
    """Seconds of sampling, of learning and of weight sync in each step."""
    import ray

    from calibrated_rl.learner.group import LearnerGroup

    tokens = ChatTokens(read_tokenizer(Path(settings.model), "tiny"))
    prompts = [tokens.encode_text(prompt) for prompt in settings.prompts]
    assert {len(prompt) for prompt in prompts} == {prompt_tokens}, "a word is not one token"
    engine = EngineConfig(dtype=settings.dtype, kv_cache_mib=256)
    start_ray(num_cpus=4)
    pool = ReplicaPool("policy", settings.model, tokens, engine, replicas=settings.threads)
    learner = LearnerGroup(LearnerConfig(dtype=settings.dtype, threads=settings.threads))
    try:
        learner.load("policy", settings.model, optimizer=OptimizerConfig(learning_rate=settings.learning_rate))
        pool.wait_until_ready()
        seconds = []
        for step in range(settings.steps):
            began = time.perf_counter()
            groups = await _sample(pool, prompts[step * settings.groups :][: settings.groups], settings)
            sampled = time.perf_counter()
            learner.step("policy", [sample for group in groups for sample in with_credit(group)], LOSS)
            learned = time.perf_counter()
            pool.publish(learner.weight_update("policy", step + 1))
            seconds.append((sampled - began, learned - sampled, time.perf_counter() - learned))
    finally:
        learner.close()
        pool.close()
        ray.shutdown()
    return seconds


async def _sample(
    pool: ReplicaPool, prompts: Sequence[list[int]], settings: Settings
) -> list[list[tuple[list[int], Generated]]]:
    """For each prompt its completions."""

    async def sample_completion(number: int, member: int) -> tuple[list[int], Generated]:
        key, prompt = f"{number:06d}-{member:03d}", prompts[number]
        completion = await pool.generate(key, GenerateRequest(prompt, settings.completion_tokens, 1.0, 0, ()))
        pool.leave(key)
        assert len(completion.ids) == settings.completion_tokens
        return prompt, completion

    members = range(settings.group_size)
    return [
        list(group)
        for group in await asyncio.gather(
            *(
                asyncio.gather(*(sample_completion(number, member) for member in members))
                for number in range(len(prompts))
            )
        )
    ]


def with_credit(group: Sequence[tuple[list[int], Generated]]) -> list[Sample]:
    advantages = group_advantages([reward_of(completion.ids) for _, completion in group], GRPO(GRPO.Config()))
    return [
        Sample(tokens=_sequence(prompt, completion), advantage=float(advantage))
        for (prompt, completion), advantage in zip(group, advantages, strict=True)
    ]


def _sequence(prompt: list[int], completion: Generated) -> TokenSequence:
    """Prompt and completion, of which the completion is the policy's."""

    def after(fill: Any, values: Any, dtype: Any) -> Any:
        return np.concatenate([np.full(len(prompt), fill, dtype), np.asarray(values, dtype)])

    return TokenSequence(
        ids=np.asarray([*prompt, *completion.ids], np.int32), mask=after(False, np.ones(len(completion.ids)), np.bool_),
        logprobs=after(np.nan, completion.logprobs, np.float32), versions=after(-1, completion.versions, np.int32),
        turns=after(-1, np.zeros(len(completion.ids)), np.int32),
    )  # fmt: skip
